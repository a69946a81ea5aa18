"""Dropout whose masks cost a quarter of the random numbers: on a processor, drawing them was a fifth of a step.

It is no other dropout than `torch.nn.Dropout` but for its stream of random numbers, and for shares that are
multiples of 2 ** -16 (what is kept is scaled by the exact share). Compiled graphs and CUDA, which draw where they
multiply, use torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIXTEENTHS = 1 << 16
_LANES = 4  # numbers of 16 bits in one drawn word


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Zero about this share of the values and scale up the rest."""
    dropped = round(share * _SIXTEENTHS)
    if not training or dropped == 0:
        return x
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return F.dropout(x, share)
    words = torch.empty(-(-x.numel() // _LANES), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None)
    lanes = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = (lanes >= dropped - _SIXTEENTHS // 2).to(x.dtype)
    return x * keep.mul_(_SIXTEENTHS / (_SIXTEENTHS - dropped))


class Dropout(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share, self.training)
