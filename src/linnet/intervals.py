"""Intervals of 95 %: of shares, of ratios of sums over independent units, and of paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from linnet.errors import BadInput

LEVEL = 0.95
NORMAL = 1.959963984540054


def wilson(right: int, n: int) -> tuple[float, float]:
    """The interval of a share."""
    if n == 0:
        return 0.0, 1.0
    z = NORMAL
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half if right else 0.0), (middle + half if right < n else 1.0)


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The interval of sum(sums) / sum(counts), where each unit brings its own sum and its own count.

    The variance comes from leaving out each unit in turn (the jackknife, CR3 of cluster-robust regression), and
    Student's quantile from the degrees of freedom that units of such different sizes have. Resampling the units
    gives the same interval where they are many, and one that is too narrow where they are few or uneven.
    """
    total = float(counts.sum())
    if not total:
        return 0.0, 0.0
    ratio, shares = float(sums.sum()) / total, counts / total
    if shares.max() == 1:  # a single unit does not vary
        return ratio, ratio
    change = (sums - ratio * counts) / total / (1 - shares)  # of the ratio, where this unit is left out
    half = student(degrees_of_freedom(counts)) * math.sqrt(float((change**2).sum()))
    return ratio - half, ratio + half


def degrees_of_freedom(counts: np.ndarray) -> float:
    """How many equal units (less one) would give as certain a variance (Bell and McCaffrey, 2002)."""
    shares = counts / max(1, counts.sum())
    if shares.max(initial=0) in (0, 1):
        return 0.0
    square, weights = float((shares**2).sum()), (shares / (1 - shares)) ** 2
    zeroth, first, second = (float((weights * shares**k).sum()) for k in range(3))
    trace = float((weights * (1 - 2 * shares + square)).sum())
    own = float((weights**2 * (1 + 2 * (square - 2 * shares))).sum())
    pairs = 2 * second * zeroth + 2 * first**2 + (square * zeroth) ** 2 - 4 * square * first * zeroth
    return trace**2 / (own + pairs)


def student(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's distribution, by its integral over the angle of the tangent."""
    if freedom > 10_000:
        return NORMAL
    freedom = max(1.0, freedom)
    angle = np.linspace(0, math.pi / 2, 20_001)
    mass = np.cumsum(np.cos(angle[:-1] + angle[1] / 2) ** (freedom - 1))
    found = float(np.interp(LEVEL * mass[-1], mass, angle[1:]))
    return math.sqrt(freedom) * math.tan(found)


Statistic = Callable[[np.ndarray], np.ndarray]  # from weights of units [R, units] to the values under them [R]


@dataclass(frozen=True)
class Difference:
    """One statistic minus another on the same units; `p` of no difference is two-sided."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Bootstrap:
    """Units drawn with replacement: weights [R, units] say how often each was drawn, for every statistic."""

    weights: np.ndarray

    @classmethod
    def draw(cls, units: int, seed: int = 0, resamples: int = 2000) -> Bootstrap:
        if units < 1:
            raise BadInput("there is no unit to draw an interval from")
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(units, np.full(units, 1 / units), resamples)
        return cls(drawn.astype(np.float64))

    @property
    def alone(self) -> bool:
        """A single unit says nothing of others."""
        return self.weights.shape[1] == 1

    def interval(self, statistic: Statistic) -> tuple[float, float]:
        """95 %, not known of a single unit; draws in which the statistic has no value are left out."""
        return (float("nan"), float("nan")) if self.alone else self._quantiles(statistic)

    def _quantiles(self, statistic: Statistic) -> tuple[float, float]:
        values = statistic(self.weights)
        values = values[np.isfinite(values)]
        if not len(values):
            return float("nan"), float("nan")
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def share_interval(self, statistic: Statistic) -> tuple[float, float]:
        """95 % of a share. Where all units agree no draw differs: then Wilson's interval of so many units.

        A single unit that is divided says nothing of others: then it is all shares.
        """
        low, high = self._quantiles(statistic)
        if low == high and low in (0.0, 1.0):
            units = self.weights.shape[1]
            return wilson(units if low else 0, units)
        return (0.0, 1.0) if self.alone else (low, high)

    def difference(self, ours: Statistic, theirs: Statistic) -> Difference:
        """Ours minus theirs, paired: both under the same draws. What is not known has no p either."""
        low, high = self.interval(lambda weights: ours(weights) - theirs(weights))
        every = np.ones((1, self.weights.shape[1]))
        apart = ours(self.weights) - theirs(self.weights)
        tail = min(float((apart <= 0).mean()), float((apart >= 0).mean()))
        value = float(ours(every)[0] - theirs(every)[0])
        known = np.isfinite(value) and not self.alone
        p = min(1.0, 2 * max(tail, 1 / len(apart))) if known else float("nan")
        return Difference(value, low, high, p)
