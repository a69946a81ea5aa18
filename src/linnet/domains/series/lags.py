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
    """Histories in their own units: values [N, L], the last value and the mean absolute step [N]."""

    values: np.ndarray
    last: np.ndarray
    step: np.ndarray

    @classmethod
    def cut(cls, histories: Sequence[np.ndarray], ends: Sequence[int], lags: int) -> Windows:
        """The `lags` values before each end, right-aligned."""
        table = np.zeros((len(ends), lags))
        last, step = np.zeros(len(ends)), np.zeros(len(ends))
        for row, (history, end) in enumerate(zip(histories, ends, strict=True)):
            window = history[max(0, end - lags) : end]
            last[row] = window[-1]
            step[row] = float(np.abs(np.diff(window)).mean()) if len(window) > 1 else 0.0
            units = (window - last[row]) / (step[row] or 1.0)
            table[row, lags - len(window) :] = np.clip(units, -CLIPPED, CLIPPED)
        return cls(table, last, step)

    def targets(self, futures: np.ndarray) -> np.ndarray:
        units = (futures - self.last[:, None]) / np.where(self.step > 0, self.step, 1)[:, None]
        return np.clip(units, -CLIPPED, CLIPPED)

    def back(self, found: np.ndarray) -> np.ndarray:
        return np.asarray(found * self.step[:, None] + self.last[:, None])


@dataclass(frozen=True)
class Ridge:
    """`lags` is 0 for two horizons or one and a half seasons; windows end in the last `recent` horizons."""

    lags: int = 0
    recent: int = 20

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        lags = self.lags or max(2 * horizon, 3 * season // 2)
        every = -(-len(histories) * self.recent * horizon // MOST)
        ends = [(row, end) for row, one in enumerate(histories) for end in self._ends(len(one), horizon, every)]
        now = Windows.cut(histories, [len(one) for one in histories], lags)
        if not ends:
            return Forecast(np.repeat(now.last[:, None], horizon, 1), np.zeros((len(histories), horizon)))
        windows = Windows.cut([histories[row] for row, _ in ends], [end for _, end in ends], lags)
        targets = windows.targets(np.stack([histories[row][end : end + horizon] for row, end in ends]))
        newest = np.array([end == len(histories[row]) - horizon for row, end in ends])
        older = np.array([end <= len(histories[row]) - 2 * horizon for row, end in ends])
        penalty = _chosen(windows.values, targets, older, newest)
        weights = _solved(windows.values, targets, penalty)
        spread = NORMAL_SPREAD * np.median(np.abs(targets - windows.values @ weights), 0)
        return Forecast(now.back(now.values @ weights), now.step[:, None] * spread)

    def _ends(self, length: int, horizon: int, every: int) -> range:
        """Where the histories of training windows end: two values before it, a whole horizon after it."""
        latest = length - horizon
        return range(latest, max(1, latest - self.recent * horizon), -every)


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
