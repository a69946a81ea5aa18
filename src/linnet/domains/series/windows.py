"""Windows of series: a history and the steps after it, gathered when they are read.

Legend: n = windows, B = windows of a batch, L = longest history, H = horizon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from linnet.data import NEXT, Batch
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.metrics import mase, scales_of, smape
from linnet.domains.series.scaling import LEAST, Scaled, scaled
from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput


@dataclass(frozen=True)
class ForecastRows:
    """Windows of a table of one channel: `end` is the step after the history, `limit` the step after all that may
    be a target. `unit` [series] scales absolute errors."""

    table: SeriesTable
    codec: SeriesCodec
    series: np.ndarray  # int64 [n]
    end: np.ndarray  # int64 [n]
    limit: np.ndarray  # int64 [n]
    unit: np.ndarray  # float64 [series of the table], NaN where a series never moves

    def __len__(self) -> int:
        return len(self.series)

    @property
    def steps(self) -> int:
        return len(self) * max(self.codec.histories)

    @property
    def targets(self) -> int:
        return len(self)

    def select(self, chosen: np.ndarray) -> ForecastRows:
        return replace(self, series=self.series[chosen], end=self.end[chosen], limit=self.limit[chosen])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.table.fingerprint().encode())
        for part in (self.series, self.end, self.limit):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]

    def history(self, index: int) -> np.ndarray:
        """All values before a window's end."""
        return self.table.values[self.table.starts[self.series[index]] : self.end[index], 0]

    def histories(self, chosen: np.ndarray, length: int) -> np.ndarray:
        """[B, length]: the last steps before the ends, right-aligned; NaN before a series begins."""
        steps = self.end[chosen][:, None] + np.arange(-length, 0)
        inside = steps >= self.table.starts[self.series[chosen]][:, None]
        return np.where(inside, self.table.values[np.where(inside, steps, 0), 0], np.nan)

    def futures(self, chosen: np.ndarray, horizon: int) -> np.ndarray:
        """[B, horizon]: the steps after the ends; NaN beyond the limit."""
        steps = self.end[chosen][:, None] + np.arange(horizon)
        inside = steps < self.limit[chosen][:, None]
        return np.where(inside, self.table.values[np.where(inside, steps, 0), 0], np.nan)

    def batch(self, chosen: np.ndarray) -> Batch:
        """What the network reads of these windows, and their targets in units of the window."""
        window = scaled(self.histories(chosen, max(self.codec.histories)), self.codec.typical)
        return Batch({**inputs_of(window), **self._targets(chosen, window)})

    def _targets(self, chosen: np.ndarray, window: Scaled) -> dict[str, torch.Tensor]:
        futures = self.futures(chosen, self.codec.horizon)
        known = np.isfinite(futures) & (window.scale > 0)[:, None]
        unit = self.unit[self.series[chosen]]
        moving = np.isfinite(unit) & (unit > LEAST)
        units = np.where(moving, window.scale / np.where(moving, unit, 1), 0.0)
        found = {
            "values": np.where(known, window.there(futures), 0.0),
            "observed": known,
            "level": window.centre / np.where(window.scale > 0, window.scale, np.inf),
            "relative": np.full(len(chosen), 1 / self.codec.naive_smape),
            "scaled": np.minimum(units / self.codec.naive_mase, 100.0),
        }
        tensors = {NEXT + name: torch.from_numpy(value.astype(np.float32)) for name, value in found.items()}
        return tensors | {"weights": torch.from_numpy(known.any(1).astype(np.float32))}


def inputs_of(window: Scaled) -> dict[str, torch.Tensor]:
    return {
        "values": torch.from_numpy(window.inputs),
        "observed": torch.from_numpy(window.observed.astype(np.float32)),
        "level": torch.from_numpy(window.level),
        "lengths": torch.from_numpy(window.observed.sum(1)),
    }


@dataclass(frozen=True)
class Drawn:
    """Windows of series that were drawn: a share of each batch, and whole batches up to a step."""

    rows: ForecastRows
    share: float
    until: int


@dataclass(frozen=True)
class ForecastPlan:
    """Random windows: first a series, then one of its ends, so that long series do not outweigh short ones."""

    rows: ForecastRows
    size: int
    seed: int
    shape: Callable[[Batch], Batch] | None = None  # what a network of another kind reads instead
    drawn: Drawn | None = None

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise BadInput("no series is long enough to learn from: a history of one value and one value after it")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.size)

    def batch(self, step: int) -> Batch:
        random = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 40) + step]))
        foreign = 0
        if self.drawn is not None:
            foreign = self.size if step < self.drawn.until else round(self.size * self.drawn.share)
        parts = [some_windows(self.rows, self.size - foreign, random)] if foreign < self.size else []
        if self.drawn is not None and foreign:
            parts.append(some_windows(self.drawn.rows, foreign, random))
        batch = Batch({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return batch if self.shape is None else self.shape(batch)


def some_windows(rows: ForecastRows, count: int, random: np.random.Generator) -> Batch:
    bounds = np.flatnonzero(np.diff(rows.series, prepend=-1, append=-1))
    picked = random.integers(0, len(bounds) - 1, count)
    first, last = bounds[picked], bounds[picked + 1]
    return rows.batch(first + (random.random(count) * (last - first)).astype(np.int64))


def training_windows(
    table: SeriesTable, codec: SeriesCodec, held: int | np.ndarray, recent: int
) -> tuple[ForecastRows, ForecastRows]:
    """Windows to learn from, and one for each series whose last `held` steps (of all, or [series]) are kept aside.

    Learned are those whose history ends in the last `recent` steps of the rest. A series too short to be held out
    with a value before it is learned from whole.
    """
    lengths = table.lengths
    held_out = np.where(lengths > np.asarray(held) + 1, held, 0)
    limits = table.starts[1:] - held_out
    latest = np.maximum(limits - codec.horizon, table.starts[:-1] + 1)
    earliest = np.maximum(latest - recent + 1, table.starts[:-1] + 1)
    counts = np.where(latest < limits, latest - earliest + 1, 0)
    series = np.repeat(np.arange(len(table)), counts)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ends = earliest[series] + np.arange(int(counts.sum())) - first[series]
    unit = scales_of([table.values[a:b, 0] for a, b in zip(table.starts[:-1], limits, strict=True)], codec.season)
    train = ForecastRows(table, codec, series, ends, limits[series], unit)
    kept = np.flatnonzero(held_out > 0)
    validation = ForecastRows(table, codec, kept, limits[kept], table.starts[1:][kept], unit)
    return train, validation


def naive_errors(rows: ForecastRows, most: int = 5000) -> tuple[float, float]:
    """sMAPE / 100 and MASE of the last value as a forecast, over windows at equal distances."""
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)
    last = scaled(rows.histories(chosen, max(rows.codec.histories)), 0.0).centre
    futures = rows.futures(chosen, rows.codec.horizon)
    flat = np.broadcast_to(last[:, None], futures.shape)
    errors = smape(futures, flat) / 100, mase(futures, flat, rows.unit[rows.series[chosen]])
    found = [float(np.nanmean(error)) if np.isfinite(error).any() else 1.0 for error in errors]
    return max(found[0], 1e-6), max(found[1], 1e-6)
