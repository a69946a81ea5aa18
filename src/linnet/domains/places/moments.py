"""When each row of a visit table begins and ends, and on which clock; what is wrong with the times is named.

Legend: N = rows of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from linnet.domains.places import clock
from linnet.domains.places.columns import Columns
from linnet.domains.places.names import integers, numbers
from linnet.domains.places.problems import Findings
from linnet.domains.places.visits import DAY, MINUTE
from linnet.errors import BadInput

if TYPE_CHECKING:
    import polars as pl

Moments = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # start, end, offset, missing; all [N]


def moments(
    frame: pl.DataFrame, columns: Columns, tz: str, local: str, user: np.ndarray, findings: Findings
) -> Moments:
    """The end is the start plus the duration where a duration is known."""
    if "start_day" in columns and "start_min" in columns and not {"time", "start"} & set(columns.roles):
        start, end, offset, missing = _day_form(frame, columns, tz, user, findings)
    else:
        start, end, offset, missing = _written(frame, columns, tz, local, findings)
    if "duration" in columns:
        minutes = numbers(frame[columns["duration"]])
        end = np.where(np.isfinite(minutes), start + np.nan_to_num(minutes * MINUTE).astype(np.int64), end)
    if "offset" in columns:
        offset = integers(frame, columns, "offset", offset / MINUTE) * MINUTE
    if local:
        offset = _local(start, local, "start_day" in columns)
    return start, end, offset, missing


def _written(frame: pl.DataFrame, columns: Columns, tz: str, local: str, findings: Findings) -> Moments:
    """Times as text, timestamps or epochs."""
    times = clock.read_times(frame[columns["start" if "start" in columns else "time"]], tz)
    findings.refused("times that cannot be read", times.unreadable, "write 2024-05-31 18:05:00 or an epoch")
    findings.mended("rows without a time", ~times.valid & ~times.unreadable, "row dropped")
    _one_unit(times, "times", findings)
    ends = clock.read_times(frame[columns["end"]], tz) if "end" in columns else None
    if ends is not None:
        findings.refused("end times that cannot be read", ends.unreadable, "write them like the starts")
        _one_unit(ends, "end times", findings)
        findings.mended("rows without an end", times.valid & ~ends.valid, "the stay ends when it begins")
    _zones(times, ends, local, findings)
    end = times.utc if ends is None else np.where(ends.valid, ends.utc, times.utc)
    return times.utc, end, times.offset, ~times.valid


def _one_unit(times: clock.Times, what: str, findings: Findings) -> None:
    if times.other_unit is not None:
        rule = "write all of them in seconds, or all in milliseconds"
        findings.refused_times(f"{what} that are epochs in another unit than most", times.other_unit, rule)


def _zones(times: clock.Times, ends: clock.Times | None, local: str, findings: Findings) -> None:
    """Refuse times without a zone among those with one, ends too; name zones that differ between rows."""
    columns = [("times", times)] if ends is None else [("times", times), ("end times", ends)]
    if any((column.own & column.valid).any() for _, column in columns):
        for what, column in columns:
            findings.refused_times(
                f"mixed time zones: {what} without a zone among times that name one",
                ~column.own & column.valid,
                "name the zone in every row, of starts and of ends, or in none",
            )
    hours = f"hours are those of {local}" if local else "hours are local to it"
    if times.each and times.own.any() and len(np.unique(times.offset[times.own])) > 1:
        zones, number = np.unique(times.offset, return_inverse=True)
        usual = zones[np.bincount(number[times.own]).argmax()]
        other = times.own & (times.offset != usual)
        findings.mended("mixed time zones", other, f"each time was read in its own zone; {hours}")
    if ends is not None and times.each and ends.each:
        apart = times.own & ends.own & (times.offset != ends.offset)
        hours = hours if local else "hours are those of the start"
        findings.mended("ends in another zone than their start", apart, f"each read in its own zone; {hours}")


def _local(start: np.ndarray, zone: str, dateless: bool) -> np.ndarray:
    if dateless and clock.fixed_offset(zone) is None:
        raise BadInput(f'day numbers carry no date, so local="{zone}" has to be an offset such as "+08:00"')
    return clock.local_offsets(start, zone)


def _day_form(
    frame: pl.DataFrame, columns: Columns, tz: str, user: np.ndarray, findings: Findings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    day, minute = numbers(frame[columns["start_day"]]), numbers(frame[columns["start_min"]])
    missing = ~np.isfinite(day) | ~np.isfinite(minute)
    findings.mended("rows without a time", missing, "row dropped")
    outside = ~missing & ((minute < 0) | (minute >= 1440))
    findings.refused("minutes of the day outside 0..1439", outside, "start_min counts from midnight")
    day, minute = np.nan_to_num(day).astype(np.int64), np.nan_to_num(minute).astype(np.int64)
    weekday = integers(frame, columns, "weekday", day) if "weekday" in columns else None
    start, offset = clock.day_times(user, day, minute, weekday, tz)
    if weekday is not None:
        apart = ~missing & ((((start + offset) // DAY + 3) % 7) != weekday)
        findings.mended("weekdays that do not follow from the day number", apart, "the day number counts")
    end = start
    if "end_day" in columns and "end_min" in columns:
        last_day = integers(frame, columns, "end_day", day)
        last_minute = integers(frame, columns, "end_min", minute)
        end = start + (last_day - day) * DAY + (last_minute - minute) * MINUTE
    return start, end, offset, missing
