"""Ridge regression on lags: one linear map for all series, from a scaled history to the whole horizon.

A window is centred on its last value and divided by its mean absolute step. Steps before the first value are 0.
The penalty is the one with the least absolute error on the last horizon of each history, learned from the rest.
Legend: n = series, N = windows, L = lags, H = horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linnet.domains.series.baselines import Forecast

NORMAL_SPREAD = 1.4826  # standard deviations of a normal distribution in its median absolute error
CLIPPED = 30.0  # steps: values further away than that count as so far
MOST = 100_000  # windows that are learned from
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # shares of the mean size of a lag


@dataclass(frozen=True)
class Windows:
    """Histories in units of their mean absolute step, around their last value: values [N, L], 0 and not observed
    before the first one; the last value and the step [N]."""

    values: np.ndarray
    observed: np.ndarray
    last: np.ndarray
    step: np.ndarray

    @classmethod
    def cut(cls, histories: Sequence[np.ndarray], ends: Ends, lags: int) -> Windows:
        """The `lags` values before each end, right-aligned."""
        starts = np.concatenate([[0], np.cumsum([len(one) for one in histories])])[ends.row]
        index = (starts + ends.step)[:, None] + np.arange(-lags, 0)
        observed = index >= starts[:, None]
        values = np.concatenate(histories)[np.where(observed, index, 0)]
        last = values[:, -1]
        steps = np.where(observed[:, :-1], np.abs(np.diff(values)), 0.0)
        step = steps.sum(1) / np.maximum(observed.sum(1) - 1, 1)
        units = np.where(observed, values - last[:, None], 0.0) / np.where(step > 0, step, 1)[:, None]
        return cls(units, observed, last, step)

    def select(self, chosen: np.ndarray) -> Windows:
        return Windows(self.values[chosen], self.observed[chosen], self.last[chosen], self.step[chosen])

    def targets(self, futures: np.ndarray) -> np.ndarray:
        return np.asarray((futures - self.last[:, None]) / np.where(self.step > 0, self.step, 1)[:, None])

    def back(self, found: np.ndarray) -> np.ndarray:
        return np.asarray(found * self.step[:, None] + self.last[:, None])


@dataclass(frozen=True)
class Ends:
    """Where the histories of windows end: the number of a series, and how many of its values come before [N]."""

    row: np.ndarray
    step: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def select(self, chosen: np.ndarray) -> Ends:
        return Ends(self.row[chosen], self.step[chosen])

    @classmethod
    def now(cls, histories: Sequence[np.ndarray]) -> Ends:
        """One window a series: all that is known."""
        return cls(np.arange(len(histories)), np.array([len(one) for one in histories]))

    @classmethod
    def learned(cls, histories: Sequence[np.ndarray], horizon: int, recent: int) -> Ends:
        """Windows with two values before their end at least, and a whole horizon after it, which lies within the
        last `recent` horizons. Where there are very many, those at equal distances from the last one."""
        every = -(-len(histories) * recent * horizon // MOST)
        latest = [len(one) - horizon for one in histories]
        found = [np.arange(one, max(1, one - recent * horizon), -every) for one in latest]
        row = np.repeat(np.arange(len(histories)), [len(one) for one in found])
        return cls(row, np.concatenate(found).astype(np.int64))

    def futures(self, histories: Sequence[np.ndarray], horizon: int) -> np.ndarray:
        """[N, H]: what came after each end."""
        starts = np.concatenate([[0], np.cumsum([len(one) for one in histories])])[self.row]
        return np.asarray(np.concatenate(histories)[(starts + self.step)[:, None] + np.arange(horizon)])


def lags_for(horizon: int, season: int) -> int:
    """Two horizons, or one and a half seasons where that is more."""
    return max(2 * horizon, 3 * season // 2)


@dataclass(frozen=True)
class Ridge:
    """`lags` is 0 for two horizons or one and a half seasons; windows end in the last `recent` horizons."""

    lags: int = 0
    recent: int = 20

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        lags = self.lags or lags_for(horizon, season)
        ends = Ends.learned(histories, horizon, self.recent)
        now = Windows.cut(histories, Ends.now(histories), lags)
        if not len(ends):
            return Forecast(np.repeat(now.last[:, None], horizon, 1), np.zeros((len(histories), horizon)))
        windows = Windows.cut(histories, ends, lags)
        values, targets = clipped(windows.values), clipped(windows.targets(ends.futures(histories, horizon)))
        lengths = np.array([len(one) for one in histories])[ends.row]
        penalty = _chosen(values, targets, ends.step <= lengths - 2 * horizon, ends.step == lengths - horizon)
        weights = _solved(values, targets, penalty)
        spread = NORMAL_SPREAD * np.median(np.abs(targets - values @ weights), 0)
        return Forecast(now.back(clipped(now.values) @ weights), now.step[:, None] * spread)


def clipped(units: np.ndarray) -> np.ndarray:
    return np.clip(units, -CLIPPED, CLIPPED)


def _solved(values: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """[L, H]: the weights of the least squared error plus the penalty."""
    gram = values.T @ values
    size = np.trace(gram) / len(gram) + 1e-12
    return np.asarray(np.linalg.solve(gram + penalty * size * np.eye(len(gram)), values.T @ targets))


def _chosen(values: np.ndarray, targets: np.ndarray, older: np.ndarray, newest: np.ndarray) -> float:
    """The penalty that is best on the newest windows, learned from older ones; the middle one without either."""
    if not (older.any() and newest.any()):
        return PENALTIES[len(PENALTIES) // 2]
    errors = []
    for penalty in PENALTIES:
        weights = _solved(values[older], targets[older], penalty)
        errors.append(float(np.abs(targets[newest] - values[newest] @ weights).mean()))
    return PENALTIES[int(np.argmin(errors))]
