"""Series for training captions: trend, season, level shift, changing noise and spikes, each of them at times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PERIODS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24)
SHORTEST, LONGEST = 48, 192


def series(random: np.random.Generator) -> np.ndarray:
    """One series of 48 to 192 values at any level."""
    n = int(random.integers(SHORTEST, LONGEST + 1))
    x = noise(n, random)
    if random.random() < 0.5:
        x += random.choice([-1, 1]) * random.uniform(2.5, 8) * np.linspace(-0.5, 0.5, n)
    if random.random() < 0.5:
        x += season(n, random)
    if random.random() < 0.4:
        step = int(random.integers(n // 8, n - n // 8))
        x += random.choice([-1, 1]) * random.uniform(3.5, 8) * (np.arange(n) >= step)
    if random.random() < 0.3:
        x[random.integers(n)] += random.choice([-1, 1]) * random.uniform(5, 10)
    scale = 10 ** random.uniform(-1, 3)
    level = random.choice([-1, 1], p=[0.1, 0.9]) * scale * 10 ** random.uniform(0, 1.5)
    return np.asarray(level + scale * x)


def noise(n: int, random: np.random.Generator) -> np.ndarray:
    """White or slightly persistent noise, at times louder or quieter from the middle on."""
    e = random.normal(size=n)
    keep = random.choice([0.0, 0.0, 0.4])
    for i in range(1, n):
        e[i] += keep * e[i - 1]
    change = random.choice([1.0, 1.0, random.uniform(2.2, 4)])
    factor = np.where(np.arange(n) < n // 2, 1.0, change)
    return np.asarray(e * (factor if random.random() < 0.5 else factor[::-1]) * random.uniform(0.4, 1.0))


def season(n: int, random: np.random.Generator) -> np.ndarray:
    """One shape that repeats: two harmonics, or a profile of its own."""
    fitting = [period for period in PERIODS if period <= n // 4]
    period = int(random.choice(fitting))
    phase = np.arange(n) / period + random.random()
    shape = np.sin(2 * np.pi * phase) + random.uniform(0, 0.5) * np.sin(4 * np.pi * phase + random.uniform(0, 6))
    return np.asarray(random.uniform(1.5, 4) * shape)


def draw(count: int, seed: int) -> Iterator[np.ndarray]:
    """The same series for the same seed, and each the same whatever the count is."""
    for index in range(count):
        yield series(np.random.default_rng([seed, index]))
