"""How the next token is chosen: frozen strategies, from logits to ids.

A sample depends on (seed, prompt, sample number) only: every row has its own random numbers, so neither the batch
size nor the other rows change it.
Legend: B = rows, V = vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. The cuts apply in the order top_k, top_p, min_p, each to what the last one left."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise BadInput(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top_k is {self.top_k}; it must be at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise BadInput(f"{name} is {share}; it must lie above 0 and not above 1")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Ids [B] for logits [B, V] and one uniform number a row [B]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        below = logits.double() - logits.amax(-1, keepdim=True)  # so that no temperature overflows
        shares = self.cut((below / self.temperature).softmax(-1))
        totals = shares.cumsum(-1)
        drawn = uniform[:, None] * totals[:, -1:]
        # The first id whose running total exceeds the draw; ids of share 0 never are.
        return (totals > drawn).to(torch.int8).argmax(-1)

    def cut(self, shares: Tensor) -> Tensor:
        """Probabilities [B, V] with the unwanted tail set to 0 (not renormalised)."""
        if self.top_k is not None and self.top_k < shares.shape[-1]:
            least = shares.topk(self.top_k, dim=-1).values[:, -1:]
            shares = shares.where(shares >= least, 0.0)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = shares.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            kept = ordered.where(before < self.top_p * ordered.sum(-1, keepdim=True), 0.0)
            shares = torch.zeros_like(shares).scatter(-1, order, kept)
        if self.min_p is not None:
            shares = shares.where(shares >= self.min_p * shares.amax(-1, keepdim=True), 0.0)
        return shares


def stream(seed: int, prompt: Sequence[int], sample: int) -> np.random.Generator:
    """The random numbers of one sample of one prompt."""
    named = f"{seed}/{sample}/{','.join(map(str, prompt))}"
    key = int.from_bytes(hashlib.blake2b(named.encode(), digest_size=16).digest(), "big")
    return np.random.Generator(np.random.Philox(key=key))
