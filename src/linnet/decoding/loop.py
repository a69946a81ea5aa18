"""The loop of a batch on its device: every row reads its last token and draws the next, several in one round trip.

All that a token needs lies in tensors that stay where they are: what each row reads, how far it may go, its random
numbers, what was drawn. Nothing waits for the host before the round trip is over, so a GPU records the step of a
shape once and repeats it (`Graphs`). Until then a row that has ended goes on, and nobody reads it; it cannot leave
its own slots. Everything but the recording runs on any device.
Legend: R = rows of the batch, n = rows that draw, K = tokens of a round trip, L = tokens of a row, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from linnet.decoding.lookup import Guesses, accepted
from linnet.decoding.requests import Decoding, Sampling
from linnet.decoding.runner import Ids, Runner
from linnet.decoding.sampling import Drawn, Draws, allowed_ids, draw, first_noise, later_noise, listed, seen_ids
from linnet.decoding.scheduler import Row, Step
from linnet.model.state import KeyValues, Memory, State
from linnet.recording import Graphs

SPAN = 128  # slots: a recorded step reads as many as fill such pieces
KEPT = 4  # loops that wait for a call of their shape


@dataclass(frozen=True)
class Buffers:
    """What the rows of a batch need beside their memory."""

    tokens: Tensor  # int64 [R]: read next
    last: Tensor  # int64 [R]: the last position that a row may read
    prompt: Tensor  # int64 [R]: tokens of the prompt
    noise: Tensor | None  # float64 [R, L]: random numbers of the tokens after the first; greedy rows need none
    seen: Tensor | None  # bool [R, V]: ids that a repetition penalty makes rarer

    @classmethod
    def of(cls, runner: Runner, sampling: Sampling, rows: int, slots: int) -> Buffers:
        tokens = torch.zeros(rows, dtype=torch.int64, device=runner.device)
        noise = None if sampling.greedy else tokens.new_zeros(rows, slots, dtype=torch.float64)
        penalised = sampling.repetition_penalty != 1
        seen = tokens.new_zeros(rows, runner.vocabulary, dtype=torch.bool) if penalised else None
        return cls(tokens, tokens.clone(), tokens.clone(), noise, seen)

    def clear(self, shared: int) -> None:
        """Empty rows have read what all share, and go no further."""
        self.last.fill_(shared)
        self.prompt.fill_(shared)

    def rows(self, kept: Tensor) -> Buffers:
        """Only these rows go on, in this order, at the beginning of the same buffers."""
        moved: dict[str, Any] = {}
        for part in fields(self):
            whole = getattr(self, part.name)
            moved[part.name] = None if whole is None else whole[: len(kept)].copy_(whole[kept])
        return Buffers(**moved)


class Loop:
    """Rows that run together, from what all of their prompts begin with (`after`) to their last tokens.

    A fixed loop has one of few sizes and never gets other tensors, so that what is recorded of it is used again.
    """

    def __init__(
        self, runner: Runner, decoding: Decoding, rows: int, slots: int, after: State | None, burst: int
    ) -> None:
        self.runner, self.decoding, self.device, self.after = runner, decoding, runner.device, after
        self.fixed, self.slots, self.graphs = runner.fixed, slots, Graphs(runner.device)
        # One slot more than is ever read: to a compiler, reading all of them would be a graph of its own.
        self.memory: Memory = runner.empty(rows, slots + self.fixed + decoding.lookup, after=after).take()
        self.buffers = Buffers.of(runner, decoding.sampling, rows, slots)
        self.turn = torch.zeros(1, dtype=torch.int64, device=self.device)  # which token of the round trip it is
        # What a recorded step draws, its three parts as float64, which holds all of them.
        self.drawn = torch.zeros(burst, rows, 3, dtype=torch.float64, device=self.device)
        self.whole, self.guesses = (self.memory, self.buffers), Guesses()
        self.buffers.clear(self.memory.shared)

    @classmethod
    def begin(
        cls, runner: Runner, decoding: Decoding, rows: int, slots: int, after: State | None, burst: int
    ) -> Loop:
        """A loop for so many rows with room for so many tokens beyond `after`, which is consumed."""
        if not runner.fixed:
            return cls(runner, decoding, rows, slots, after, burst)
        slots = -(-slots // SPAN) * SPAN
        loop = runner.loops.pop(cls._shape(decoding, rows, slots, after, burst), None)
        if loop is None:
            return cls(runner, decoding, rows, slots, after, burst)
        loop._clear(decoding, after)
        return loop

    def end(self) -> None:
        """Every row has ended: the next call of this shape takes the loop as it is."""
        if self.fixed:
            rows = len(self.whole[1].tokens)
            loops = self.runner.loops
            loops[self._shape(self.decoding, rows, self.slots, self.after, len(self.drawn))] = self
            while len(loops) > KEPT:
                del loops[next(iter(loops))]
        if self.graphs.problem:
            self.runner.notes.append(f"steps are not recorded as CUDA graphs: {self.graphs.problem}")
            self.graphs.problem, self.runner.fixed = "", False

    @staticmethod
    def _shape(decoding: Decoding, rows: int, slots: int, after: State | None, burst: int) -> Hashable:
        begun = 0 if after is None else after.filled
        return rows, slots, begun, decoding.sampling, decoding.count_ties, decoding.lookup, burst

    def _clear(self, decoding: Decoding, after: State | None) -> None:
        """As if it were new, in the same tensors."""
        self.decoding, (self.memory, self.buffers), self.guesses = decoding, self.whole, Guesses()
        layers = () if after is None else after.take().layers
        for mine, theirs in zip(self.memory.layers, layers, strict=False):
            assert isinstance(mine, KeyValues) and isinstance(theirs, KeyValues)
            for kept, new in zip(mine.shared or (), theirs.shared or (), strict=True):
                kept.copy_(new)
        self.memory.lengths.fill_(self.memory.shared)
        self.buffers.clear(self.memory.shared)

    def _keep(self, state: State) -> None:
        after = state.take()
        if self.fixed:
            self.memory.lengths.copy_(after.lengths)  # keys and values were written where they stay
        else:
            self.memory = after

    def extend(self, ids: Ids, before: Ids) -> Tensor:
        """All rows read these ids: logits [R, V] after them."""
        logits, state = self.runner.extend(State(self.memory), ids, before)
        self._keep(state)
        return logits

    def put(self, indices: Sequence[int], state: State, sources: Sequence[int]) -> None:
        """These rows go on as the rows `sources` of a state, which is consumed."""
        self._keep(State(self.memory).put(torch.tensor(indices), state, torch.tensor(sources)))

    def first(self, logits: Tensor, rows: Sequence[Row]) -> Drawn:
        """The first tokens of these rows, from the logits [n, V] after their prompts."""
        seen = None if self.buffers.seen is None else self._seen(rows)
        uniform = first_noise(rows, self.decoding.sampling)
        uniform = None if uniform is None else uniform.to(self.device)
        return listed([draw(logits, self.decoding, uniform, seen, self._allowed(rows))])

    def admit(self, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """These rows read the first tokens of their samples next."""
        where, buffers = torch.tensor(indices, device=self.device), self.buffers
        buffers.tokens[where] = torch.tensor([row.drawn[-1] for row in rows], device=self.device)
        buffers.last[where] = torch.tensor([row.last for row in rows], device=self.device)
        buffers.prompt[where] = torch.tensor([len(row.request.prompt) for row in rows], device=self.device)
        if buffers.noise is not None:
            buffers.noise[where] = later_noise(rows, self.slots).to(self.device)
        if buffers.seen is not None:
            buffers.seen[where] = self._seen(rows)

    def compact(self, kept: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        rows = torch.tensor(kept)
        self.memory = State(self.memory).compact(rows).take()
        self.buffers = self.buffers.rows(rows.to(self.device))

    def run(self, step: Step) -> Drawn:
        """What the rows of this step draw; the other rows of the batch are empty."""
        rows, indices = len(self.buffers.tokens), list(step.indices)
        if self.decoding.lookup and (found := self._looked_up(step)):
            return found
        if self.fixed and self.decoding.constraint is None:
            return self._recorded(rows, indices, step)
        where = slice(rows) if len(indices) == rows else torch.tensor(indices, device=self.device)
        allowed, before = self._allowed(step.rows), self._before(step)
        return listed([self._once(where, step.reach, allowed, before) for _ in range(step.tokens)])

    def _looked_up(self, step: Step) -> Drawn:
        """Rows read their last token and those that are guessed to follow; nothing where none is guessed."""
        most = min(self.decoding.lookup, self.runner.network.config.context - 1 - step.reach)
        guessed = [self.guesses.after(row, most) for row in step.rows]
        if not any(guessed):
            return []
        ids = [[0]] * len(self.buffers.tokens)  # of empty rows, which nobody reads
        for index, row, guess in zip(step.indices, step.rows, guessed, strict=True):
            ids[index] = [row.drawn[-1], *guess]
        lengths = torch.minimum(self.memory.lengths, self.buffers.last).clamp(max=step.reach)
        where = torch.tensor(step.indices, device=self.device)
        logits, state = self.runner.read(
            State(replace(self.memory, lengths=lengths, filled=step.reach)), ids, where
        )
        tokens, logprobs, ties = self._drawn_at_once(logits, lengths, where)
        counts = [accepted(row, guess) for row, guess in zip(tokens, guessed, strict=True)]
        kept = lengths + 1
        kept[where] = lengths[where] + torch.tensor(counts, device=self.device)
        self._keep(state.truncate(kept))
        last = [row[count - 1] for row, count in zip(tokens, counts, strict=True)]
        self.buffers.tokens[where] = torch.tensor(last, device=self.device)
        parts = zip(counts, tokens, logprobs, ties, strict=True)
        return [(row[:count], scores[:count], tied[:count]) for count, row, scores, tied in parts]

    def _drawn_at_once(self, logits: Tensor, lengths: Tensor, where: Tensor) -> tuple[list[Any], ...]:
        """Tokens, log-probabilities and ties of n rows at all T positions, from their logits [n, T, V]."""
        uniform, (count, width) = None, logits.shape[:2]
        if self.buffers.noise is not None:
            first = (lengths - self.buffers.prompt)[where, None]
            number = (first + torch.arange(width, device=self.device)).clamp(max=self.buffers.noise.shape[1] - 1)
            uniform = self.buffers.noise[where].gather(1, number).flatten()
        tokens, logprobs, ties = draw(logits.flatten(0, 1), self.decoding, uniform)
        parts = tokens, logprobs, torch.zeros_like(tokens, dtype=torch.bool) if ties is None else ties
        return tuple(part.view(count, width).tolist() for part in parts)

    def _recorded(self, rows: int, indices: Sequence[int], step: Step) -> Drawn:
        """All rows draw, in steps of one of few shapes; what they drew is read once."""
        shared, most = self.memory.shared, self.runner.network.config.context - 1
        reach = shared + (step.reach - shared) // SPAN * SPAN + SPAN - 1
        reach = min(reach, shared + self.slots - 1, most)

        def once() -> None:
            tokens, logprobs, ties = self._once(slice(rows), reach, None, ())
            parts = tokens, logprobs, torch.zeros_like(tokens) if ties is None else ties
            self.drawn[self.turn, :rows] = torch.stack([part.double() for part in parts], dim=-1)
            self.turn += 1

        self.turn.zero_()
        for _ in range(step.tokens):
            self.graphs.run((rows, reach), once)
        host = self.drawn[: step.tokens, indices].cpu().permute(2, 1, 0)  # [3, n, K]
        return list(zip(host[0].long().tolist(), host[1].tolist(), host[2].bool().tolist(), strict=True))

    def _before(self, step: Step) -> Ids:
        """What each row of the batch has read before its next token, where its model reads further columns."""
        if self.runner.columns is None:
            return ()
        ids: list[Sequence[int]] = [()] * len(self.buffers.tokens)
        for index, row in zip(step.indices, step.rows, strict=True):
            ids[index] = (*row.request.prompt, *row.drawn[:-1])
        return ids

    def _once(self, where: Tensor | slice, reach: int, allowed: Tensor | None, before: Ids) -> Draws:
        """One token of these rows, none of which has read more than `reach` tokens before it."""
        buffers = self.buffers
        lengths = torch.minimum(self.memory.lengths, buffers.last)
        state = State(replace(self.memory, lengths=lengths, filled=reach))
        logits, state = self.runner.step(state, buffers.tokens, where, before)
        self._keep(state)
        uniform = seen = None
        if buffers.noise is not None:
            uniform = buffers.noise.gather(1, (lengths - buffers.prompt)[:, None])[where, 0]
        if buffers.seen is not None:
            seen = buffers.seen[where]
        drawn = draw(logits, self.decoding, uniform, seen, allowed)
        buffers.tokens[where] = drawn.tokens
        if seen is not None and buffers.seen is not None:
            buffers.seen[where] = seen.scatter(1, drawn.tokens[:, None], True)
        return drawn

    def _seen(self, rows: Sequence[Row]) -> Tensor:
        return seen_ids(rows, self.runner.vocabulary).to(self.device)

    def _allowed(self, rows: Sequence[Row]) -> Tensor | None:
        if self.decoding.constraint is None:
            return None
        return allowed_ids(rows, self.runner.vocabulary).to(self.device)
