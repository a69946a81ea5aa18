"""What can be said of a window of an accelerometer, and whether it is true.

The first three channels are an accelerometer with gravity in it; channels four to six, where they exist, a
gyroscope. a is the length of the acceleration at each step. Units and rates of sensors do not matter.

    strength  deviation of a over its mean: still up to 0.10, gentle 0.15 to 0.22, strong from 0.28
    rhythm    a period whose lag has an autocorrelation of a above 0.4; none: below 0.2
    change    grows, shrinks: a deviates in the second half at least 1.7 times as far as in the first, or as much
              less; steady: less than 1.3 times
    gravity   the axis that has at least 0.75 of the mean acceleration; false below 0.6
    turning   the axis that has at least 0.7 of the rotation (root mean square); false below 0.55
    tilt      changes: the mean accelerations of the first and the last third are 25 degrees apart or more; stays:
              12 or less

What lies between true and false is unclear, and counts neither way. Claims and verdicts are those of captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from linnet.domains.series.captions.facts import Claim, Verdict, between, both, check_spread, find_period
from linnet.errors import BadInput

KINDS = ("strength", "rhythm", "change", "gravity", "turning", "tilt")
AXES = ("x", "y", "z")
STRENGTHS: Mapping[str, tuple[float, float, float, float]] = {  # false, true, true, false
    "still": (-2.0, -1.0, 0.10, 0.15),
    "gentle": (0.10, 0.15, 0.22, 0.28),
    "strong": (0.22, 0.28, 1e9, 2e9),
}
RHYTHM, SHARE, TURN, TILT = (0.4, 0.2), (0.75, 0.6), (0.7, 0.55), (25.0, 12.0)
TINY = 1e-9


@dataclass(frozen=True)
class Motion:
    """The numbers that decide on claims, of one window."""

    strength: float
    period: int
    rhythm: float
    spread: float  # deviation of a in the second half over that in the first
    gravity: tuple[float, ...]  # of each axis, the share of the mean acceleration
    turning: tuple[float, ...]  # of each axis, the share of the rotation; nothing without a gyroscope
    tilt: float  # degrees


def measure(window: np.ndarray) -> Motion:
    """All measures of a window [T, C]."""
    x = np.asarray(window, np.float64)
    if x.ndim != 2 or x.shape[1] < 3:
        raise BadInput("a rationale is about an accelerometer: windows need three channels at least, x, y and z")
    force = x[:, :3]
    a = np.linalg.norm(force, axis=1)
    half, third = max(1, len(a) // 2), max(1, len(a) // 3)
    period, rhythm = find_period(a - a.mean())
    spread = [max(float(part.std()), TINY) for part in (a[:half], a[-half:])]
    turning = np.sqrt((x[:, 3:6] ** 2).mean(0)) if x.shape[1] >= 6 else np.empty(0)
    return Motion(
        float(a.std() / max(a.mean(), TINY)),
        period,
        rhythm,
        spread[1] / spread[0],
        shares(np.abs(force.mean(0))),
        shares(turning),
        angle(force[:third].mean(0), force[-third:].mean(0)),
    )


def shares(lengths: np.ndarray) -> tuple[float, ...]:
    return tuple((lengths / max(float(np.linalg.norm(lengths)), TINY)).tolist())


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between two vectors."""
    size = max(float(np.linalg.norm(one) * np.linalg.norm(other)), TINY)
    return float(np.degrees(np.arccos(np.clip(one @ other / size, -1, 1))))


def check(claim: Claim, found: Motion) -> Verdict:
    """Whether the claim holds of the window."""
    if claim.kind == "strength":
        low_false, low, high, high_false = STRENGTHS[claim.value]
        return both(between(found.strength, low, low_false), between(found.strength, high, high_false))
    if claim.kind == "rhythm":
        return check_rhythm(claim, found)
    if claim.kind == "change":
        return check_spread(claim, found.spread)
    if claim.kind == "tilt":
        clear, none = TILT
        return between(found.tilt, clear, none) if claim.value == "changes" else between(found.tilt, none, clear)
    parts = found.gravity if claim.kind == "gravity" else found.turning
    if not parts:
        return "false"  # of a sensor that the window does not have
    return between(parts[AXES.index(claim.value)], *(SHARE if claim.kind == "gravity" else TURN))


def check_rhythm(claim: Claim, found: Motion) -> Verdict:
    clear, none = RHYTHM
    if claim.value == "none":
        return between(found.rhythm, none, clear)
    held = between(found.rhythm, clear, none)
    if claim.period is None or not found.period:
        return held
    return both(held, between(abs(claim.period - found.period) / found.period, 0.05, 0.1))


VALUES: Mapping[str, tuple[str, ...]] = {
    "strength": tuple(STRENGTHS),
    "rhythm": ("present", "none"),
    "change": ("grows", "shrinks", "steady"),
    "gravity": AXES,
    "turning": AXES,
    "tilt": ("changes", "stays"),
}


def true_claims(found: Motion) -> list[Claim]:
    """Every claim that holds; one of each kind at most."""
    every = [Claim(kind, value) for kind in KINDS for value in VALUES[kind]]
    every = [replace(one, period=found.period) if one.value == "present" else one for one in every]
    return [claim for claim in every if check(claim, found) == "true"]
