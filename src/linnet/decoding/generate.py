"""Generation with a cache: a batch of prompts of any lengths goes on until every row has ended.

`naive.generate` is its oracle: no cache, one row at a time, the same samples.
Legend: B = rows, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from linnet.decoding.sampling import Sampling, stream
from linnet.errors import BadInput
from linnet.model.inputs import Inputs
from linnet.model.model import Model, evaluating

Stop = Literal["end", "length", "stop"]


@dataclass(frozen=True)
class Ask:
    """What is to be generated from one prompt: its ids (a begin token included) and which sample it is."""

    prompt: tuple[int, ...]
    sample: int = 0


@dataclass(frozen=True)
class Sample:
    """Generated ids (an end token excluded), their log-probability under the model, and why they end."""

    ids: tuple[int, ...]
    logprob: float
    stop: Stop


def check(model: Model, asks: Sequence[Ask], max_tokens: int) -> None:
    """Refuse what cannot be generated from, naming it."""
    if max_tokens < 1:
        raise BadInput(f"max tokens is {max_tokens}; it must be at least 1")
    vocabulary, context = model.config.vocabulary, model.config.context
    for ask in asks:
        if not ask.prompt:
            raise BadInput("a prompt is empty, and this model has no begin token to start from")
        wrong = [token for token in ask.prompt if not 0 <= token < vocabulary]
        if wrong:
            raise BadInput(f"token {wrong[0]} of a prompt is outside the vocabulary (0..{vocabulary - 1})")
        if len(ask.prompt) > context:
            raise BadInput(f"a prompt has {len(ask.prompt)} tokens, and the context of this model is {context}")


def generate(
    model: Model,
    asks: Sequence[Ask],
    *,
    sampling: Sampling,
    end: int | None,
    max_tokens: int,
    seed: int = 0,
    rows: int = 256,
) -> Iterator[Sample]:
    """One sample for each ask, in their order; at most `rows` of them are computed together."""
    check(model, asks, max_tokens)
    for first in range(0, len(asks), rows):
        with evaluating(model):
            samples = _batch(model, asks[first : first + rows], sampling, end, max_tokens, seed)
        yield from samples


def _batch(
    model: Model, asks: Sequence[Ask], sampling: Sampling, end: int | None, max_tokens: int, seed: int
) -> list[Sample]:
    """All rows step together; a row that has ended leaves, so the batch shrinks."""
    streams = [stream(seed, ask.prompt, ask.sample) for ask in asks]
    lengths = torch.tensor([len(ask.prompt) for ask in asks])
    ids = torch.zeros(len(asks), int(lengths.max()), dtype=torch.int64)
    for row, ask in enumerate(asks):
        ids[row, : len(ask.prompt)] = torch.tensor(ask.prompt)
    state = model.empty_state(len(asks), min(int(lengths.max()) + max_tokens, model.config.context))
    output = model(Inputs(ids.to(model.device), lengths=lengths.to(model.device)), state)
    last = output.hidden[torch.arange(len(asks)), lengths.to(model.device) - 1]

    limits = [min(max_tokens, model.config.context - len(ask.prompt) + 1) for ask in asks]
    drawn: list[list[int]] = [[] for _ in asks]
    logprobs = [0.0] * len(asks)
    stops: list[Stop] = ["length"] * len(asks)
    alive = list(range(len(asks)))
    while True:
        logits = model.head(last).float()
        uniform = torch.from_numpy(np.array([streams[row].random() for row in alive]))
        chosen = sampling.choose(logits, uniform.to(logits.device))
        certainty = logits.double().log_softmax(-1).gather(-1, chosen[:, None])[:, 0].tolist()
        going = []
        for place, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            logprobs[row] += certainty[place]
            if token == end:
                stops[row] = "end"
                continue
            drawn[row].append(token)
            if len(drawn[row]) < limits[row]:
                going.append(place)
        if not going:
            return [Sample(tuple(drawn[row]), logprobs[row], stops[row]) for row in range(len(asks))]
        state = output.state
        assert state is not None
        if len(going) < len(alive):
            kept = torch.tensor(going, device=model.device)
            alive = [alive[place] for place in going]
            remembered = max(len(asks[row].prompt) + len(drawn[row]) - 1 for row in alive)
            # Nothing is forgotten: the rows that are left may be shorter than those that went.
            state, chosen = state.select(kept).truncate(remembered), chosen[kept]
        output = model(chosen[:, None], state)
        last = output.hidden[:, -1]
