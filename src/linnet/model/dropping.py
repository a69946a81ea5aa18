"""Dropout: which values are dropped, drawn for rows of a whole batch whatever the number of processes.

On processors random words are cut into 16 bits each; a compiled graph mixes the bits of rows and columns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_PARTS = 1 << 16
_LANES = 4  # numbers of 16 bits in one drawn word
DROPPING = torch.ones((), dtype=torch.int32)  # 0 while nothing is dropped; compiled graphs read it in each call


@contextlib.contextmanager
def nothing_dropped() -> Iterator[None]:
    """Inside, dropout on processors drops nothing, in graphs that were compiled before too, so that steps compare.

    A backward pass belongs to the same side as its forward pass.
    """
    DROPPING.zero_()
    try:
        yield
    finally:
        DROPPING.fill_(1)


@dataclass(frozen=True)
class Part:
    """The rows of a micro-batch that one of several processes computes: `first` up to `last` of `total`.

    All processes draw the masks of all rows from one seed and use those of their own, so that their number changes
    nothing. `entries` says of so many values that lie row after row, as many as each row has, where those of this
    process begin among those of all, and how many all have. A process without rows computes one without weight.
    """

    first: int
    last: int
    total: int
    entries: Callable[[int], tuple[int, int]]

    def own(self, values: int, entries: bool) -> tuple[int, slice, int]:
        """How many values there are of all rows in a pass, which of them are here, and how many passes are."""
        if entries:
            first, total = self.entries(values)
            return total, slice(first, first + values), 1
        rows = max(1, self.last - self.first)
        assert values % rows == 0, "values lie by rows, or else are called entries"
        return self.total, slice(self.first, self.first + rows), values // rows


_PART: list[Part] = []  # of the step that is computed; empty in a process alone


@contextlib.contextmanager
def drawing_for(part: Part | None) -> Iterator[None]:
    """Inside, dropout is drawn for this part of the rows."""
    if part is not None:
        _PART.append(part)
    try:
        yield
    finally:
        if part is not None:
            _PART.pop()


def in_parts() -> bool:
    """Whether this process computes a part of the rows, whose masks are drawn for all of them."""
    return bool(_PART)


def drop(x: Tensor, share: float, training: bool = True, *, entries: bool = False) -> Tensor:
    """Zero about this share of the values and scale up the rest; shares are multiples of 2 ** -16.

    `entries`: the first axis does not lie by rows, but has as many values of each row as that has, in their order.
    """
    dropped = dropped_parts(share)
    if not training or dropped == 0:
        return x
    if _PART:
        return _drop_part(x, share, _PART[-1], entries)
    if x.device.type != "cpu":
        return F.dropout(x, share)
    if torch.compiler.is_compiling():
        more = 1 + DROPPING * (scale(share) - 1)
        return torch.where(mixed_mask(x.shape, share, x.device), (x * more).to(x.dtype), 0.0)
    if not DROPPING:
        return x
    return x * kept(x.shape, share).to(x.dtype).mul_(scale(share))


def kept(shape: Sequence[int], share: float) -> Tensor:
    """bool of this shape on the processor, False for about this share."""
    count = math.prod(shape)
    words = torch.empty(-(-count // _LANES), dtype=torch.int64)
    words.random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(*shape) >= dropped_parts(share) - _PARTS // 2


def _drop_part(x: Tensor, share: float, part: Part, entries: bool) -> Tensor:
    """The same with the masks of all rows, of which this process uses its own."""
    total, here, passes = part.own(len(x), entries)
    whole = torch.Size((passes * total, *x.shape[1:]))
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        keep, more = mixed_mask(whole, share, x.device), 1 + DROPPING.to(x.device) * (scale(share) - 1)
    elif not DROPPING:
        return x
    else:
        keep, more = kept(whole, share), torch.tensor(scale(share))
    own = keep.unflatten(0, (passes, total))[:, here].flatten(0, 1)
    return torch.where(own, (x * more).to(x.dtype), 0.0)


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
    return (bits ^ bits >> 16) & 0xFFFF >= dropped_parts(share) * DROPPING.to(device)
