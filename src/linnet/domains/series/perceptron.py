"""A plain residual network on lags: the rival that a forecaster has to justify its own size against.

Blocks of linear layers take their part out of a scaled history, and each adds its part to the forecast of the
whole horizon. The loss is what forecasts are scored by: half sMAPE and half MASE, each in errors of the last
value. The network gives points and no quantiles: its deviation is that of normal errors of which as many are small
as of its own on windows that it did not learn from.
Legend: N = windows, B = windows of a batch, L = lags, H = horizon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.domains.series.baselines import Forecast
from linnet.domains.series.lags import Ends, Windows, lags_for
from linnet.domains.series.metrics import scales_of

APART = 5  # one series of so many is learned without its last horizon, where errors are measured
INSIDE, OUTMOST = 0.8, 1.2816  # a share of normal errors, and the deviations that it is within
EPOCHS = 40  # a table of few windows is seen so often, and not for all steps
TINY = 1e-6


class Block(nn.Module):
    """From what is left of the history [B, L] to what it explains of it, and to what it adds ahead [B, H]."""

    def __init__(self, lags: int, horizon: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [2 * lags] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True))
        self.back, self.ahead = nn.Linear(width, lags), nn.Linear(width, horizon)

    def forward(self, left: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([left, observed], -1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return self.back(hidden), self.ahead(hidden)


class Blocks(nn.Module):
    """Forecasts [B, H] in units of the window, from values and marks of what was observed, [B, L] each."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, values: Tensor, observed: Tensor) -> Tensor:
        total = torch.zeros(())
        for block in self.blocks:
            back, ahead = block(values, observed)
            values, total = (values - back) * observed, total + ahead
        return total


@dataclass(frozen=True)
class Examples:
    """Windows with what came after them [N, H], the number of their series, and how they are measured [N, 1]."""

    values: Tensor
    observed: Tensor
    targets: Tensor
    level: Tensor  # the last value in units of the window
    scaled: Tensor  # units of the window in errors of MASE
    row: np.ndarray  # rising

    @classmethod
    def of(cls, windows: Windows, futures: np.ndarray, units: np.ndarray, row: np.ndarray) -> Examples:
        scaled = np.where(units > 0, windows.step / np.where(units > 0, units, 1), 0.0)
        values, observed = inputs(windows)
        level = tensor((windows.last / windows.step)[:, None])
        return cls(values, observed, tensor(windows.targets(futures)), level, tensor(scaled[:, None]), row)

    def select(self, chosen: np.ndarray) -> Examples:
        names = ("values", "observed", "targets", "level", "scaled", "row")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Tensor]:
        """Positions of windows: first a series, then one of its windows, so that long series weigh no more."""
        random = np.random.default_rng(seed)
        bounds = np.flatnonzero(np.diff(self.row, prepend=-1, append=-1))
        for _ in range(steps):
            series = random.integers(0, len(bounds) - 1, size)
            first, last = bounds[series], bounds[series + 1]
            yield torch.from_numpy(first + (random.random(size) * (last - first)).astype(np.int64))

    def errors(self, found: Tensor, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """sMAPE / 200 and MASE of forecasts [B, H] of these windows."""
        level, targets = self.level[chosen], self.targets[chosen]
        apart = (found - targets).abs()
        size = (level + found).abs() + (level + targets).abs()
        return apart / size.clamp(min=TINY), apart * self.scaled[chosen]

    @torch.inference_mode()
    def missed(self, network: Blocks) -> np.ndarray:
        """[N, H]: errors in units of the window."""
        return (network(self.values, self.observed) - self.targets).double().numpy()


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def inputs(windows: Windows) -> tuple[Tensor, Tensor]:
    """Values on a curve that keeps small steps and bends large ones, and marks of what was observed."""
    return tensor(np.sign(windows.values) * np.log1p(np.abs(windows.values))), tensor(windows.observed)


@dataclass(frozen=True)
class ResidualMLP:
    """`lags` is 0 for two horizons or one and a half seasons; windows end in the last `recent` horizons."""

    lags: int = 0
    recent: int = 20
    blocks: int = 3
    layers: int = 2
    width: int = 256
    steps: int = 600
    batch: int = 256
    rate: float = 2e-3
    seed: int = 0

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        lags = self.lags or lags_for(horizon, season)
        now = Windows.cut(histories, Ends.now(histories), lags)
        ends = Ends.learned(histories, horizon, self.recent)
        windows = Windows.cut(histories, ends, lags)
        moving = windows.step > 0
        if not moving.any():
            return Forecast(np.repeat(now.last[:, None], horizon, 1), np.zeros((len(histories), horizon)))
        ends, windows = ends.select(moving), windows.select(moving)
        scales = scales_of(histories, season)[ends.row]
        examples = Examples.of(windows, ends.futures(histories, horizon), scales, ends.row)
        learned, measured = parted(ends, histories, horizon)
        network = self.fitted(examples.select(learned), lags, horizon)
        spread = np.quantile(np.abs(examples.select(measured).missed(network)), INSIDE, axis=0) / OUTMOST
        with torch.inference_mode():
            ahead = network(*inputs(now)).double().numpy()
        return Forecast(now.back(ahead), now.step[:, None] * spread)

    def network(self, lags: int, horizon: int) -> Blocks:
        """Before training; torch's own random numbers are left as they were."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            return Blocks([Block(lags, horizon, self.width, self.layers) for _ in range(self.blocks)])

    def fitted(self, examples: Examples, lags: int, horizon: int) -> Blocks:
        network = self.network(lags, horizon)
        steps = min(self.steps, -(-EPOCHS * len(examples.values) // self.batch))
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, total_steps=steps)
        flat = examples.errors(torch.zeros_like(examples.targets), slice(None))
        naive = [max(float(error.mean()), TINY) for error in flat]
        for chosen in examples.batches(self.batch, steps, self.seed):
            found = network(examples.values[chosen], examples.observed[chosen])
            relative, scaled = examples.errors(found, chosen)
            loss = (relative.mean() / naive[0] + scaled.mean() / naive[1]) / 2
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        return network


def parted(ends: Ends, histories: Sequence[np.ndarray], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows to learn from, and those of the last horizon of every fifth series, which the first do not reach.

    Where that would leave nothing to learn from, or nothing to measure, all windows are both.
    """
    left = np.array([len(one) for one in histories])[ends.row] - ends.step
    apart = ends.row % APART == 0
    learned, measured = np.flatnonzero(~apart | (left >= 2 * horizon)), np.flatnonzero(apart & (left == horizon))
    everything = np.arange(len(ends))
    return (learned, measured) if len(learned) and len(measured) else (everything, everything)
