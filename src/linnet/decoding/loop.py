"""The loop of a batch on its device: every row reads its last token and draws the next, several in one round trip.

All that a token needs lies in tensors on the device (what each row reads, how far it may go, its random
numbers, what was drawn), and nothing waits for the host before the round trip is over. Until then a row that
has ended goes on and nobody reads it; it cannot leave its own slots.
Legend: R = rows of the batch, n = rows that draw, K = tokens of a round trip, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from linnet.decoding.requests import Decoding
from linnet.decoding.runner import Ids, Runner
from linnet.decoding.sampling import Drawn, allowed_ids, draw, listed, seen_ids
from linnet.decoding.scheduler import Row, Step
from linnet.model.state import Memory, State


class Loop:
    """Rows that run together: what they remember, and what each of them reads next."""

    def __init__(self, runner: Runner, decoding: Decoding, state: State, burst: int) -> None:
        self.runner, self.decoding, self.device = runner, decoding, runner.device
        self.memory: Memory = state.take()
        rows = len(self.memory.lengths)
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.last = torch.full_like(self.tokens, self.memory.shared)  # the last position that a row may read
        self.seen = None
        if decoding.sampling.repetition_penalty != 1:
            self.seen = torch.zeros(rows, runner.vocabulary, dtype=torch.bool, device=self.device)
        self.uniform = torch.zeros(burst, rows, dtype=torch.float64, device=self.device)
        self.drawn = torch.zeros(burst, rows, 3, dtype=torch.float64, device=self.device)
        self.turn = torch.zeros(1, dtype=torch.int64, device=self.device)  # which token of the round trip it is

    def extend(self, ids: Ids) -> Tensor:
        """All rows read these ids: logits [R, V] after them."""
        logits, state = self.runner.extend(State(self.memory), ids)
        self.memory = state.take()
        return logits

    def place(self, indices: Sequence[int], state: State, sources: Sequence[int]) -> None:
        """These rows go on as the rows `sources` of a state, which is consumed."""
        self.memory = State(self.memory).place(torch.tensor(indices), state, torch.tensor(sources)).take()

    def first(self, logits: Tensor, rows: Sequence[Row]) -> Drawn:
        """The first tokens of these rows, from the logits [n, V] after their prompts."""
        seen = None if self.seen is None else self._seen(rows)
        uniform = torch.from_numpy(self._noise(rows, 1)[0]).to(self.device)
        return listed(draw(logits, self.decoding, uniform, seen, self._allowed(rows))[None])

    def admit(self, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """These rows read the first tokens of their samples next."""
        where = torch.tensor(indices, device=self.device)
        self.tokens[where] = torch.tensor([row.drawn[-1] for row in rows], device=self.device)
        self.last[where] = torch.tensor([row.last for row in rows], device=self.device)
        if self.seen is not None:
            self.seen[where] = self._seen(rows)

    def compact(self, kept: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        rows = torch.tensor(kept)
        self.memory = State(self.memory).compact(rows).take()
        rows = rows.to(self.device)
        self.tokens, self.last = self.tokens[rows], self.last[rows]
        self.seen = None if self.seen is None else self.seen[rows]
        self.uniform, self.drawn = self.uniform[:, : len(kept)], self.drawn[:, : len(kept)]

    def run(self, step: Step) -> Drawn:
        """What the rows of this step draw; the other rows of the batch are empty."""
        indices = list(step.indices)
        # A GPU computes the empty rows sooner than it would take another shape.
        free = self.device.type == "cpu" or self.decoding.constraint is not None
        few = free and len(indices) < len(self.tokens)
        where = torch.tensor(indices) if few else slice(None)
        if not self.decoding.sampling.greedy:
            uniform = np.zeros((step.tokens, len(self.tokens)))
            uniform[:, indices] = self._noise(step.rows, step.tokens)
            self.uniform[: step.tokens] = torch.from_numpy(uniform).to(self.device)
        self.turn.zero_()
        for _ in range(step.tokens):
            self._once(where, step.reach, self._allowed(step.rows), self._read(step))
        return listed(self.drawn[: step.tokens, indices])

    def _read(self, step: Step) -> Ids:
        """What each row of the batch has read, where its model reads further columns; empty rows a token."""
        if self.runner.columns is None:
            return ()
        ids: list[Sequence[int]] = [(0,)] * len(self.tokens)
        for index, row in zip(step.indices, step.rows, strict=True):
            ids[index] = (*row.request.prompt, *row.drawn)
        return ids

    def _once(self, where: Tensor | slice, reach: int, allowed: Tensor | None, ids: Ids) -> None:
        """One token of all rows; none of them will have read more than `reach` tokens before it."""
        lengths = torch.minimum(self.memory.lengths, self.last).clamp(max=reach)
        state = State(replace(self.memory, lengths=lengths, filled=reach))
        logits, state = self.runner.step(state, self.tokens, where, ids)
        self.memory = state.take()
        seen = None if self.seen is None else self.seen[where]
        result = draw(logits, self.decoding, self.uniform[self.turn][0, where], seen, allowed)
        tokens = result[:, 0].long()
        self.tokens[where] = tokens
        if self.seen is not None:
            self.seen[where] = self.seen[where].scatter(1, tokens[:, None], True)
        self.drawn[self.turn, where] = result
        self.turn += 1

    def _noise(self, rows: Sequence[Row], tokens: int) -> np.ndarray:
        """The next random numbers [tokens, n] of these rows."""
        if self.decoding.sampling.greedy:
            return np.zeros((tokens, len(rows)))
        return np.stack([row.noise.random(tokens) for row in rows], axis=1)

    def _seen(self, rows: Sequence[Row]) -> Tensor:
        return seen_ids(rows, self.runner.vocabulary).to(self.device)

    def _allowed(self, rows: Sequence[Row]) -> Tensor | None:
        if self.decoding.constraint is None:
            return None
        return allowed_ids(rows, self.runner.vocabulary).to(self.device)
