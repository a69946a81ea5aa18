"""The value of a search with an interval that holds at every moment, whatever decided to stop there.

Z is the sum over x of p(x) exp(lam r(x)). After some rollouts its part M of visited leaves is known exactly, and
the prior mass U of the others. Two facts are intersected:

* Bounds: M + U exp(lam least) <= Z <= M + U exp(lam most), where the reward declares these limits.
* A confidence sequence by betting (Waudby-Smith and Ramdas, 2020). Each drawn rollout gives
  Z_i = M + U (g_min + w (g - g_min)) with the M and U of its moment, g_min = exp(lam least) and importance weight
  w; its mean given the past is Z, and it lies in [M + U g_min, M + U (g_min + (g_max - g_min) w_max)]. For a
  candidate z the wealth of one who bets against it is a non-negative martingale if z is true, and exceeds 2/delta
  at any time with probability delta/2 at most; so a z at which it ever did is excluded, on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from linnet.search.tree import Tree

DELTA = 0.05
FRACTIONS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])  # of the largest stake; the wealth is their average
HALVINGS = 40


@dataclass(frozen=True)
class Value:
    """(1/lam) log Z; for lam = 0 its limit, the mean reward under p.

    `value` and `log_partition` are the method's best estimate, None where it has none. `unbiased` is the log of
    the mean of the Z_i, an unbiased estimate of Z where their number is fixed, as with all rollouts drawn. The
    limits hold with probability .95 at every moment; they are infinite where the reward declares none.
    """

    value: float | None
    low: float
    high: float
    log_partition: float | None
    log_low: float
    log_high: float
    unbiased: float | None
    unseen: float

    @property
    def width(self) -> float:
        return self.high - self.low


def estimate(tree: Tree) -> Value:
    """What the draws of this tree say of its value."""
    if tree.method.lam == 0:
        return mean_reward(tree)
    lam, reward = tree.method.lam, tree.reward
    least = -math.inf if reward.least is None else lam * reward.least
    most = math.inf if reward.most is None else lam * reward.most
    low, high = bounds(tree.log_mass, tree.unseen, least, most)
    found = tree.method.log_partition(tree)
    scale = tree.shift if math.isinf(most) else most
    terms, floors, ceilings = increments(tree, least, most, scale)
    unbiased = None
    if len(terms):
        unbiased = log(float(terms.mean())) + scale
        if math.isfinite(most):
            lower, upper = betting(terms, floors, ceilings)
            low, high = max(low, log(lower) + scale), min(high, log(upper) + scale)
    if found is not None:
        found = min(max(found, low), high)
    value = None if found is None else found / lam
    return Value(value, low / lam, high / lam, found, low, high, unbiased, tree.unseen)


def bounds(log_mass: float, unseen: float, least: float, most: float) -> tuple[float, float]:
    """Limits of log Z from the visited part alone."""
    if not unseen > 0:
        return log_mass, log_mass
    rest = math.log(unseen)
    return float(np.logaddexp(log_mass, rest + least)), float(np.logaddexp(log_mass, rest + most))


def increments(tree: Tree, least: float, most: float, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z_i of each draw whose weight is known, and the limits of each that were known before it; over
    exp(scale).
    """
    draws = tree.draws
    known = ~np.isnan(draws["logweight"])
    weight, gain = np.exp(draws["logweight"][known]), np.exp(draws["loggain"][known] - scale)
    mass, unseen = np.exp(draws["mass"][known] - scale), draws["unseen"][known]
    floor = math.exp(least - scale) if least > -math.inf else 0.0
    ceiling = math.exp(most - scale) if most < math.inf else math.inf
    base = mass + unseen * floor
    terms = base + unseen * weight * (gain - floor)
    return terms, base, base + unseen * (ceiling - floor) * np.exp(draws["logmost"][known])


def betting(
    terms: np.ndarray, floors: np.ndarray, ceilings: np.ndarray, delta: float = DELTA
) -> tuple[float, float]:
    """The interval of the common conditional mean of these terms, by the wealth of bets against each candidate."""
    lowest, highest = float(floors.max()), float(ceilings.min())

    def excluded(candidate: float, sign: int) -> bool:
        room = candidate - floors if sign > 0 else ceilings - candidate
        gained = sign * (terms - candidate) / np.maximum(room, 1e-300)
        wealth = np.log1p(np.multiply.outer(FRACTIONS, np.maximum(gained, -1))).cumsum(1)
        return bool((np.logaddexp.reduce(wealth, axis=0) - math.log(len(FRACTIONS))).max() > math.log(2 / delta))

    def boundary(start: float, end: float, sign: int) -> float:
        """The last candidate from `start`, which is excluded, towards `end` that is excluded still."""
        for _ in range(HALVINGS):
            middle = (start + end) / 2
            start, end = (middle, end) if excluded(middle, sign) else (start, middle)
        return start

    if not lowest < highest:
        return lowest, highest
    return boundary(lowest, highest, 1), boundary(highest, lowest, -1)


def mean_reward(tree: Tree) -> Value:
    """The case lam = 0; a text of weight 0 counts as reward 0."""
    least = -math.inf if tree.reward.least is None else tree.reward.least
    most = math.inf if tree.reward.most is None else tree.reward.most
    rest, mean = tree.unseen, tree.mean
    low, high = (mean + rest * least, mean + rest * most) if rest > 0 else (mean, mean)
    known = ~np.isnan(tree.draws["logweight"])
    found = None if rest > 0 else mean
    if known.any() and rest > 0:
        weight = np.exp(tree.draws["logweight"][known])
        reward = tree.nodes["reward"][tree.draws["leaf"][known]]
        drawn = float((weight * np.where(np.isneginf(reward), 0, reward)).sum() / weight.sum())
        replaced = bool((tree.draws["unseen"][known] == 1).all())  # such draws are from p, and not from the rest
        found = min(max(drawn, low), high) if replaced else mean + rest * drawn
    return Value(found, low, high, 0.0, 0.0, 0.0, 0.0, rest)


def log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf
