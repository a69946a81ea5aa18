"""What can be said of a series, and whether it is true: claims, and the numbers that decide on them.

A claim has a kind and, by kind, a value, a position and an amount. Each is true, false, or unclear where the
numbers lie between the two; what is unclear counts neither way. The rules, for a series of n values with standard
deviation s (`docs/guides/captions.md` has them for readers):

    trend       up, down: the fitted line changes by more than 2 s from end to end; flat: by less than 1.2 s
    jump        up, down: a step of 3 deviations of the rest or more, at a step or in a third; none: less than 1.5
    season      a period whose lag has an autocorrelation above 0.5 without trend and jump; none: below 0.25
    maximum     its position, its amount; minimum alike
    volatility  grows, shrinks: the rest deviates in the second half at least 1.7 times as far as in the first;
                steady: less than 1.3 times
    level       the mean
    halves      higher, lower: the mean of the second half differs by more than s / 2; same: by less than s / 5

The rest is what trend, jump and season leave. An amount is true within 5 % of the larger of itself and s, false
beyond 10 %; a step is true within 3 % of n, false beyond 6 %; a third is unclear within 4 % of n of its edges.
This is the measure of the reward. `judging` has another one, written apart, for scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Verdict = Literal["true", "false", "unclear"]
Third = Literal["early", "middle", "late"]

KINDS = ("trend", "jump", "season", "maximum", "minimum", "volatility", "level", "halves")
VALUES: Mapping[str, tuple[str, ...]] = {
    "trend": ("up", "down", "flat"),
    "jump": ("up", "down", "none"),
    "season": ("present", "none"),
    "volatility": ("grows", "shrinks", "steady"),
    "halves": ("higher", "lower", "same"),
}
SHORTEST = 16  # values that trend, jump, season, volatility and halves need
STILL = 1e-9  # deviation, as a share of the level, of a series that is constant


@dataclass(frozen=True)
class Claim:
    """One statement about a series. A position is a step counted from 1, or a third of the series."""

    kind: str
    value: str = ""
    step: int | None = None
    third: Third | None = None
    amount: float | None = None
    period: int | None = None
    negated: bool = False  # "it does not rise"

    @property
    def specific(self) -> bool:
        """Whether it names a value, position, amount or period that another series would not have."""
        if self.kind in ("maximum", "minimum"):
            return (self.step, self.third, self.amount) != (None, None, None)
        if self.kind == "season":
            return self.period is not None or self.value == "none"
        return self.amount is not None if self.kind == "level" else True


@dataclass(frozen=True)
class Measures:
    """The numbers that decide on claims, of one series."""

    n: int
    mean: float
    deviation: float
    trend: float  # change of the fitted line from end to end, in deviations
    jump: float  # height of the largest step, in deviations of the rest
    jump_at: int  # the first step after it
    period: int  # the likeliest period; 0 where there is none to look for
    season: float  # autocorrelation at that period
    volatility: float  # deviation of the rest in the second half over that in the first
    halves: float  # mean of the second half less that of the first, in deviations
    maxima: tuple[int, ...]  # steps whose values are as good as the maximum
    minima: tuple[int, ...]
    highest: float
    lowest: float

    @property
    def constant(self) -> bool:
        return self.deviation <= STILL * max(1.0, abs(self.mean))


def measure(values: np.ndarray) -> Measures:
    """All measures of a series. Of a short or constant one only the level and the extremes mean anything."""
    x = np.asarray(values, np.float64)
    n, mean, deviation = len(x), float(x.mean()), float(x.std())
    highest, lowest = float(x.max()), float(x.min())
    near = 0.02 * (highest - lowest)
    maxima = tuple((np.flatnonzero(x >= highest - near) + 1).tolist())
    minima = tuple((np.flatnonzero(x <= lowest + near) + 1).tolist())
    if n < SHORTEST or deviation <= STILL * max(1.0, abs(mean)):
        nothing = dict.fromkeys(("trend", "jump", "season", "halves"), 0.0)
        return Measures(n, mean, deviation, jump_at=0, period=0, volatility=1.0, maxima=maxima, minima=minima,
                        highest=highest, lowest=lowest, **nothing)  # fmt: skip
    z = (x - mean) / deviation
    step, flat = fit_step(z)
    period, season = find_period(flat)
    seasonal = by_phase(flat, period) if season > 0.25 else np.zeros(n)
    step, rest = fit_step(z - seasonal)
    if season > 0.25:
        rest = rest - by_phase(rest, period)
    half = n // 2
    height = step[1] / max(float(rest.std()), 1e-6)
    line = np.polyfit(np.arange(n), z, 1)[0] * (n - 1)
    spread = [max(float(part.std()), 1e-6) for part in (rest[:half], rest[n - half :])]
    return Measures(
        n,
        mean,
        deviation,
        trend=float(line),
        jump=height,
        jump_at=int(step[0]) + 1,
        period=period,
        season=season,
        volatility=spread[1] / spread[0],
        halves=float(z[n - half :].mean() - z[:half].mean()),
        maxima=maxima,
        minima=minima,
        highest=highest,
        lowest=lowest,
    )


def fit_step(z: np.ndarray) -> tuple[tuple[int, float], np.ndarray]:
    """The step that explains most beside a line: (index, height); and what the line and the step leave.

    The line is projected out of the series and of every candidate step, so one pass of sums serves them all.
    """
    n = len(z)
    edge = max(3, n // 10)
    steps = np.arange(edge, n - edge + 1)
    basis = np.stack([np.full(n, n**-0.5), line := np.linspace(-1, 1, n)])
    basis[1] /= np.linalg.norm(line)
    rest = z - basis.T @ (basis @ z)
    after = np.cumsum(np.vstack([rest, basis])[:, ::-1], axis=1)[:, ::-1][:, steps]  # sums from each step on
    size = (n - steps) - (after[1:] ** 2).sum(0)
    best = int((after[0] ** 2 / size).argmax())
    height = float(after[0, best] / size[best])
    step = (np.arange(n) >= steps[best]).astype(float)
    return (int(steps[best]), height), rest - height * (step - basis.T @ (basis @ step))


def find_period(rest: np.ndarray) -> tuple[int, float]:
    """The lag with the highest peak of the autocorrelation, up to a third of the series."""
    n = len(rest)
    longest = n // 3
    centred = rest - rest.mean()
    power = float((centred**2).mean())
    if power < 1e-12 or longest < 3:
        return 0, 0.0
    lags = np.arange(1, longest + 2)
    found = np.correlate(centred, centred, "full")[n : n + len(lags)] / (n - lags) / power
    peaks = [i for i in range(1, len(found) - 1) if found[i] >= found[i - 1] and found[i] >= found[i + 1]]
    if not peaks:
        return 0, 0.0
    highest = max(found[i] for i in peaks)
    first = next(i for i in peaks if found[i] >= highest - 0.1)  # a multiple of the period is as high
    return int(lags[first]), float(found[first])


def by_phase(rest: np.ndarray, period: int) -> np.ndarray:
    """The mean of each phase of the period, at every step."""
    phase = np.arange(len(rest)) % period
    sums = np.bincount(phase, rest, minlength=period)
    return np.asarray((sums / np.bincount(phase, minlength=period))[phase])


def between(value: float, true_from: float, false_to: float) -> Verdict:
    """True from one bound on, false up to the other, whichever is larger."""
    if true_from > false_to:
        return "true" if value >= true_from else "false" if value <= false_to else "unclear"
    return "true" if value <= true_from else "false" if value >= false_to else "unclear"


def check(claim: Claim, found: Measures) -> Verdict:
    """Whether the claim holds. What a series cannot have, such as the season of three values, is false."""
    if claim.negated:
        held = check(replace(claim, negated=False), found)
        return "unclear" if held == "unclear" else "false" if held == "true" else "true"
    if claim.kind in ("maximum", "minimum"):
        return check_extreme(claim, found)
    if claim.kind == "level":
        return "unclear" if claim.amount is None else amount_holds(claim.amount, found.mean, found.deviation)
    if found.n < SHORTEST or found.constant:
        return "true" if found.constant and claim.value in ("flat", "same", "steady", "none") else "false"
    return {
        "trend": check_trend,
        "jump": check_jump,
        "season": check_season,
        "volatility": check_volatility,
        "halves": check_halves,
    }[claim.kind](claim, found)


def check_trend(claim: Claim, found: Measures) -> Verdict:
    if claim.value == "flat":
        return between(abs(found.trend), 1.2, 2.0)
    return between(found.trend if claim.value == "up" else -found.trend, 2.0, 1.2)


def check_jump(claim: Claim, found: Measures) -> Verdict:
    if claim.value == "none":
        return between(abs(found.jump), 1.5, 3.0)
    held = between(found.jump if claim.value == "up" else -found.jump, 3.0, 1.5)
    return both(held, position_holds(claim, (found.jump_at,), found.n))


def check_season(claim: Claim, found: Measures) -> Verdict:
    if claim.value == "none":
        return between(found.season, 0.25, 0.5)
    held = between(found.season, 0.5, 0.25)
    if claim.period is None or not found.period:
        return held
    off = abs(claim.period - found.period)
    return both(held, "true" if off <= 0.04 * found.period else "unclear" if off <= 1 else "false")


def check_volatility(claim: Claim, found: Measures) -> Verdict:
    return check_spread(claim, found.volatility)


def check_spread(claim: Claim, later: float) -> Verdict:
    """Whether a deviation grows, shrinks or stays; `later` is that of the second half over that of the first."""
    ratio = np.log(later)
    if claim.value == "steady":
        return between(abs(ratio), np.log(1.3), np.log(1.7))
    return between(ratio if claim.value == "grows" else -ratio, np.log(1.7), np.log(1.3))


def check_halves(claim: Claim, found: Measures) -> Verdict:
    if claim.value == "same":
        return between(abs(found.halves), 0.2, 0.5)
    return between(found.halves if claim.value == "higher" else -found.halves, 0.5, 0.2)


def check_extreme(claim: Claim, found: Measures) -> Verdict:
    high = claim.kind == "maximum"
    where = position_holds(claim, found.maxima if high else found.minima, found.n)
    if claim.amount is None:
        return where
    return both(where, amount_holds(claim.amount, found.highest if high else found.lowest, found.deviation))


def amount_holds(claimed: float, actual: float, deviation: float) -> Verdict:
    return between(abs(claimed - actual) / max(abs(actual), deviation, 1e-12), 0.05, 0.1)


def position_holds(claim: Claim, steps: tuple[int, ...], n: int) -> Verdict:
    """Whether one of these steps is where the claim says."""
    if claim.step is not None:
        return between(min(abs(claim.step - step) for step in steps), max(1.0, 0.03 * n), max(2.0, 0.06 * n))
    if claim.third is None:
        return "true"
    low, high = {"early": (0.0, n / 3), "middle": (n / 3, 2 * n / 3), "late": (2 * n / 3, float(n))}[claim.third]
    inside = [min(step - 0.5 - low, high - step + 0.5) for step in steps]  # how far within the third
    if claim.third == "early":
        inside = [high - step + 0.5 for step in steps]
    elif claim.third == "late":
        inside = [step - 0.5 - low for step in steps]
    best = max(inside)
    return "true" if best >= 0.04 * n else "false" if best <= -0.04 * n else "unclear"


def both(first: Verdict, second: Verdict) -> Verdict:
    if "false" in (first, second):
        return "false"
    return "unclear" if "unclear" in (first, second) else "true"
