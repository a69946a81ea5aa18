"""The largest numbers of each row, the first of equal ones by their index."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCKS = 2  # for each number that is kept, or up to twice as many where they divide a row and need no padding
FIRST = (1 << 32) - 1  # of equal numbers the one with the smaller index has the larger key
EMPTY = np.iinfo(np.int64).min
LONG = 8  # blocks pay where a row has so many numbers for each that is kept


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices int64 [n, count] and values of the largest of each row [n, V], in falling order.

    A row with fewer numbers above -inf is filled up with index 0 and -inf.
    """
    if values.device.type == "cpu" and values.dtype == torch.float32 and values.shape[1] >= LONG * count:
        return _by_limit(values, count)
    found, indices = values.sort(dim=-1, descending=True, stable=True)
    return indices[:, :count], found[:, :count]


def _by_limit(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """On a processor: a limit that at least `count` numbers reach, and those that reach it sorted.

    The limit is the `count`-th largest of the maxima of blocks. It is a little lower than it could be, so few more
    numbers reach it than are wanted.
    """
    rows, width = values.shape
    blocks = BLOCKS * count
    blocks = next((number for number in range(blocks, 2 * blocks) if width % number == 0), blocks)
    padded = values
    if width % blocks:
        padded = torch.nn.functional.pad(values, (0, -width % blocks), value=-torch.inf)
    maxima = padded.view(rows, -1, blocks).amax(1)  # block j holds the numbers j, blocks + j, 2 blocks + j, ...
    limit = maxima.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    flat = values.numpy()
    at = np.flatnonzero(flat >= limit.clamp(min=torch.finfo(values.dtype).min).numpy())
    row, index = np.divmod(at, width)
    sizes = np.bincount(row, minlength=rows)
    # Rows of equal length again. One key for number and index: whole numbers are sorted much faster than pairs.
    keys = np.full(rows * max(count, int(sizes.max())), EMPTY)
    keys[np.arange(len(at)) + (len(keys) // rows * np.arange(rows) - np.cumsum(sizes) + sizes)[row]] = (
        ranks(flat[row, index]) << 32 | FIRST - index
    )
    best = np.sort(keys.reshape(rows, -1), axis=1)[:, : -count - 1 : -1]
    found = np.where(best == EMPTY, -np.inf, numbers(best >> 32)).astype(np.float32)
    return torch.from_numpy(np.where(best == EMPTY, 0, FIRST - (best & FIRST))), torch.from_numpy(found)


def ranks(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 32 bits in the order of these float32 numbers; 0 and -0 are equal."""
    bits = (values + np.float32(0)).view(np.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)


def numbers(found: np.ndarray) -> np.ndarray:
    """The float32 numbers of these ranks."""
    order = found.astype(np.int32)
    return (order ^ (order >> 31 & 0x7FFFFFFF)).view(np.float32)
