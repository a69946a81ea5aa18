"""The largest numbers of each row, the first of equal ones by their index."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCKS = 2  # for each number that is kept, or up to twice as many where they divide a row and need no padding
LONG = 8  # blocks pay where a row has so many numbers for each that is kept


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices int64 [n, count] and values of the largest of each row [n, V], in falling order.

    A row with fewer numbers above -inf is filled up with index 0 and -inf.
    """
    if values.device.type == "cpu" and values.shape[1] >= LONG * count:
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
    reached = values >= limit.clamp(min=torch.finfo(values.dtype).min)
    at = np.flatnonzero(reached.numpy())
    row = at // width
    sizes = np.bincount(row, minlength=rows)
    most = max(count, int(sizes.max()))
    # Rows of equal length again, the numbers of each by their index.
    into = torch.from_numpy(np.arange(len(at)) + (most * np.arange(rows) - np.cumsum(sizes) + sizes)[row])
    numbers, ids = values.new_full((rows * most,), -torch.inf), torch.zeros(rows * most, dtype=torch.int64)
    numbers[into] = values.reshape(-1)[torch.from_numpy(at)]
    ids[into] = torch.from_numpy(at - row * width)
    found, where = numbers.view(rows, most).sort(dim=-1, descending=True, stable=True)
    return ids.view(rows, most).gather(1, where[:, :count]), found[:, :count]
