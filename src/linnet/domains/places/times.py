"""Times of a table: text, timestamps, epochs, or a day number and a minute become seconds since 1970.

Every row leaves with its start, its end, and the offset in seconds that makes them local. A zone is a name
(`Asia/Shanghai`) or a fixed offset (`+08:00`). A time without a zone is read in the zone `tz`. What is wrong with
the times is named.
Legend: N = rows of the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.domains.places.columns import Columns, Findings, numbers
from linnet.domains.places.sources import LATEST
from linnet.domains.places.visits import DAY, MINUTE
from linnet.errors import BadInput

if TYPE_CHECKING:
    import polars as pl

MONDAY = 4  # days from the first of January 1970 to a Monday
_FIXED = re.compile(r"^(?:UTC|GMT)?([+-])(\d{1,2})(?::?(\d{2}))?$")
_SUFFIX = r"(Z|[+-]\d{2}:?\d{2})$"
_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y-%m-%d",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
)
_WITH_ZONE = "%a %b %d %H:%M:%S %z %Y"  # Tue Apr 03 18:00:09 +0000 2012
_SURE_EPOCH = 1e8  # seconds: 1973
_DAYS = 1e5  # more than the day numbers of spreadsheets, and fewer than the seconds of two days
_LONGEST = 1e9  # minutes or days
_EPOCH_SCALE = ((1e11, 1), (1e14, 1_000), (1e17, 1_000_000), (np.inf, 1_000_000_000))


@dataclass(frozen=True)
class Times:
    """`own` marks rows whose text named its own offset; `valid` is False where there is no time at all."""

    utc: np.ndarray  # int64 [N]
    offset: np.ndarray  # int64 [N]
    own: np.ndarray  # bool [N]
    valid: np.ndarray  # bool [N]
    unreadable: np.ndarray  # bool [N]: something stands there and it is no time
    each: bool = False  # rows name offsets one by one, as texts do; a column's zone or an epoch is one for all
    other_unit: np.ndarray | np.bool_ = (
        np.False_
    )  # bool [N]: epochs that only make sense in another unit than most
    epoch: np.ndarray | np.bool_ = np.False_  # bool [N]: numbers, which are in UTC by definition

    def with_epochs(self, numbers: Times) -> Times:
        """These texts, with the numbers among them."""
        found = numbers.valid & ~self.valid
        utc, offset = np.where(found, numbers.utc, self.utc), np.where(found, numbers.offset, self.offset)
        valid, left, other = self.valid | found, self.unreadable & ~found, numbers.other_unit & found
        return Times(utc, offset, self.own, valid, left, self.each, other, found)


def fixed_offset(zone: str) -> int | None:
    """Seconds of `UTC`, `+08:00`, `UTC+8`; None for a name."""
    if zone.upper() in ("UTC", "GMT", "Z"):
        return 0
    found = _FIXED.match(zone.strip())
    if found is None:
        return None
    seconds = int(found[2]) * 3600 + int(found[3] or 0) * 60
    if seconds > 14 * 3600:
        raise BadInput(f"time zone {zone!r} is more than 14 hours from UTC")
    return -seconds if found[1] == "-" else seconds


def local_offsets(utc: np.ndarray, zone: str) -> np.ndarray:
    """Seconds from UTC to the clock of this zone at these moments."""
    fixed = fixed_offset(zone)
    if fixed is not None:
        return np.full(len(utc), fixed, np.int64)
    import polars as pl

    moments = pl.from_epoch(pl.Series("t", utc, dtype=pl.Int64), time_unit="s").dt.replace_time_zone("UTC")
    try:
        there = moments.dt.convert_time_zone(zone)
        total = there.dt.base_utc_offset() + there.dt.dst_offset()
    except (pl.exceptions.PolarsError, ValueError):
        raise BadInput(
            f'"{zone}" is no time zone; write a name such as "Asia/Shanghai" or an offset such as "+08:00"'
        ) from None
    return total.dt.total_seconds().to_numpy().astype(np.int64)


def read_times(column: pl.Series, zone: str) -> Times:
    """Text, timestamps or epoch numbers; what names no zone of its own is read in `zone`."""
    import polars as pl

    if column.dtype == pl.Null:
        column = column.cast(pl.String)
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Datetime):
        return _stamps(column.dt.epoch("s"), column.dtype.time_zone, zone)
    if column.dtype.is_numeric():
        return _epochs(column, zone)
    if column.dtype != pl.String:
        raise BadInput(f'column "{column.name}" of type {column.dtype} holds no times')
    numbers = column.cast(pl.Float64, strict=False)
    if len(column) and numbers.null_count() == column.null_count():
        return _epochs(numbers, zone)
    times = _texts(column, zone)
    if numbers.null_count() == len(column):
        return times
    return times.with_epochs(_epochs(numbers, zone))


def _stamps(column: pl.Series, own: str | None, zone: str) -> Times:
    """Seconds in the zone that the column has of its own, or else in this one."""
    seconds = column.fill_null(0).to_numpy().astype(np.int64)
    valid, none = column.is_not_null().to_numpy(), np.zeros(len(column), bool)
    utc = seconds if own is not None else _to_utc(seconds, zone)
    return Times(utc, local_offsets(utc, own or zone), none | (own is not None), valid, none)


def _epochs(column: pl.Series, zone: str) -> Times:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by their size."""
    values = column.fill_null(float("nan")).to_numpy().astype(np.float64)
    valid = np.isfinite(values)
    typical = float(np.median(np.abs(values[valid]))) if valid.any() else 0.0
    scale = next(scale for limit, scale in _EPOCH_SCALE if typical < limit)
    moment = np.floor(np.where(valid, values, 0) / scale)
    own = np.ones(len(values), bool)  # an epoch is in UTC by definition
    limits = np.array([limit for limit, _ in _EPOCH_SCALE])
    unit = np.searchsorted(limits, np.abs(np.where(valid, values, 0)), side="right")
    # Numbers below that are early moments in any unit, so nothing is known of them.
    other = valid & (np.abs(values) >= _SURE_EPOCH) & (unit != np.searchsorted(limits, typical, side="right"))
    valid &= other | (np.abs(moment) < LATEST)
    utc = np.where(valid & ~other, moment, 0).astype(np.int64)
    unreadable = ~valid & column.is_not_null().to_numpy()
    return Times(utc, local_offsets(utc, zone), own, valid, unreadable, other_unit=other, epoch=valid)


def _texts(column: pl.Series, zone: str) -> Times:
    import polars as pl

    present = (column.is_not_null() & (column.str.strip_chars() != "")).fill_null(False).to_numpy()
    text = column.str.strip_chars().str.replace(r"^(\d{4}.\d\d.\d\d)T", "$1 ")
    if text.str.contains(r"^[A-Z][a-z]{2} [A-Z][a-z]{2} ").any():
        stamped = text.str.to_datetime(_WITH_ZONE, strict=False)
        valid = stamped.is_not_null().to_numpy()
        utc = stamped.dt.epoch("s").fill_null(0).to_numpy().astype(np.int64)
        offset = local_offsets(utc, zone)
        return Times(utc, offset, valid.copy(), valid, present & ~valid)
    suffix = text.str.extract(_SUFFIX, 1)
    suffix = pl.select(pl.when(text.str.len_chars() > 10).then(suffix).otherwise(None)).to_series()
    bare = pl.select(pl.when(suffix.is_not_null()).then(text.str.replace(_SUFFIX, "")).otherwise(text)).to_series()
    bare = bare.str.strip_chars_end()
    naive = pl.Series("t", [None] * len(column), dtype=pl.Datetime("us"))
    for form in _FORMATS:
        if naive.null_count() == len(column) - int(present.sum()):
            break
        naive = naive.fill_null(bare.str.to_datetime(form, strict=False, time_unit="us"))
    valid = naive.is_not_null().to_numpy()
    seconds = naive.dt.epoch("s").fill_null(0).to_numpy().astype(np.int64)
    own = suffix.is_not_null().to_numpy()
    named = _suffix_seconds(suffix)
    utc = np.where(own, seconds - named, _to_utc(seconds, zone))
    offset = np.where(own, named, local_offsets(utc, zone))
    return Times(utc, offset, own & valid, valid, present & ~valid, each=True)


def _suffix_seconds(suffix: pl.Series) -> np.ndarray:
    """+08:00 -> 28800; missing -> 0."""
    filled = suffix.fill_null("Z")
    names, inverse = np.unique(filled.to_numpy().astype(np.str_), return_inverse=True)
    return np.array([fixed_offset(str(name)) or 0 for name in names], np.int64)[inverse]


def _to_utc(seconds: np.ndarray, zone: str) -> np.ndarray:
    """Readings of the wall clock of a zone, in UTC; an hour that was skipped counts as the one before it."""
    fixed = fixed_offset(zone)
    if fixed is not None:
        return seconds - fixed
    guess = seconds - local_offsets(seconds, zone)
    return seconds - local_offsets(guess, zone)


def day_times(
    user: np.ndarray, day: np.ndarray, minute: np.ndarray, weekday: np.ndarray | None, zone: str
) -> tuple[np.ndarray, np.ndarray]:
    """Day number and minute of the day -> (UTC seconds, offset). The date is invented, the weekday is not.

    Each user's day numbers are shifted by less than a week, so that a day falls on its weekday; without a
    weekday column day 0 is a Monday. The numbers count days of the clock of `zone`, which has to be a fixed
    offset because there is no date to look its summer time up.
    """
    fixed = fixed_offset(zone)
    if fixed is None:
        raise BadInput(
            f'day numbers carry no date, so their zone has to be an offset such as "+08:00", not "{zone}"'
        )
    first = (np.zeros(len(day), np.int64) if weekday is None else weekday.astype(np.int64) - day) % 7
    _, lead = np.unique(user, return_index=True)
    shift = first[lead][np.searchsorted(np.unique(user), user)] + MONDAY
    seconds = (day.astype(np.int64) + shift) * DAY + minute.astype(np.int64) * MINUTE
    return seconds - fixed, np.full(len(day), fixed, np.int64)


Moments = tuple[np.ndarray, np.ndarray, np.ndarray]  # start, end, offset; all [N]


def moments(columns: Columns, tz: str, local: str, user: np.ndarray, findings: Findings) -> Moments:
    """The end is the start plus the duration where a duration is known."""
    if "start_day" in columns and "start_min" in columns and not {"time", "start"} & set(columns.roles):
        start, end, offset = _day_form(columns, tz, user, findings)
    else:
        start, end, offset = _written(columns, tz, local, user, findings)
    if "duration" in columns:
        minutes, broken = numbers(columns["duration"])
        usable = np.abs(minutes) < _LONGEST
        unusable = broken | (np.isfinite(minutes) & ~usable)
        findings.repaired("durations that are no numbers of minutes", unusable, "row kept without its duration")
        end = np.where(usable, start + np.where(usable, minutes * MINUTE, 0).astype(np.int64), end)
    if "offset" in columns:
        minutes = columns.integers("offset", offset // MINUTE)
        offset = np.where(np.abs(minutes) * MINUTE <= DAY, minutes * MINUTE, offset)
    if local:
        if "start_day" in columns and fixed_offset(local) is None:
            raise BadInput(f'day numbers carry no date, so local="{local}" has to be an offset such as "+08:00"')
        offset = local_offsets(start, local)
    return start, end, offset


def _written(columns: Columns, tz: str, local: str, user: np.ndarray, findings: Findings) -> Moments:
    """Times as text, timestamps or epochs."""
    times = read_times(columns["start" if "start" in columns else "time"], tz)
    rule = "row dropped (write 2024-05-31 18:05:00, 31.05.2024 18:05 or an epoch)"
    findings.dropped("times that cannot be read", times.unreadable, rule)
    findings.dropped("rows without a time", ~times.valid & ~times.unreadable)
    _one_unit(times, "times", findings)
    _no_days(times, user, findings)
    ends = read_times(columns["end"], tz) if "end" in columns else None
    if ends is not None:
        rule = "the stay ends when it begins"
        findings.repaired("end times that cannot be read", times.valid & ends.unreadable, rule)
        _one_unit(ends, "end times", findings)
        if findings.visit is None:  # in JSON a visit may have no end
            findings.repaired("rows without an end", times.valid & ~ends.valid & ~ends.unreadable, rule)
    _zones(times, ends, tz, local, findings)
    end = times.utc if ends is None else np.where(ends.valid, ends.utc, times.utc)
    return times.utc, end, times.offset


def _one_unit(times: Times, what: str, findings: Findings) -> None:
    rule = "write all of them in seconds, or all in milliseconds"
    other = times.valid & times.other_unit
    findings.refused_times(f"{what} that are epochs in another unit than most", other, rule)


def _no_days(times: Times, user: np.ndarray, findings: Findings) -> None:
    """Numbers near zero are moments of the first of January 1970, or days; days repeat or have fractions."""
    small = times.epoch & times.valid & (np.abs(times.utc) < _DAYS)
    if not small.any() or (times.epoch & ~small).any():
        return
    again = np.zeros(len(user), bool)
    again[1:] = (user[1:] == user[:-1]) & (times.utc[1:] == times.utc[:-1])
    rule = (
        "seconds since 1970 are read here; name a day number and a minute with --columns start_day=…,start_min=…"
    )
    if again.sum() * 4 > len(user):
        findings.refused_times("times that look like day numbers", small, rule)
    else:
        findings.repaired("times on the first days of 1970", small, rule)


def _zones(times: Times, ends: Times | None, tz: str, local: str, findings: Findings) -> None:
    """Refuse times without a zone among those with one, ends too; name zones that differ between rows."""
    columns = [("times", times)] if ends is None else [("times", times), ("end times", ends)]
    if any((column.own & column.valid).any() for _, column in columns):
        for what, column in columns:
            bare = ~column.own & column.valid & ~column.epoch
            problem = f"mixed time zones: {what} without a zone among times that name one"
            if findings.visit is None:
                rule = "name the zone in every row, of starts and of ends, or in none"
                findings.refused_times(problem, bare, rule)
            else:  # lines of JSON stand alone
                findings.repaired(problem, bare, f"read in the zone {tz}")
    hours = f"hours are those of {local}" if local else "hours are local to it"
    if times.each and times.own.any() and len(np.unique(times.offset[times.own])) > 1:
        zones, number = np.unique(times.offset, return_inverse=True)
        usual = zones[np.bincount(number[times.own]).argmax()]
        other = times.own & (times.offset != usual)
        findings.repaired("mixed time zones", other, f"each time was read in its own zone; {hours}")
    if ends is not None and times.each and ends.each:
        apart = times.own & ends.own & (times.offset != ends.offset)
        hours = hours if local else "hours are those of the start"
        findings.repaired("ends in another zone than their start", apart, f"each read in its own zone; {hours}")


def _day_form(columns: Columns, tz: str, user: np.ndarray, findings: Findings) -> Moments:
    day, minute = numbers(columns["start_day"])[0], numbers(columns["start_min"])[0]
    missing = ~(np.abs(day) < _LONGEST) | ~np.isfinite(minute)
    findings.dropped("rows without a time", missing)
    outside = ~missing & ((minute < 0) | (minute >= 1440))
    findings.refused("minutes of the day outside 0..1439", outside, "start_min counts from midnight")
    day, minute = (np.where(missing | outside, 0, column).astype(np.int64) for column in (day, minute))
    weekday = columns.integers("weekday", day) if "weekday" in columns else None
    start, offset = day_times(user, day, minute, weekday, tz)
    if weekday is not None:
        apart = ~missing & ((((start + offset) // DAY + 3) % 7) != weekday)
        findings.repaired("weekdays that do not follow from the day number", apart, "the day number counts")
    end = start
    if "end_day" in columns and "end_min" in columns:
        last_day = columns.integers("end_day", day)
        last_minute = columns.integers("end_min", minute)
        end = start + (last_day - day) * DAY + (last_minute - minute) * MINUTE
    return start, end, offset
