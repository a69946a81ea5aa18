"""From a table to windows, and from a network to forecasts in units of the files.

A forecast is computed window by window in batches of any size: nothing in it depends on the other windows.
Legend: B = windows, H = horizon, Q = quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from linnet.domains.contract import Material, Part, Region
from linnet.domains.series import patches
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.residual import Residual
from linnet.domains.series.scaling import scaled, typical_step
from linnet.domains.series.seasons import timing
from linnet.domains.series.tables import SeriesTable
from linnet.domains.series.windows import ForecastRows, inputs_of, naive_errors, training_windows
from linnet.errors import BadInput
from linnet.model.contract import Network, evaluating, refuse_nan
from linnet.model.model import Model
from linnet.records import ForecastRecord

if TYPE_CHECKING:
    from linnet.domains.series.data import SeriesData

LEAST_HELD = 20  # series, so that a score has an interval


def forecast_material(data: SeriesData, table: SeriesTable, codec: SeriesCodec | None, seed: int = 1) -> Material:
    """Windows to learn from and to validate on, and what was found out about the rhythm."""
    table = table.univariate()
    own, words = (codec, "") if codec is not None else codec_of(data, table)
    held, recent = data.held * own.horizon, data.recent * own.horizon
    kept = held_series(len(table), data.held_share, seed)
    train, validation = training_windows(table, own, np.where(kept, held, 0), recent)
    if codec is None:
        smape, mase = naive_errors(train)
        own = replace(own, naive_smape=smape, naive_mase=mase)
        train, validation = replace(train, codec=own), replace(validation, codec=own)
    notes = [*table.notes, *table.problems, *filter(None, [words])]
    if data.held:
        notes.append(held_in_words(held, len(validation), int(kept.sum()), len(table)))
    if not len(validation):
        validation = last_windows(table, own)
    return Material(own, Part(train, unit="series"), Part(validation, unit="series"), tuple(notes))


def held_in_words(held: int, found: int, wanted: int, count: int) -> str:
    if not found:
        return (
            f"none of the {wanted} series whose last {held} steps should be held out has more than {held + 1}: "
            "training sees their ends, so the scores of this run are no test"
        )
    short = f"; {wanted - found} more are too short for that" if found < wanted else ""
    return f"the last {held} steps of {found} of {count} series are held out{short}"


def held_series(count: int, share: float, seed: int) -> np.ndarray:
    """bool [series]: whose end is held out; few enough that training knows what the others did last."""
    kept = np.zeros(count, bool)
    random = np.random.default_rng([seed, 3])
    kept[random.permutation(count)[: max(min(count, LEAST_HELD), round(share * count))]] = True
    return kept


def codec_of(data: SeriesData, table: SeriesTable) -> tuple[SeriesCodec, str]:
    """The sizes that follow from the table, and in words how its rhythm was found."""
    from linnet.domains.series.data import lengths_of

    found = timing(table, data.frequency, data.season, data.horizon)
    histories = lengths_of(data.histories, found.cycle, found.horizon)
    typical = typical_step(table.values[:, 0], table.starts)
    sizes = ", ".join(map(str, histories))
    words = f"{found.words}; {found.horizon} steps ahead from histories of {sizes} steps"
    codec = SeriesCodec(
        "forecast", table.channels, found.frequency, found.season, found.cycle, found.horizon, histories, typical
    )
    return codec, words


def last_windows(table: SeriesTable, codec: SeriesCodec, ends: np.ndarray | None = None) -> ForecastRows:
    """One window a series: the last horizon, or what follows `ends`; all that comes before is history."""
    if ends is None:
        ends = np.maximum(table.starts[1:] - codec.horizon, table.starts[:-1] + 1)
    chosen = np.flatnonzero(ends < table.starts[1:])
    from linnet.domains.series.metrics import scales_of

    unit = scales_of([table.values[a:b, 0] for a, b in zip(table.starts[:-1], ends, strict=True)], codec.season)
    return ForecastRows(table, codec, chosen, ends[chosen], table.starts[1:][chosen], unit)


def forecast_part(codec: SeriesCodec, table: SeriesTable, test: SeriesTable | None) -> Part:
    """What is scored: the test part after its history, or the last horizon of each series."""
    table, ends = table.univariate(), None
    if test is not None:
        test = test.univariate()
        table, ends = table.continued(test)
    rows = last_windows(table, codec, ends)
    if not len(rows):
        raise BadInput("no series has a value after a history, so there is nothing to score")
    note = "the test part" if test is not None else f"the last {codec.horizon} steps of each series, nothing after"
    problems = [*table.notes, *table.problems, *(test.problems if test is not None else ())]
    return Part(rows, notes=(f"scored is {note}", *problems), unit="series")


def chunks(count: int, size: int) -> Iterator[np.ndarray]:
    return (np.arange(first, min(count, first + size)) for first in range(0, count, size))


def mean_loss(network: Network, rows: ForecastRows, size: int, region: Region) -> float:
    """The loss of the mean forecast, over windows with a target."""
    total = weight = 0.0
    with evaluating(network), region():
        for chosen in chunks(len(rows), size):
            batch = rows.batch(chosen)
            if isinstance(network, Model):
                batch = patches.patched(network.config, batch)
            batch = batch.to(network.device)
            total += float(network.loss(network(batch), batch))
            weight += float(batch["weights"].sum())
    return total / max(weight, 1.0)


@dataclass(frozen=True)
class Forecasts:
    """Quantiles [n, H, Q] in units of the files, at these levels."""

    quantiles: np.ndarray
    levels: tuple[float, ...]

    @property
    def median(self) -> np.ndarray:
        return self.at(0.5)

    def at(self, level: float) -> np.ndarray:
        """[n, H]: a level between those of the network lies on the line between its neighbours."""
        if level in self.levels:
            return np.asarray(self.quantiles[..., self.levels.index(level)])
        above = int(np.clip(np.searchsorted(self.levels, level), 1, len(self.levels) - 1))
        low, high = self.levels[above - 1], self.levels[above]
        share = float(np.clip((level - low) / (high - low), 0, 1))
        return np.asarray((1 - share) * self.quantiles[..., above - 1] + share * self.quantiles[..., above])

    def record(self, name: str, row: int, history: np.ndarray) -> ForecastRecord:
        """One forecast as a record, with the end of its history from the first value that is known."""
        levels = {f"{level:g}": tuple(self.quantiles[row, :, i].tolist()) for i, level in enumerate(self.levels)}
        past = known(history)
        first = next((index for index, value in enumerate(past) if value is not None), len(past))
        return ForecastRecord(id=name, mean=levels["0.5"], quantiles=levels, history=past[first:])


def known(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else value for value in values.tolist())


def forecast(
    network: Network, codec: SeriesCodec, windows: np.ndarray, size: int, region: Region, horizon: int = 0
) -> Forecasts:
    """Forecasts from histories [n, L] (right-aligned, NaN where there is no value), of any horizon.

    Beyond the horizon of the network the median is taken for what happened, and the spread of what follows is
    joined to that of the last step before it, as that of independent errors: the root of the sum of squares.
    """
    levels = levels_of(network)
    middle, wanted = levels.index(0.5), horizon or codec.horizon
    found = _steps(network, codec, windows, size, region)
    while found.shape[1] < wanted:
        longer = np.concatenate([windows, found[..., middle]], 1)[:, -windows.shape[1] :]
        following = _steps(network, codec, longer, size, region)
        median = following[..., middle : middle + 1]
        before = found[:, -1:, :] - found[:, -1:, middle : middle + 1]
        spread = np.sign(before) * np.hypot(following - median, before)
        found = np.concatenate([found, median + spread], 1)
    return Forecasts(found[:, :wanted], levels)


def levels_of(network: Network) -> tuple[float, ...]:
    if isinstance(network, Model):
        return patches.columns_of(network.config)[1].quantiles
    assert isinstance(network, Residual)
    return network.config.quantiles


def _steps(network: Network, codec: SeriesCodec, windows: np.ndarray, size: int, region: Region) -> np.ndarray:
    """[n, H, Q] of the network's own horizon."""
    parts = []
    with evaluating(network), region():
        for chosen in chunks(len(windows), size):
            window = scaled(windows[chosen], codec.typical)
            inputs = {name: tensor.to(network.device) for name, tensor in inputs_of(window).items()}
            if isinstance(network, Model):
                found = patches.quantiles(network, inputs)
            else:
                found = network(inputs).hidden.mean(0)
            quantiles = found.cpu().numpy()
            refuse_nan(network, quantiles)
            parts.append(window.back(quantiles))
    return np.concatenate(parts)
