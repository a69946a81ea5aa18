"""Columns beside the tokens: how their values enter the residual stream, and the heads that predict them.

Legend: B = rows, T = steps, W = model width, C = numbers of a column, Q = quantiles or bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.config import Column, IdColumn, NumberColumn
from linnet.model.costs import head_size
from linnet.model.layers import Embedding


class ColumnInput(nn.Module):
    """Vectors [B, T, W] of ids [B, T] or of numbers [B, T, C]; zero where the column is absent."""

    def __init__(self, column: Column, width: int) -> None:
        super().__init__()
        self.enter = (
            Embedding(column.size, width) if isinstance(column, IdColumn) else nn.Linear(column.width, width)
        )

    def forward(self, values: Tensor, present: Tensor | None) -> Tensor:
        if isinstance(self.enter, nn.Linear):
            values = values.to(self.enter.weight.dtype)
        found: Tensor = self.enter(values)
        return found if present is None else found * present[..., None]


class IdHead(nn.Module):
    """Predicts the next id of a column."""

    def __init__(self, column: IdColumn, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, column.size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, T, size]."""
        logits: Tensor = self.out(hidden)
        return logits

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[B, T]: nats of these ids."""
        return F.cross_entropy(self(hidden).float().flatten(0, -2), targets.flatten(), reduction="none").view(
            targets.shape
        )


class NumberHead(nn.Module):
    """Predicts the next numbers of a column as means, quantiles in rising order, or bins."""

    def __init__(self, column: NumberColumn, width: int) -> None:
        super().__init__()
        self.column = column
        self.out = nn.Linear(width, column.width * head_size(column))

    def forward(self, hidden: Tensor) -> Tensor:
        """Means [B, T, C], quantiles [B, T, C, Q], or logits of bins [B, T, C, Q]."""
        found = self.out(hidden).float()
        if self.column.head == "mean":
            return found
        found = found.unflatten(-1, (self.column.width, -1))
        if self.column.head == "bins":
            return found
        steps = F.softplus(found[..., 1:])  # each quantile lies above the one before it, whatever the weights are
        return torch.cat([found[..., :1], found[..., :1] + steps.cumsum(-1)], -1)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[B, T]: the loss of these numbers [B, T, C], averaged over C."""
        found, targets = self(hidden), targets.float()
        if self.column.head == "mean":
            return (found - targets).square().mean(-1)
        if self.column.head == "bins":
            wanted = self.bin_of(targets)
            nats = F.cross_entropy(found.flatten(0, -2), wanted.flatten(), reduction="none")
            return nats.view(wanted.shape).mean(-1)
        levels = torch.tensor(self.column.quantiles, device=found.device)
        above = targets[..., None] - found
        return 2 * torch.maximum(levels * above, (levels - 1) * above).mean(-1).mean(-1)

    def bin_of(self, numbers: Tensor) -> Tensor:
        """int64: the bin of each number; what lies beyond belongs to the outermost."""
        column = self.column
        share = (numbers - column.low) / (column.high - column.low)
        return (share * column.bins).floor().long().clamp(0, column.bins - 1)

    def mean(self, hidden: Tensor) -> Tensor:
        """[B, T, C]: the expected number; of quantiles the median."""
        found, column = self(hidden), self.column
        if column.head == "mean":
            return found
        if column.head == "quantiles":
            middle = min(range(len(column.quantiles)), key=lambda index: abs(column.quantiles[index] - 0.5))
            return found[..., middle]
        edges = torch.linspace(column.low, column.high, column.bins + 1, device=found.device)
        return (found.softmax(-1) * ((edges[1:] + edges[:-1]) / 2)).sum(-1)


def head_of(column: Column, width: int) -> IdHead | NumberHead:
    return IdHead(column, width) if isinstance(column, IdColumn) else NumberHead(column, width)
