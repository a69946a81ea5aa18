"""Windows of drawn and mixed series, for training beside the series at hand or before them.

Legend: n = drawn series, T = steps.
"""

from __future__ import annotations

import numpy as np

from linnet.domains.series.baselines import filled
from linnet.domains.series.generators import Generator, mixed
from linnet.domains.series.settings import SyntheticConfig
from linnet.domains.series.tables import Series, SeriesTable
from linnet.domains.series.windows import Drawn, ForecastRows, training_windows

WINDOWS = 2  # horizons of each drawn series in which histories end


def synthetic_windows(rows: ForecastRows, config: SyntheticConfig, seed: int, steps: int) -> Drawn | None:
    """The windows of drawn series with the rhythm of these rows; None where none are wanted."""
    if not config.used:
        return None
    codec = rows.codec
    length = max(codec.histories) + (1 + WINDOWS) * codec.horizon
    own = round(config.count * config.mixed)
    parts = [Generator(season=max(codec.cycle, 1)).draw(config.count - own, length, seed)]
    if own:
        chosen = np.unique(rows.series)
        histories = [filled(rows.table.series(index)[: last_learned(rows, index), 0]) for index in chosen]
        parts.append(mixed(histories, own, length, seed))
    values = on_levels(np.concatenate(parts), seed)
    series = [Series(f"drawn {n}", one[:, None], "drawn") for n, one in enumerate(values)]
    drawn, _ = training_windows(SeriesTable.of(series, ("value",)), codec, 0, WINDOWS * codec.horizon)
    return Drawn(drawn, config.share, round(config.first * steps))


def last_learned(rows: ForecastRows, series: int) -> int:
    """Steps of a series that training may see."""
    return int(rows.limit[int((rows.series == series).argmax())] - rows.table.starts[series])


def on_levels(values: np.ndarray, seed: int) -> np.ndarray:
    """[n, T]: around level 1, with spreads from a hundredth to about one of it."""
    random = np.random.default_rng([seed, 2])
    return np.asarray(1 + np.exp(random.normal(-2, 1, (len(values), 1))) * values)
