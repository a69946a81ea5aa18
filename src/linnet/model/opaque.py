"""Steps that a compiler takes as they are, since what it would make of them costs more than it saves.

A compiler inlines what depends on positions alone into all of its uses, so that cosines and sines were computed
anew in each layer; it adds up gradients of embeddings by atomic additions, one number at a time and in an order
that differs from run to run; and it sums the gradient of a gathered logit over the whole vocabulary. What each
costs is in dev/LOG.md. Nothing here is used outside compiled graphs; angles and tables are left to it on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("linnet::waves", mutates_args=())
def waves(positions: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., R] of positions [...] times rates [R]."""
    angles = positions.to(torch.float32)[..., None] * rates
    return angles.cos(), angles.sin()


@waves.register_fake
def _(positions: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    made = rates.new_empty(*positions.shape, rates.shape[0])
    return made, torch.empty_like(made)


@torch.library.custom_op("linnet::rows_added", mutates_args=())
def rows_added(gradient: Tensor, ids: Tensor, count: int) -> Tensor:
    """Zeros [count, W] with gradient [..., W] added at ids [...]: always in the same order."""
    return torch.ops.aten.embedding_dense_backward(gradient.contiguous(), ids.contiguous(), count, -1, False)


@rows_added.register_fake
def _(gradient: Tensor, ids: Tensor, count: int) -> Tensor:
    return gradient.new_empty(count, gradient.shape[-1])


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.count = table.shape[0]
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return rows_added(upstream[0], ids, ctx.count), None


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = rows.shape[1]
        return rows.gather(1, index[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        place = torch.arange(ctx.count, device=index.device)
        return torch.where(place == index[:, None], upstream[0][:, None], 0.0), None


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """The rows [..., W] of a table [V, W] that ids [...] name."""
    found: Tensor = _Rows.apply(table, ids)
    return found


def picked(rows: Tensor, index: Tensor) -> Tensor:
    """The number of each row [N, V] that its index [N] names."""
    found: Tensor = _Picked.apply(rows, index)
    return found
