"""Forecasts without a network: the methods that the M4 competition compared entries with.

Every method takes complete histories of any length from one value, a horizon and a season, and gives means and
standard deviations. `filled` completes a history first: a missing value takes the last one seen.
Legend: n = series, H = horizon, Q = levels, m = season.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np

from linnet.domains.series.smoothing import smooth

CRITICAL = 1.645  # of the seasonality test: 90 %, two-sided


@dataclass(frozen=True)
class Forecast:
    """Means and standard deviations [n, H]."""

    mean: np.ndarray
    deviation: np.ndarray

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """[n, H, Q] of a normal distribution."""
        points = np.array([NormalDist().inv_cdf(level) for level in levels])
        return np.asarray(self.mean[..., None] + self.deviation[..., None] * points)


class Method(Protocol):
    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        """Forecasts of complete histories, all with the same season (1: none)."""


def filled(history: np.ndarray) -> np.ndarray:
    """float64: each missing value takes the last one seen, those at the beginning the first.

    A history without any known value is zero.
    """
    values = np.asarray(history, np.float64)
    known = np.isfinite(values)
    if known.all() and len(values):
        return values
    if not known.any():
        return np.zeros(max(1, len(values)))
    last = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return np.asarray(values[np.where(last < 0, known.argmax(), last)])


def _deviations(histories: Sequence[np.ndarray], season: int, growth: np.ndarray) -> np.ndarray:
    """[n, H]: of the differences at one season's distance, times the growth with the horizon [H]."""
    apart = [history[season:] - history[:-season] for history in histories]
    sizes = np.array([float(np.sqrt((one**2).mean())) if len(one) else 0.0 for one in apart])
    return np.asarray(sizes[:, None] * growth)


@dataclass(frozen=True)
class Naive:
    """The last value."""

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        last = np.array([history[-1] for history in histories])
        growth = np.sqrt(np.arange(1, horizon + 1))
        return Forecast(np.repeat(last[:, None], horizon, 1), _deviations(histories, 1, growth))


@dataclass(frozen=True)
class SeasonalNaive:
    """The last season again and again; the last value where the history is shorter than a season."""

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        plain = Naive().forecast(histories, horizon, 1)
        steps = np.arange(horizon)
        growth = np.sqrt(steps // season + 1)
        mean, deviation = plain.mean.copy(), plain.deviation.copy()
        for row, history in enumerate(histories):
            if len(history) > season:
                mean[row] = history[len(history) - season + steps % season]
                deviation[row] = _deviations([history], season, growth)[0]
        return Forecast(mean, deviation)


# Seasons


def is_seasonal(history: np.ndarray, season: int) -> bool:
    """The test of M4: three whole seasons, and an autocorrelation at the season beyond Bartlett's 90 % bound."""
    if season < 2 or len(history) < 3 * season:
        return False
    centred = history - history.mean()
    size = 1 << (2 * len(centred) - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[: season + 1]
    if covariance[0] <= 1e-12 * float(np.square(history).sum()):
        return False  # constant
    correlation = covariance[1:] / covariance[0]
    bound = CRITICAL * np.sqrt((1 + 2 * np.square(correlation[:-1]).sum()) / len(history))
    return bool(abs(correlation[-1]) > bound)


def seasonal_indices(history: np.ndarray, season: int, *, multiply: bool) -> np.ndarray:
    """[m]: classical decomposition around a centred moving average; the first index is that of the first value.

    Factors with mean 1, or terms with mean 0.
    """
    half = season // 2
    kernel = np.ones(season) if season % 2 else np.concatenate([[0.5], np.ones(season - 1), [0.5]])
    trend = np.convolve(history, kernel / season, "valid")
    inner = history[half : half + len(trend)]
    apart = inner / trend if multiply else inner - trend
    phase = (np.arange(len(trend)) + half) % season
    indices = np.bincount(phase, apart, season) / np.bincount(phase, minlength=season)
    return np.asarray(indices / indices.mean() if multiply else indices - indices.mean())


@dataclass(frozen=True)
class Adjusted:
    """Histories without their season, and how it is put back: mean * factor + term, [n, H] each."""

    histories: list[np.ndarray]
    factor: np.ndarray
    term: np.ndarray

    def restored(self, forecast: Forecast) -> Forecast:
        return Forecast(forecast.mean * self.factor + self.term, forecast.deviation * np.abs(self.factor))


def adjusted(histories: Sequence[np.ndarray], horizon: int, season: int) -> Adjusted:
    """Where the test finds a season it is divided out of positive histories and subtracted from all others."""
    found = Adjusted(list(histories), np.ones((len(histories), horizon)), np.zeros((len(histories), horizon)))
    for row, history in enumerate(histories):
        if not is_seasonal(history, season):
            continue
        multiply = bool(history.min() > 0)
        indices = seasonal_indices(history, season, multiply=multiply)
        past, ahead = np.arange(len(history)) % season, np.arange(len(history), len(history) + horizon) % season
        found.histories[row] = history / indices[past] if multiply else history - indices[past]
        (found.factor if multiply else found.term)[row] = indices[ahead]
    return found


@dataclass(frozen=True)
class Naive2:
    """The last value after seasonal adjustment: what M4 divides errors by."""

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        plain = adjusted(histories, horizon, season)
        return plain.restored(Naive().forecast(plain.histories, horizon, 1))


@dataclass(frozen=True)
class Smoothing:
    """Exponential smoothing after seasonal adjustment: simple, with a trend (Holt), or with a damped one."""

    trend: bool = False
    damped: bool = False

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        plain = adjusted(histories, horizon, season)
        found = smooth(plain.histories, horizon, trend=self.trend, damped=self.damped)
        return plain.restored(Forecast(found.mean, found.deviation))


@dataclass(frozen=True)
class Theta:
    """The mean of the line through the history, and of simple smoothing of twice the history minus that line."""

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        plain = adjusted(histories, horizon, season)
        bent, ahead = [], np.empty((len(histories), horizon))
        for row, history in enumerate(plain.histories):
            steps = np.arange(len(history))
            slope = np.polyfit(steps, history, 1)[0] if len(history) > 1 else 0.0
            line = history.mean() + slope * (np.arange(len(history) + horizon) - steps.mean())
            bent.append(2 * history - line[: len(history)])
            ahead[row] = line[len(history) :]
        found = smooth(bent, horizon)
        return plain.restored(Forecast((found.mean + ahead) / 2, found.deviation / 2))


@dataclass(frozen=True)
class Comb:
    """The mean of simple, Holt's and damped smoothing."""

    def forecast(self, histories: Sequence[np.ndarray], horizon: int, season: int) -> Forecast:
        parts = [Smoothing(), Smoothing(trend=True), Smoothing(trend=True, damped=True)]
        found = [part.forecast(histories, horizon, season) for part in parts]
        return Forecast(
            np.mean([one.mean for one in found], 0),
            np.mean([one.deviation for one in found], 0),
        )


METHODS: Mapping[str, Method] = {
    "naive": Naive(),
    "seasonal naive": SeasonalNaive(),
    "Naive2": Naive2(),
    "simple smoothing": Smoothing(),
    "Holt": Smoothing(trend=True),
    "damped": Smoothing(trend=True, damped=True),
    "Comb": Comb(),
    "Theta": Theta(),
}
