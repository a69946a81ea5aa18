"""Times of a table: text, timestamps, epochs, or a day number and a minute become seconds since 1970.

Every row leaves with two numbers: seconds in UTC, and the offset in seconds that makes them local. A zone is
a name (`Asia/Shanghai`) or a fixed offset (`+08:00`). Nothing is guessed silently: a time without a zone is
read in the zone `tz`, and that is noted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.domains.places.visits import DAY, MINUTE
from linnet.errors import BadInput

if TYPE_CHECKING:
    import polars as pl

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
    other_unit: np.ndarray | None = None  # bool [N]: epochs that only make sense in another unit than most


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

    known_zone(zone)
    moments = pl.from_epoch(pl.Series("t", utc, dtype=pl.Int64), time_unit="s").dt.replace_time_zone("UTC")
    there = moments.dt.convert_time_zone(zone)
    total = there.dt.base_utc_offset() + there.dt.dst_offset()
    return total.dt.total_seconds().to_numpy().astype(np.int64)


def known_zone(zone: str) -> None:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput(
            f'"{zone}" is no time zone; write a name such as "Asia/Shanghai" or an offset such as "+08:00"'
        ) from None


def read_times(column: pl.Series, zone: str) -> Times:
    """Text, timestamps or epoch numbers; what names no zone of its own is read in `zone`."""
    import polars as pl

    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Datetime):
        return _stamps(column, zone)
    if column.dtype.is_numeric():
        return _epochs(column, zone)
    if column.dtype != pl.String:
        raise BadInput(f'column "{column.name}" of type {column.dtype} holds no times')
    numbers = column.cast(pl.Float64, strict=False)
    if len(column) and numbers.null_count() == column.null_count():
        return _epochs(numbers, zone)
    return _texts(column, zone)


def _stamps(column: pl.Series, zone: str) -> Times:
    valid = column.is_not_null().to_numpy()
    aware = column.dtype.time_zone is not None  # type: ignore[attr-defined]
    seconds = column.dt.epoch("s").fill_null(0).to_numpy().astype(np.int64)
    none = np.zeros(len(column), bool)
    if aware:
        return Times(seconds, local_offsets(seconds, str(column.dtype.time_zone)), ~none, valid, none)  # type: ignore[attr-defined]
    utc = _to_utc(seconds, zone)
    return Times(utc, local_offsets(utc, zone), none, valid, none)


def _epochs(column: pl.Series, zone: str) -> Times:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by their size."""
    values = column.fill_null(float("nan")).to_numpy().astype(np.float64)
    valid = np.isfinite(values)
    typical = float(np.median(np.abs(values[valid]))) if valid.any() else 0.0
    scale = next(scale for limit, scale in _EPOCH_SCALE if typical < limit)
    utc = np.where(valid, np.floor(np.where(valid, values, 0) / scale), 0).astype(np.int64)
    own = np.ones(len(values), bool)  # an epoch is in UTC by definition
    limits = np.array([limit for limit, _ in _EPOCH_SCALE])
    unit = np.searchsorted(limits, np.abs(np.where(valid, values, 0)), side="right")
    # Numbers below that are early moments in any unit, so nothing can be said of them.
    other = valid & (np.abs(values) >= _SURE_EPOCH) & (unit != np.searchsorted(limits, typical, side="right"))
    utc = np.where(other, 0, utc)  # in the unit of the rest they may lie beyond every calendar
    unreadable = ~valid & column.is_not_null().to_numpy()
    return Times(utc, local_offsets(utc, zone), own, valid, unreadable, other_unit=other)


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
    # 1970-01-05 was a Monday, day 4 of 1970
    _, lead = np.unique(user, return_index=True)
    shift = first[lead][np.searchsorted(np.unique(user), user)] + 4
    seconds = (day.astype(np.int64) + shift) * DAY + minute.astype(np.int64) * MINUTE
    return seconds - fixed, np.full(len(day), fixed, np.int64)
