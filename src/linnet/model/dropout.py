"""Dropout whose masks cost little: drawing a number for each value took a fifth of a step, compiled a third.

It is no other dropout than `torch.nn.Dropout` but for its stream of random numbers, and for shares that are
multiples of 2 ** -16 (what is kept is scaled by the exact share). Eagerly, one drawn word serves four values. In
compiled graphs a number is drawn for each row and for each column, and mixed where they meet: vectors do that on
the way, forward and backward, and no mask is kept. CUDA, which draws where it multiplies, uses torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PARTS = 1 << 16
_LANES = 4  # numbers of 16 bits in one drawn word


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Zero about this share of the values and scale up the rest."""
    dropped = dropped_parts(share)
    if not training or dropped == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    if torch.compiler.is_compiling():
        return torch.where(mixed_mask(x.shape, share, x.device), x * scale(share), 0.0)
    words = torch.empty(-(-x.numel() // _LANES), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None)
    lanes = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = (lanes >= dropped - _PARTS // 2).to(x.dtype)
    return x * keep.mul_(scale(share))


def dropped_parts(share: float) -> int:
    """How many of 2 ** 16 parts are dropped."""
    return round(share * _PARTS)


def scale(share: float) -> float:
    """By how much those that are kept make up for the others."""
    return _PARTS / (_PARTS - dropped_parts(share))


def mixed_mask(shape: torch.Size, share: float, device: torch.device) -> Tensor:
    """bool of this shape, False for about this share: random numbers of rows and of columns, well mixed."""
    rows = torch.randint(-(2**31), 2**31 - 1, (*shape[:-1], 1), dtype=torch.int32, device=device)
    columns = torch.randint(-(2**31), 2**31 - 1, shape[-1:], dtype=torch.int32, device=device)
    bits = (rows ^ columns) * 0x7FEB352D
    bits = (bits ^ (bits >> 15 & 0x1FFFF)) * -0x7B935975
    return (bits ^ bits >> 16) & 0xFFFF >= dropped_parts(share)


class Dropout(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share, self.training)
