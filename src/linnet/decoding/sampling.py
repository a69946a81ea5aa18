"""How the next token is drawn: from logits to ids, on the device of the logits and without waiting for it.

A sample depends on (seed, prompt, sample number) only: every row brings its own random numbers, so neither the
size of the batch nor its other rows change it.
Legend: n = rows that draw, V = vocabulary, K = blocks of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.decoding.requests import Decoding, Sampling
from linnet.decoding.scheduler import Row
from linnet.errors import BadInput

Drawn = list[tuple[list[int], list[float], list[bool]]]  # of each row: tokens, log-probabilities, ties


class Draws(NamedTuple):
    """One token for each of n rows."""

    tokens: Tensor  # int64 [n]
    logprobs: Tensor  # [n]: under the model
    ties: Tensor | None  # bool [n]: whether another token was as likely; None where that is not counted


COLDEST = 1e-30  # temperatures below are greedy in float32 all the same
LIKELIEST = 256  # candidates among which a nucleus is looked for before everything is sorted
BLOCK = 128
NEAR = 1e-4  # logits this close to each other may change their order in another arithmetic


def draw(
    logits: Tensor,
    decoding: Decoding,
    uniform: Tensor | None,
    seen: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Draws:
    """Draw a token for each row from its logits [n, V] and one uniform number a row [n], or greedily.

    `seen` [n, V] marks the ids that a repetition penalty makes rarer, `allowed` [n, V] those that may come.
    """
    logits, sampling = logits.float(), decoding.sampling
    shaped = logits
    if seen is not None:
        penalty = sampling.repetition_penalty
        shaped = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if allowed is not None:
        shaped = shaped.masked_fill(~allowed, -math.inf)
    tokens = choose(shaped, sampling, uniform)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]  # a processor sums slower by logsumexp
    return Draws(tokens, logprobs, near_ties(shaped) if decoding.count_ties else None)


def listed(draws: Sequence[Draws]) -> Drawn:
    """What n rows drew one token after the other, as numbers of each row."""
    columns = []
    for tokens, logprobs, ties in draws:
        tied = [False] * len(tokens) if ties is None else ties.tolist()
        columns.append(zip(tokens.tolist(), logprobs.tolist(), tied, strict=True))
    rows = (zip(*row, strict=True) for row in zip(*columns, strict=True))
    return [(list(tokens), list(logprobs), list(ties)) for tokens, logprobs, ties in rows]


def first_noise(rows: Sequence[Row], sampling: Sampling) -> Tensor | None:
    """The random number [n] of the first token of each row; greedy rows need none."""
    if sampling.greedy:
        return None
    return torch.tensor([row.noise.random() for row in rows], dtype=torch.float64)


def later_noise(rows: Sequence[Row], most: int) -> Tensor:
    """The random numbers [n, most] of the tokens after the first, as many as each row may draw."""
    noise = np.zeros((len(rows), most))
    for numbers, row in zip(noise, rows, strict=True):
        numbers[: row.limit - 1] = row.noise.random(row.limit - 1)
    return torch.from_numpy(noise)


def seen_ids(rows: Sequence[Row], vocabulary: int) -> Tensor:
    """Which ids [n, V] stand in the prompt or the sample of each row."""
    seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for marked, row in zip(seen, rows, strict=True):
        marked[[*row.request.prompt, *row.drawn]] = True
    return seen


def allowed_ids(rows: Sequence[Row], vocabulary: int) -> Tensor:
    """Which ids [n, V] may come next in each row."""
    allowed = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for marked, row in zip(allowed, rows, strict=True):
        ids = range(vocabulary) if row.allowed is None else row.allowed
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise BadInput(
                f"id {wrong}, which was allowed to come next, is outside the vocabulary (0..{vocabulary - 1})"
            )
        marked[list(ids)] = True
    return allowed


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """Ids [n] for logits [n, V] and one uniform number a row [n]; without any, the likeliest ones."""
    if sampling.greedy or uniform is None:
        return likeliest(logits)
    below = logits.float() - logits.amax(-1, keepdim=True)  # so that no temperature overflows
    if math.isinf(sampling.temperature):
        below = torch.zeros_like(below).masked_fill(below.isneginf(), -math.inf)
    else:
        below = below / max(sampling.temperature, COLDEST)
    return inverse(cut(below.exp(), sampling), uniform)


def likeliest(logits: Tensor) -> Tensor:
    """Ids [n] of the largest logits [n, V], the first of equal ones; numpy finds them sooner than torch."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def cut(shares: Tensor, sampling: Sampling) -> Tensor:
    """Shares [n, V] of any total with the unwanted tail set to 0."""
    if sampling.top_k is not None and sampling.top_k < shares.shape[-1]:
        least = shares.topk(sampling.top_k, dim=-1).values[:, -1:]
        shares = shares.where(shares >= least, 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        shares = nucleus(shares, sampling.top_p)
    if sampling.min_p is not None:
        shares = shares.where(shares >= sampling.min_p * shares.amax(-1, keepdim=True), 0.0)
    return shares


def nucleus(shares: Tensor, mass: float) -> Tensor:
    """Shares [n, V] without all but the fewest likeliest ones that have this part of the total."""
    wanted = mass * shares.sum(-1, keepdim=True)
    ordered = None
    # On a processor the few likeliest are found sooner than all are sorted; a GPU would have to be waited for.
    if shares.shape[-1] > LIKELIEST and shares.device.type == "cpu":
        ordered, order = shares.topk(LIKELIEST, dim=-1)
        if bool((ordered.sum(-1, keepdim=True) < wanted).any()):
            ordered = None
    if ordered is None:
        ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.where(before < wanted, 0.0)
    return torch.zeros_like(shares).scatter(-1, order, kept)


def inverse(shares: Tensor, uniform: Tensor) -> Tensor:
    """Ids [n]: the first at which the running total of the shares [n, V] exceeds its uniform part of the total.

    The total runs over blocks of ids first and then inside one block, so that most of it needs no double numbers.
    Shares that are no numbers give an id all the same, and its log-probability is no number either.
    """
    vocabulary = shares.shape[-1]
    whole = F.pad(shares, (0, -vocabulary % BLOCK)) if vocabulary % BLOCK else shares  # which it would copy
    padded = whole.unflatten(-1, (-1, BLOCK))  # [n, K, BLOCK]
    totals = padded.sum(-1).double().cumsum(-1)
    wanted = uniform[:, None].to(totals) * totals[:, -1:]
    block = (totals > wanted).to(torch.int8).argmax(-1, keepdim=True)
    rest = wanted - F.pad(totals, (1, 0)).gather(-1, block)
    inside = padded.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0]
    beyond = (inside.double().cumsum(-1) > rest) & (inside > 0)
    # Rounding may let the running total of a block end just below the sum of the block: then its last id is meant.
    last = BLOCK - 1 - (inside > 0).to(torch.int8).flip(-1).argmax(-1)
    offset = torch.where(beyond.any(-1), beyond.to(torch.int8).argmax(-1), last)
    return (block[:, 0] * BLOCK + offset).clamp(max=vocabulary - 1)


def near_ties(logits: Tensor) -> Tensor:
    """bool [n]: whether the two largest logits are within `NEAR` of each other."""
    return (logits > logits.amax(-1, keepdim=True) - NEAR).sum(-1) > 1
