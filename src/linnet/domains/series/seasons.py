"""How often values come, the season by which errors are scaled, and the longest cycle that a history has to cover.

What is not given is detected, and the record of a run says which of the two it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput, nearest

LONGEST = 400  # steps of a cycle that is looked for
SEEN = 3  # cycles that a series has to hold before it is asked for one
CLEAR = 0.3  # autocorrelation above which a cycle counts
CHANCE = 3.0  # standard errors that the highest peak of noise seldom reaches


@dataclass(frozen=True)
class Rhythm:
    """`season` scales the mean absolute scaled error as in M4, `cycle` is the longest that repeats, `horizon` the
    number of steps that people ask for."""

    season: int
    cycle: int
    horizon: int
    seconds: float


RHYTHMS: Mapping[str, Rhythm] = {
    "yearly": Rhythm(1, 1, 6, 365.25 * 86400),
    "quarterly": Rhythm(4, 4, 8, 91.3 * 86400),
    "monthly": Rhythm(12, 12, 18, 30.44 * 86400),
    "weekly": Rhythm(1, 52, 13, 7 * 86400),
    "daily": Rhythm(1, 7, 14, 86400),
    "hourly": Rhythm(24, 168, 48, 3600),
    "half-hourly": Rhythm(48, 336, 48, 1800),
    "quarter-hourly": Rhythm(96, 96, 48, 900),
    "minutely": Rhythm(1, 60, 60, 60),
}


@dataclass(frozen=True)
class Timing:
    """What was given or detected, in steps; `words` say which."""

    frequency: str
    season: int
    cycle: int
    horizon: int
    words: str


def frequency_in(name: str) -> str:
    """A frequency that a file name tells, such as Weekly-train.csv; empty where it tells none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((frequency for frequency in RHYTHMS if frequency in words), "")


def frequency_of(seconds: float) -> str:
    """The frequency whose spacing is within a tenth of this one; empty where there is none."""
    return next((name for name, one in RHYTHMS.items() if abs(seconds / one.seconds - 1) < 0.1), "")


def timing(table: SeriesTable, frequency: str = "", season: int = 0, horizon: int = 0) -> Timing:
    """The rhythm of these series: given, found by times or file names, or detected by autocorrelation."""
    if frequency and frequency not in RHYTHMS:
        raise BadInput(f'there is no frequency "{frequency}"{nearest(frequency, RHYTHMS)}; or set data.season')
    found = frequency_of(table.spacing) if table.spacing else ""
    name = frequency or found or table.frequency
    source = "given" if frequency else "by the times" if found else "by the file name"
    if name:
        rhythm = RHYTHMS[name]
        words = f"frequency {name} ({source}): season {season or rhythm.season}, longest cycle {rhythm.cycle}"
        cycle = max(rhythm.cycle, season)
        return Timing(name, season or rhythm.season, cycle, horizon or rhythm.horizon, words)
    cycle = season or detected(table)
    source = "given" if season else "detected by autocorrelation" if cycle > 1 else "none was detected"
    wanted = horizon or (min(cycle, 48) if cycle > 1 else 12)
    return Timing("", cycle, cycle, wanted, f"frequency unknown; season {cycle} ({source})")


def detected(table: SeriesTable, most: int = 50) -> int:
    """The cycle that most of up to `most` series share; 1 where there is none."""
    chosen = np.linspace(0, len(table) - 1, min(len(table), most)).astype(int)
    beyond = CHANCE / np.sqrt(len(chosen))  # what is chance in one series is none where several agree
    found = [cycle_of(table.series(index)[:, 0], beyond) for index in chosen]
    cycles, counts = np.unique(found, return_counts=True)
    best = int(counts.argmax())
    return int(cycles[best]) if counts[best] > len(found) / 3 else 1


def cycle_of(values: np.ndarray, beyond: float = CHANCE) -> int:
    """The lag of the highest peak of the autocorrelation of the steps of one series; 1 where no peak is clear.

    A clear one lies `beyond` so many standard errors of noise.
    """
    values = values[np.isfinite(values)]
    steps = np.diff(values)
    longest = min(LONGEST, len(steps) // SEEN)
    if longest < 3 or not steps.any():
        return 1
    steps = np.clip(steps, *np.quantile(steps, [0.01, 0.99]))
    steps = steps - steps.mean()
    size = 1 << int(2 * len(steps) - 1).bit_length()
    power = np.fft.irfft(np.abs(np.fft.rfft(steps, size)) ** 2)[: longest + 1]
    if power[0] <= 0:
        return 1
    pairs = len(steps) - np.arange(longest + 1)
    correlation = power / power[0] * len(steps) / pairs
    clear = np.maximum(CLEAR, beyond * np.sqrt(len(steps)) / pairs)
    inner = correlation[2:-1]
    peaks = 2 + np.flatnonzero((inner > correlation[1:-2]) & (inner >= correlation[3:]) & (inner > clear[2:-1]))
    if not len(peaks):
        return 1
    best = correlation[peaks].max()
    return int(peaks[correlation[peaks] > 0.9 * best][0])
