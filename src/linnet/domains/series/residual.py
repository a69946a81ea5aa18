"""The forecaster: members of doubly residual blocks over the scaled history, each with sorted quantiles.

Legend: M = members, B = windows, L = history of a member, H = horizon, Q = quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.data import NEXT
from linnet.domains.series.settings import ResidualConfig
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.inputs import Inputs, Output
from linnet.model.layers import Dropout
from linnet.model.taps import Edit, Taps

BACK = ("row", "step")
AHEAD = ("row", "step", "quantile")
LEAST_SIZE = 1e-6  # steps of a window, of a value that errors are divided by


class ResidualBlock(nn.Module):
    """From what is left of the history to what it explains of it, and to what it adds to the forecast."""

    def __init__(self, config: ResidualConfig, history: int) -> None:
        super().__init__()
        sizes = [2 * history + 1, *[config.width] * config.layers]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True))
        self.dropout = Dropout(config.dropout)
        self.back = nn.Linear(config.width, history)
        self.ahead = nn.Linear(config.width, config.outputs * len(config.quantiles))
        for out in (self.back, self.ahead):
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def forward(self, left: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L] and [B, H * Q] from what is left [B, L], and from observed marks and the level [B, L + 1]."""
        hidden = torch.cat([left, around], 1)
        for layer in self.layers:
            hidden = self.dropout(F.relu(layer(hidden)))
        return self.back(hidden), self.ahead(hidden)


class Member(nn.Module):
    """Blocks over the last L steps of the history."""

    def __init__(self, config: ResidualConfig, history: int) -> None:
        super().__init__()
        self.history, self.horizon = history, config.outputs
        self.blocks = nn.ModuleList(ResidualBlock(config, history) for _ in range(config.blocks))
        self.quantiles = SortedQuantiles(config)

    def forward(self, batch: Mapping[str, Tensor], taps: Taps, name: str) -> Tensor:
        """[B, H, Q]: quantiles in units of the window."""
        observed = batch["observed"][:, -self.history :]
        left = batch["values"][:, -self.history :]
        around = torch.cat([observed, batch["level"][:, None]], 1)
        total: Tensor | None = None
        for number, block in enumerate(self.blocks):
            back, ahead = block(left, around)
            left = taps.at(f"{name}.blocks.{number}.left", (left - back) * observed)
            total = ahead if total is None else total + ahead
        assert total is not None
        found: Tensor = self.quantiles(total.unflatten(1, (self.horizon, -1)))
        return taps.at(f"{name}.quantiles", found)


class SortedQuantiles(nn.Module):
    """Sorted by construction: the median, and positive steps away from it on both sides.

    Everything grows with the square root of the step, as the spread of a random walk does.
    """

    growth: Tensor

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.middle = config.quantiles.index(0.5)
        steps = torch.arange(1, config.outputs + 1, dtype=torch.float32)
        self.register_buffer("growth", steps.sqrt()[:, None], persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        """[B, H, Q] from numbers without an order."""
        median = free[..., self.middle : self.middle + 1]
        apart = F.softplus(free - 1)
        below = apart[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        above = apart[..., self.middle + 1 :].cumsum(-1)
        return torch.cat([median - below, median, median + above], -1) * self.growth


class Residual(Network):
    """Members of several histories and seeds; the forecast is the mean of their quantiles."""

    config: ResidualConfig
    levels: Tensor
    level_weights: Tensor

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        every = [history for history in config.lengths for _ in range(config.seeds)]
        self.members = nn.ModuleList(Member(config, history) for history in every)
        levels = torch.tensor(config.quantiles, dtype=torch.float32)
        others = max(1, len(levels) - 1)
        weights = torch.full_like(levels, (1 - config.median_weight) / others)
        weights[config.quantiles.index(0.5)] = 0.0
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("level_weights", weights, persistent=False)

    def taps(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for member in range(len(self.members)):
            name = f"members.{member}"
            found |= {f"{name}.blocks.{block}.left": BACK for block in range(self.config.blocks)}
            found[f"{name}.quantiles"] = AHEAD
        return found

    def groups(self) -> Groups:
        return grouped(self, embedding_tables(self), {})

    def forward(
        self,
        inputs: Inputs | Tensor | Batch,
        state: Any = None,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> Output:
        """`hidden` [M, B, H, Q] has the quantiles of each member."""
        assert isinstance(inputs, Mapping), "the forecaster reads batches of windows"
        taps = Taps(self.taps, keep, edit)
        found = [member(inputs, taps, f"members.{number}") for number, member in enumerate(self.members)]
        return Output(torch.stack(found).float(), None, taps.kept)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """The overall weighted average error of the median, and pinball losses of the other quantiles.

        Summed over windows, and over members while training; the mean forecast is judged.
        """
        found = output.hidden if self.training else output.hidden.mean(0, keepdim=True)
        targets, known = batch[NEXT + "values"], batch[NEXT + "observed"]
        above = targets[..., None] - found
        pinball = 2 * torch.maximum(self.levels * above, (self.levels - 1) * above)
        steps = (pinball * self.level_weights).sum(-1) * unit_costs(batch)[:, None]
        median = found[..., self.config.quantiles.index(0.5)]
        steps = steps + self.config.median_weight * weighted_error(batch, median)
        rows = (steps * known).sum(-1) / known.sum(-1).clamp(min=1)
        return (rows.sum(0) * batch["weights"]).sum()


def weighted_error(batch: Batch, median: Tensor) -> Tensor:
    """[M, B, H]: half sMAPE and half MASE, each in errors of the last value, of forecasts in units of the window.

    Both are exact, the size of the forecast in sMAPE included: weighing absolute errors by a fixed size would make
    forecasts too low.
    """
    level, targets = batch[NEXT + "level"][:, None], batch[NEXT + "values"]
    error = (targets - median).abs()
    size = (level + targets).abs() + (level + median).abs()
    relative = 2 * error / size.clamp(min=LEAST_SIZE) * batch[NEXT + "relative"][:, None]
    return (relative + error * batch[NEXT + "scaled"][:, None]) / 2


def unit_costs(batch: Batch) -> Tensor:
    """[B]: what a unit of the window costs. Errors of quantiles must not be weighed by what came."""
    relative = batch[NEXT + "relative"] / batch[NEXT + "level"].abs().clamp(min=LEAST_SIZE)
    return (relative.clamp(max=20.0) + batch[NEXT + "scaled"]) / 2
