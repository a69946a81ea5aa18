"""Rows that draw their next token together: what naive generation and the engine do alike.

Legend: n = rows that draw, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from linnet.decoding.allowed import Allowed
from linnet.decoding.asking import Ask, Decoding, Reason, Sample
from linnet.decoding.sampling import logprobs, near_ties, stream
from linnet.errors import BadInput


@dataclass
class Row:
    """A sample in the making. `place` is where its ask stands among all."""

    place: int
    ask: Ask
    limit: int
    random: np.random.Generator
    drawn: list[int] = field(default_factory=list)
    logprob: float = 0.0
    ties: int = 0
    stop: Reason | None = None

    @classmethod
    def of(cls, place: int, ask: Ask, limit: int, seed: int) -> Row:
        return cls(place, ask, limit, stream(seed, ask.prompt, ask.sample))

    @property
    def remembered(self) -> int:
        """Tokens that the model has read once the last one drawn is on its way."""
        return len(self.ask.prompt) + len(self.drawn) - 1

    @property
    def sample(self) -> Sample:
        assert self.stop is not None
        return Sample(tuple(self.drawn), self.logprob, self.stop, self.ties)


def draw(logits: Tensor, rows: Sequence[Row], decoding: Decoding) -> None:
    """Each row draws a token from its logits [n, V] and notes it, or notes why it has stopped."""
    logits = logits.float()
    sampling = decoding.sampling
    shaped = logits
    if sampling.repetition_penalty != 1:
        shaped = sampling.penalised(shaped, [(*row.ask.prompt, *row.drawn) for row in rows])
    if decoding.allowed is not None:
        shaped = _masked(shaped, rows, decoding.allowed)
    uniform = torch.zeros(len(rows), dtype=torch.float64)
    if sampling.temperature != 0:
        uniform = torch.from_numpy(np.array([row.random.random() for row in rows]))
    chosen = sampling.choose(shaped, uniform.to(logits.device))
    certainty = logprobs(logits, chosen).tolist()
    tied = near_ties(shaped).tolist() if decoding.count_ties else [False] * len(rows)
    for row, token, logprob, tie in zip(rows, chosen.tolist(), certainty, tied, strict=True):
        if row.stop is None:
            _note(row, token, logprob, decoding)
            row.ties += tie


def _note(row: Row, token: int, logprob: float, decoding: Decoding) -> None:
    row.logprob += logprob
    row.stop = decoding.stopping.reason(row.ask.prompt, row.drawn, token)
    if not decoding.stopping.writes(token):
        return
    row.drawn.append(token)
    if row.stop is None and len(row.drawn) >= row.limit:
        row.stop = "length"


def _masked(logits: Tensor, rows: Sequence[Row], allowed: Allowed) -> Tensor:
    """Logits of what may come next only; a row after which nothing may come has stopped."""
    masked = torch.full_like(logits, -math.inf)
    for place, row in enumerate(rows):
        ids = allowed.after(row.ask.prompt, row.drawn)
        if ids is not None and len(ids):
            chosen = torch.as_tensor(ids)
            _refuse_outside(chosen, logits.shape[-1])
            chosen = chosen.to(logits.device)
            masked[place, chosen] = logits[place, chosen]
            continue
        masked[place] = logits[place]
        if ids is not None:
            row.stop = "stop"
    return masked


def _refuse_outside(ids: Tensor, vocabulary: int) -> None:
    least, most = (int(end) for end in ids.aminmax())
    if least < 0 or most >= vocabulary:
        wrong = least if least < 0 else most
        raise BadInput(
            f"id {wrong}, which was allowed to come next, is outside the vocabulary (0..{vocabulary - 1})"
        )
