"""How the next token is chosen: frozen strategies, from logits to ids.

A sample depends on (seed, prompt, sample number) only: every row has its own random numbers, so neither the batch
size nor the other rows change it.
Legend: B = rows, V = vocabulary, K = blocks of a vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.errors import BadInput

COLDEST = 1e-30  # temperatures below are greedy in float32 all the same
LIKELIEST = 256  # candidates among which a nucleus is looked for before everything is sorted
BLOCK = 128
NEAR = 1e-4  # logits this close to each other may trade places in another arithmetic


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. The cuts apply in the order top_k, top_p, min_p, each to what the last one left.

    A repetition penalty above 1 divides positive logits, and multiplies negative ones, of tokens that stand in the
    prompt or in the sample already.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise BadInput(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top_k is {self.top_k}; it must be at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise BadInput(f"{name} is {share}; it must lie above 0 and not above 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise BadInput(f"repetition_penalty is {self.repetition_penalty}; it must be a number above 0")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Ids [B] for logits [B, V] and one uniform number a row [B]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        below = logits.float() - logits.amax(-1, keepdim=True)  # so that no temperature overflows
        if math.isinf(self.temperature):
            below = torch.zeros_like(below).masked_fill(below.isneginf(), -math.inf)
        else:
            below = below / max(self.temperature, COLDEST)
        return drawn(self.cut(below.exp()), uniform)

    def penalised(self, logits: Tensor, seen: Sequence[Iterable[int]]) -> Tensor:
        """Logits [B, V] with those of the ids that each row has seen made smaller."""
        if self.repetition_penalty == 1:
            return logits
        logits = logits.clone()
        for row, ids in zip(logits, seen, strict=True):
            places = torch.tensor(sorted(set(ids)), device=logits.device)
            found = row[places]
            penalty = self.repetition_penalty
            row[places] = torch.where(found > 0, found / penalty, found * penalty)
        return logits

    def cut(self, shares: Tensor) -> Tensor:
        """Shares [B, V] of any total with the unwanted tail set to 0."""
        if self.top_k is not None and self.top_k < shares.shape[-1]:
            least = shares.topk(self.top_k, dim=-1).values[:, -1:]
            shares = shares.where(shares >= least, 0.0)
        if self.top_p is not None and self.top_p < 1:
            shares = nucleus(shares, self.top_p)
        if self.min_p is not None:
            shares = shares.where(shares >= self.min_p * shares.amax(-1, keepdim=True), 0.0)
        return shares


def nucleus(shares: Tensor, mass: float) -> Tensor:
    """Shares [B, V] without all but the fewest likeliest ones that have this part of the total."""
    wanted = mass * shares.sum(-1, keepdim=True)
    if shares.shape[-1] > LIKELIEST:
        ordered, order = shares.topk(LIKELIEST, dim=-1)
        if bool((ordered.sum(-1, keepdim=True) < wanted).any()):
            ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    else:
        ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.where(before < wanted, 0.0)
    return torch.zeros_like(shares).scatter(-1, order, kept)


def drawn(shares: Tensor, uniform: Tensor) -> Tensor:
    """Ids [B]: the first at which the running total of the shares [B, V] exceeds its uniform part of the total.

    The total runs over blocks of ids first and then inside one block, so that most of it needs no double numbers.
    """
    padded = F.pad(shares, (0, -shares.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))  # [B, K, BLOCK]
    totals = padded.sum(-1).double().cumsum(-1)
    wanted = uniform[:, None].to(totals) * totals[:, -1:]
    block = (totals > wanted).to(torch.int8).argmax(-1, keepdim=True)
    rest = wanted - F.pad(totals, (1, 0)).gather(-1, block)
    inside = padded.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0]
    beyond = (inside.double().cumsum(-1) > rest) & (inside > 0)
    # Rounding may let the running total of a block end just below the sum of the block: then its last id is meant.
    last = BLOCK - 1 - (inside > 0).to(torch.int8).flip(-1).argmax(-1)
    place = torch.where(beyond.any(-1), beyond.to(torch.int8).argmax(-1), last)
    return block[:, 0] * BLOCK + place


def logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [B] of these ids [B] under logits [B, V]."""
    return logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def near_ties(logits: Tensor) -> Tensor:
    """bool [B]: whether the two largest logits are within `NEAR` of each other."""
    return (logits > logits.amax(-1, keepdim=True) - NEAR).sum(-1) > 1


def stream(seed: int, prompt: Sequence[int], sample: int) -> np.random.Generator:
    """The random numbers of one sample of one prompt."""
    named = f"{seed}/{sample}/{','.join(map(str, prompt))}"
    key = int.from_bytes(hashlib.blake2b(named.encode(), digest_size=16).digest(), "big")
    return np.random.Generator(np.random.Philox(key=key))
