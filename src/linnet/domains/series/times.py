"""Times of steps: how far apart they are, and where values are missing between them.

Times are numbers, spans of time, or dates of ISO 8601, with or without an offset from UTC.
Rules: a time that runs backwards is refused. Where at least nine of ten steps are a whole number of the commonest
spacing apart, a longer gap becomes missing values. Else, and where times repeat, steps keep the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from linnet.errors import BadInput

EVEN = 0.9  # share of steps that have to be a whole number of spacings apart
SLACK = 0.05  # of a spacing; months and leap days are further apart than that, and are spacing_known by name
MOST_MISSING = 20  # inserted steps for each one that is there
CALENDAR = (28 * 86400, 367 * 86400)  # spacings between which months, quarters and years lie
LONGEST_GAP = 1e12  # spacings; a longer gap counts as that
FARTHEST = 1e22  # of a number that is a time; nanoseconds since 1970 are below 1e19
DATE = re.compile(
    r"([0-9]{4}(?:-[0-9]{2}){0,2}(?:[T ](?P<hour>[0-9]{2})(?::[0-9]{2}){0,2}(?:[.][0-9]{1,18})?)?)"
    r"(?(hour)(?: *([+-])([01][0-9]|2[0-3]):?([0-5][0-9])?(?::([0-5][0-9]))?)?)"
)


@dataclass(frozen=True)
class Moments:
    """Times in seconds [rows]; `dated` where they are dates, else they are numbers of an unknown unit."""

    seconds: np.ndarray
    dated: bool

    def take(self, rows: np.ndarray) -> Moments:
        return Moments(self.seconds[rows], self.dated)


@dataclass(frozen=True)
class Steps:
    """Where each row goes in its series; `spacing` in seconds is 0 where it is not known."""

    index: np.ndarray
    spacing: float
    note: str = ""


def as_numbers(cells: Sequence[Any]) -> np.ndarray | None:
    """The cells as numbers; None where any is something else."""
    try:
        found = np.array(cells, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.ndim == 1 else None


def moments_of(cells: Sequence[Any], column: str, where: Callable[[int], str]) -> Moments:
    """Numbers (milliseconds in a column that ends in _ms), spans of time, or dates of ISO 8601."""
    numbers = as_numbers(cells)
    if numbers is not None:
        wrong = np.flatnonzero(np.abs(numbers) > FARTHEST)
        if len(wrong):
            raise _no_time(cells[wrong[0]], where(int(wrong[0])))
        milliseconds = column.lower().endswith("_ms")
        return Moments(numbers / 1000 if milliseconds else numbers, milliseconds)
    found = np.empty(len(cells))
    for index, cell in enumerate(cells):
        seconds = seconds_of(cell)
        if seconds is None:
            raise _no_time(cell, where(index))
        found[index] = seconds
    return Moments(found, True)


def seconds_of(cell: Any) -> float | None:
    """The seconds of a span, or of a date since 1970 in UTC; None where the cell is neither."""
    if isinstance(cell, timedelta):
        return cell.total_seconds()
    date = DATE.fullmatch(str(cell).strip().replace("/", "-").removesuffix("Z"))
    try:
        local = None if date is None else float(np.datetime64(date[1], "ms").astype(np.int64)) / 1000
    except ValueError:  # such as 2024-02-30
        return None
    return None if date is None or local is None else local - _seconds_east(*date.groups()[2:])


def _seconds_east(sign: str | None, *parts: str | None) -> int:
    hours, minutes, seconds = (int(part or 0) for part in parts)
    size = hours * 3600 + minutes * 60 + seconds
    return -size if sign == "-" else size


def _no_time(cell: Any, where: str) -> BadInput:
    given = str(cell).strip()
    if given.lower() in ("", "na", "nan", "nat", "none", "null"):
        return BadInput(f"{where}: the time is missing; add it, or leave the row out")
    return BadInput(f'{where}: "{given[:60]}" is no time; use numbers or dates such as 2024-05-31')


def even_steps(moments: Moments, where: Callable[[int], str]) -> Steps:
    """The steps of one series by the rules above."""
    times = moments.seconds
    order = np.arange(len(times))
    if not np.isfinite(times).all():
        raise BadInput(
            f"{where(int((~np.isfinite(times)).argmax()))}: the time is missing; add it, or leave the row out"
        )
    apart = np.diff(times)
    if (apart < 0).any():
        raise BadInput(
            f"{where(int((apart < 0).argmax()) + 1)}: the time runs backwards; sort the rows of a series"
        )
    if not len(apart):
        return Steps(order, 0.0)
    spacing = float(np.median(apart))
    spacing_known = spacing if moments.dated else 0.0
    if not (apart > 0).all():
        return Steps(
            order, spacing_known if spacing > 0 else 0.0, "times repeat; steps are taken in the order of the file"
        )
    with np.errstate(over="ignore"):
        ratio = np.minimum(apart / spacing, LONGEST_GAP)
    if CALENDAR[0] <= spacing_known <= CALENDAR[1]:
        whole = np.maximum(1, np.round(ratio))
        even = np.abs(ratio - whole) < 0.2
    else:
        whole = np.round(ratio)
        even = (np.abs(ratio - whole) < SLACK) & (whole > 0)
    if even.mean() < EVEN:
        return Steps(order, spacing_known, "times are uneven; steps are taken in the order of the file")
    index = np.concatenate([[0], np.cumsum(np.maximum(whole, 1))]).astype(np.int64)
    if index[-1] + 1 > MOST_MISSING * len(times):
        return Steps(
            order, spacing_known, "gaps are far longer than the data; steps are taken in the order of the file"
        )
    missing = int(index[-1]) + 1 - len(times)
    return Steps(index, spacing_known, "gaps in the times become missing values" if missing else "")
