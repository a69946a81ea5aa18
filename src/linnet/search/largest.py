"""The largest numbers of each row, the first of equal ones by their index."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = 8  # for each number that is kept; more make the second search shorter and the first one longer
FEWEST = 5  # the same, where that many divide a row and need no padding


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices int64 [n, count] and values of the largest of each row [n, V], in falling order.

    On a processor the largest of few blocks are found first: what is kept lies in the `count` best blocks.
    """
    rows, width = values.shape
    blocks = BLOCKS * count
    blocks = next((number for number in range(blocks, FEWEST * count, -1) if width % number == 0), blocks)
    if values.device.type != "cpu" or width < 2 * blocks:
        found, indices = values.topk(count, dim=-1)
        return _ordered(indices, found)
    if width % blocks:
        values = torch.nn.functional.pad(values, (0, -width % blocks), value=-torch.inf)
    pieces = values.view(rows, -1, blocks)  # block j holds the numbers j, blocks + j, 2 blocks + j, ...
    best = pieces.amax(1).topk(count, dim=-1, sorted=False).indices
    size = pieces.shape[1]
    candidates = pieces.gather(2, best[:, None, :].expand(-1, size, -1)).view(rows, -1)
    found, at = candidates.topk(count, dim=-1)
    indices = at // count * blocks + best.gather(1, at % count)
    return _ordered(indices, found)


def _ordered(indices: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Equal values by their index."""
    equal = (found[:, 1:] == found[:, :-1]).any(1)
    if bool(equal.any()):
        rows = equal.nonzero()[:, 0]
        by_index, order = indices[rows].sort(dim=-1)
        again = found[rows].gather(1, order).sort(dim=-1, descending=True, stable=True)
        indices[rows] = by_index.gather(1, again.indices)
    return indices, found
