"""Captions of a trained model: greedy ones of many series at once, and the columns of one series for a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from linnet.domains.series.captions.codec import BEGIN, END, PATCH, PATCHES, CaptionCodec
from linnet.model.contract import evaluating
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.rows import IDS


def framed(numbers: np.ndarray, steps: int) -> np.ndarray:
    """float32 [steps, W]: the patches [P, W] after the begin token, and nothing at the words."""
    found = np.zeros((steps, numbers.shape[1]), np.float32)
    found[1 : 1 + len(numbers)] = numbers
    return found


def columns_of(numbers: np.ndarray) -> Callable[[Sequence[int]], Mapping[str, np.ndarray]]:
    """These patches of a series at each step of a row about it."""
    return lambda ids: {PATCHES: framed(numbers, len(ids))}


def greedy(model: Model, codec: CaptionCodec, found: Sequence[np.ndarray], *, rows: int = 64) -> list[str]:
    """The likeliest words of each series, one after the other."""
    texts = [""] * len(found)
    order = sorted(range(len(found)), key=lambda index: len(found[index]))
    for first in range(0, len(order), rows):
        batch = order[first : first + rows]
        for index, ids in zip(
            batch, _greedy(model, [codec.patches(found[index]) for index in batch]), strict=True
        ):
            texts[index] = codec.decode(ids)
    return texts


def _greedy(model: Model, numbers: Sequence[np.ndarray]) -> list[list[int]]:
    lengths = torch.tensor([len(one) + 1 for one in numbers])
    steps = int(lengths.max())
    ids = torch.full((len(numbers), steps), PATCH)
    ids[:, 0] = BEGIN
    values = torch.from_numpy(np.stack([framed(one, steps) for one in numbers]))
    longest = model.config.context - steps
    words: list[list[int]] = [[] for _ in numbers]
    with evaluating(model):
        inputs = Inputs(
            {IDS: ids.to(model.device), PATCHES: values.to(model.device)}, lengths=lengths.to(model.device)
        )
        output = model(inputs, model.empty_state(len(numbers), steps + longest))
        last = output.hidden[torch.arange(len(numbers)), lengths - 1]
        nothing = torch.zeros(len(numbers), 1, values.shape[2], device=model.device)
        for _ in range(longest):
            drawn = model.head(last).argmax(-1)
            for row, token in zip(words, drawn.tolist(), strict=True):
                if not row or row[-1] != END:
                    row.append(token)
            if all(row[-1] == END for row in words):
                break
            output = model(Inputs({IDS: drawn[:, None], PATCHES: nothing}), output.state)
            last = output.hidden[:, -1]
    return words
