"""Series that are drawn: from processes in linear time, and as mixtures of series at hand.

A drawn series is a trend times or plus seasons, a random walk that returns to its level, and sometimes jumps,
spikes and changes of noise. A mixture weighs up to three scaled windows of real series. Everything depends on the
seed alone.
Legend: n = series, T = steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERIODS = (4, 7, 12, 24, 52, 60, 96, 168, 365)


@dataclass(frozen=True)
class Generator:
    """How series are drawn. `season` is the period that half of the seasonal ones have; the others have any."""

    season: int = 1
    noise: float = 0.2
    jumps: float = 0.2  # the share of series with changes of level
    spikes: float = 0.1

    def draw(self, count: int, length: int, seed: int) -> np.ndarray:
        """float64 [n, T], each around level 0 with a spread of about 1."""
        rng = np.random.default_rng([seed, 0])
        parts = [
            _trends(rng, count, length),
            _seasons(rng, count, length, self.season),
            _walks(rng, count, length),
            self._events(rng, count, length),
        ]
        weights = rng.gamma(0.7, 1, (4, count, 1))
        signal = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        growing = rng.random((count, 1)) < 0.3  # seasons and noise grow with the level
        signal = np.where(growing, signal * np.exp(0.5 * parts[0]), signal)
        spread = np.maximum(signal.std(-1, keepdims=True), 1e-9)
        signal = (signal - signal.mean(-1, keepdims=True)) / spread
        loud = self.noise * rng.exponential(1, (count, 1)) * _volatility(rng, count, length)
        return np.asarray(signal + loud * rng.standard_t(5, (count, length)))

    def _events(self, rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        """Levels that change for good, and single steps far away."""
        rare = 2 / max(2, length)
        change = (rng.random((count, length)) < rare) & (rng.random((count, 1)) < self.jumps)
        spike = (rng.random((count, length)) < 2 * rare) & (rng.random((count, 1)) < self.spikes)
        levels = np.cumsum(change * rng.normal(0, 1, (count, length)), -1)
        return np.asarray(levels + spike * rng.normal(0, 3, (count, length)))


def _trends(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Lines with up to two bends, some of them exponential or damped."""
    steps = np.linspace(0, 1, length)
    slopes, bends = rng.normal(0, 1.5, (3, count, 1)), rng.random((2, count, 1))
    lines = slopes[0] * steps
    for slope, bend in zip(slopes[1:], bends, strict=True):
        lines = lines + (rng.random((count, 1)) < 0.4) * slope * np.maximum(steps - bend, 0)
    curved = np.sign(slopes[0]) * (1 - np.exp(-3 * np.abs(slopes[0]) * steps))
    return np.asarray(np.where(rng.random((count, 1)) < 0.25, curved, lines))


def _seasons(rng: np.random.Generator, count: int, length: int, season: int) -> np.ndarray:
    """Sums of harmonics of one period, or saw teeth; a quarter of the series has no season."""
    steps = np.arange(length)
    period = rng.choice(PERIODS, (count, 1)) * np.exp(rng.normal(0, 0.1, (count, 1)))
    if season > 1:
        period = np.where(rng.random((count, 1)) < 0.5, season, period)
    phase = 2 * np.pi * (steps / period + rng.random((count, 1)))
    waves = np.zeros((count, length))
    for harmonic in range(1, 5):
        strength = rng.normal(0, 1 / harmonic, (count, 1))
        waves += strength * np.sin(harmonic * phase + 2 * np.pi * rng.random((count, 1)))
    teeth = 2 * ((phase / (2 * np.pi)) % 1) - 1
    found = np.where(rng.random((count, 1)) < 0.1, teeth, waves)
    return np.asarray(found * (rng.random((count, 1)) < 0.75))


def _walks(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Random walks drawn back to their level; the pull is zero in some, and then they are plain walks."""
    pull = np.where(rng.random(count) < 0.4, 0.0, rng.beta(1, 8, count))
    shocks = rng.normal(0, 1, (length, count))
    found = np.empty((length, count))
    now = np.zeros(count)
    for step in range(length):
        now = (1 - pull) * now + shocks[step]
        found[step] = now
    found = found.T
    return np.asarray(found / np.maximum(found.std(-1, keepdims=True), 1e-9))


def _volatility(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Factors of the noise: constant, or one of two values from some step on."""
    switch = rng.random((count, 1)) * length
    later = np.exp(rng.normal(0, 0.7, (count, 1)))
    changes = rng.random((count, 1)) < 0.2
    return np.asarray(np.where(changes & (np.arange(length) > switch), later, 1.0))


def mixed(
    histories: Sequence[np.ndarray],
    count: int,
    length: int,
    seed: int,
    *,
    most: int = 3,
    concentration: float = 1.5,
) -> np.ndarray:
    """[n, T]: convex sums of one to `most` windows of these histories, each around 0 with a mean size of 1.

    Only histories of at least `length` values take part; without any, the longest ones are stretched.
    """
    rng = np.random.default_rng([seed, 1])
    enough = [history for history in histories if len(history) >= length]
    if not enough:
        longest = sorted(histories, key=len)[-max(1, most) :]
        steps = np.linspace(0, 1, length)
        enough = [np.interp(steps, np.linspace(0, 1, len(history)), history) for history in longest]
    parts = rng.integers(1, most + 1, count)
    weights = np.where(np.arange(most) < parts[:, None], rng.gamma(concentration, 1, (count, most)), 0)
    weights /= weights.sum(-1, keepdims=True)
    found = np.zeros((count, length))
    for row in range(count):
        for weight in weights[row, : parts[row]]:
            history = enough[rng.integers(len(enough))]
            first = rng.integers(len(history) - length + 1)
            found[row] += weight * _unit(history[first : first + length])
    return found


def _unit(window: np.ndarray) -> np.ndarray:
    """A window around 0 with a mean absolute value of 1; a constant one is zero."""
    centred = window - window.mean()
    size = np.abs(centred).mean()
    return np.asarray(centred / size if size > 0 else centred)
