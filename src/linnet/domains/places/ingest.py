"""From files to the visit table: fixes, stays or check-ins in, `Visits` out, with a list of what was mended.

Rules, in this order: rows without user, place or time are dropped; swapped longitude and latitude are refused;
impossible coordinates and ends before starts drop the row; exact duplicates keep their first row; rows are
sorted; where stays of a user overlap, the earlier one ends when the later one begins.
Legend: N = rows of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from linnet.domains.places import cells as s2
from linnet.domains.places import clock, tables
from linnet.domains.places.clusters import ClusterRule, cluster
from linnet.domains.places.columns import Columns, find_columns
from linnet.domains.places.problems import Findings, Problem
from linnet.domains.places.stays import StayRule, detect_stays
from linnet.domains.places.visits import DAY, MINUTE, NO_PART, PARTS, Visits
from linnet.errors import BadInput, nearest

if TYPE_CHECKING:
    import polars as pl

_SPLIT_NAMES = {
    "train": 0,
    "training": 0,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}


class Reading(BaseModel):
    """How a table is read: columns by role, zones of its times and of the people, cells, stays, places."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] = Field(default_factory=dict)
    tz: str = "UTC"  # the zone of times that name none
    local: str = ""  # the zone whose hours and weekdays matter; empty = that of each time
    levels: tuple[int, ...] = (11, 13, 14)
    stays: StayRule = StayRule()
    clusters: ClusterRule = ClusterRule()


@dataclass(frozen=True)
class Ingested:
    visits: Visits
    problems: tuple[Problem, ...]
    columns: Columns
    rows_read: int

    def notes(self) -> tuple[str, ...]:
        """What a person should see before trusting the rest."""
        shown = f"columns ({self.columns.shape}): {self.columns.shown()}"
        guessed = f"guessed: {', '.join(sorted(self.columns.guessed))}" if self.columns.guessed else ""
        return (shown, guessed) if guessed else (shown,)


@dataclass
class _Rows:
    """The table while it is being mended; every array is [N]."""

    user: np.ndarray
    place: np.ndarray  # -1 = still to be found from the coordinates
    start: np.ndarray
    end: np.ndarray
    offset: np.ndarray
    extra: dict[str, np.ndarray]
    users: np.ndarray
    places: np.ndarray
    keep: np.ndarray


def ingest(paths: Sequence[Path], reading: Reading | None = None, *, strict: bool = True) -> Ingested:
    """Read, mend, sort. With `strict`, problems that cannot be mended raise `BadInput`."""
    reading = reading or Reading()
    files = tables.files_of(paths)
    frame = tables.read_tables(files, reading.columns)
    present = [name for name in frame.columns if name not in (tables.LINE, tables.FILE)]
    columns = find_columns(present, reading.columns, str(files[0]))
    findings = Findings(files, frame[tables.FILE].to_numpy(), frame[tables.LINE].to_numpy())
    if len(frame) == 0:
        raise BadInput(f"{files[0]} has a line of names and no rows")
    rows = _raw_rows(frame, columns, reading, findings)
    _mend_rows(rows, columns, findings)
    if strict:
        findings.stop_if_refused()
    visits = _visits(rows, columns, reading, findings, frame)
    if strict:
        findings.stop_if_refused()
    return Ingested(visits, tuple(findings.problems), columns, len(frame))


def _raw_rows(frame: pl.DataFrame, columns: Columns, reading: Reading, findings: Findings) -> _Rows:
    keep = np.ones(len(frame), bool)
    user, users, missing = _names(frame[columns["user"]], "user", findings)
    keep &= ~missing
    if "place" in columns:
        place, places, missing = _names(frame[columns["place"]], "place", findings)
        keep &= ~missing
    else:
        place, places = np.full(len(frame), -1), np.empty(0, np.int64)
    start, end, offset, missing = _when(frame, columns, reading, user, findings)
    keep &= ~missing
    extra: dict[str, np.ndarray] = {}
    if "lon" in columns and "lat" in columns:
        lon, lat = (_numbers(frame[columns[role]]) for role in ("lon", "lat"))
        extra["lon"], extra["lat"] = lon, lat
    extra["id"] = _integers(frame, columns, "id", np.arange(len(frame)))
    if "target" in columns:
        extra["target"] = _integers(frame, columns, "target", np.ones(len(frame))).astype(bool)
    if "split" in columns:
        extra["part"] = _parts(frame[columns["split"]], findings)
    return _Rows(user, place, start, end, offset, extra, users, places, keep)


def _names(column: pl.Series, role: str, findings: Findings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes in the order of the sorted names, the names, and which rows have none."""
    import polars as pl

    if column.dtype.is_float():
        values = column.fill_null(float("nan")).to_numpy()
        finite = np.isfinite(values)
        broken = finite & (values != np.floor(values))
        findings.refused(f"{role} ids with a fraction", broken, "ids are whole numbers or text")
        findings.mended(f"{role} ids written as 12.0", finite & ~broken, "read as 12")
        column = pl.Series(column.name, np.where(finite, values, 0).astype(np.int64)).zip_with(
            pl.Series(finite), pl.Series([None], dtype=pl.Int64)
        )
    missing = column.is_null().to_numpy()
    if column.dtype.is_integer():
        names, codes = np.unique(column.fill_null(0).to_numpy(), return_inverse=True)
        if missing.any():
            names, codes = _without_gaps(names, codes, ~missing)
    else:
        text = column.cast(pl.String).str.strip_chars()
        missing |= (text == "").fill_null(False).to_numpy()
        text = text.zip_with(pl.Series(~missing), pl.Series([None], dtype=pl.String))
        kept = text.drop_nulls().unique().sort()
        names = kept.to_numpy().astype(np.str_)
        codes = text.cast(pl.Enum(kept)).to_physical().cast(pl.Int64).fill_null(0).to_numpy()
    rule = "row dropped (a stay at no place)" if role == "place" else "row dropped"
    findings.mended(f"rows without {role}", missing, rule)
    return codes.astype(np.int64), names, missing


def _without_gaps(names: np.ndarray, codes: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber so that only names that occur in kept rows have numbers; other rows get 0."""
    used = np.zeros(len(names), bool)
    used[codes[kept]] = True
    number = np.cumsum(used) - 1
    return names[used], np.where(kept, number[codes], 0)


def _numbers(column: pl.Series) -> np.ndarray:
    import polars as pl

    return column.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().astype(np.float64)


def _integers(frame: pl.DataFrame, columns: Columns, role: str, default: np.ndarray) -> np.ndarray:
    """A column of numbers; rows that hold none get their default."""
    if role not in columns:
        return default.astype(np.int64)
    values = _numbers(frame[columns[role]])
    return np.where(np.isfinite(values), np.nan_to_num(values), default).astype(np.int64)


def _parts(column: pl.Series, findings: Findings) -> np.ndarray:
    import polars as pl

    lowered = column.cast(pl.String).str.strip_chars().str.to_lowercase().fill_null("").to_numpy().astype(np.str_)
    names, codes = np.unique(lowered, return_inverse=True)
    unknown = [name for name in names if name and name not in _SPLIT_NAMES]
    if unknown:
        findings.refused(
            f'unknown part "{unknown[0]}" in the split column',
            np.isin(lowered, unknown),
            f"parts are {', '.join(PARTS)}{nearest(str(unknown[0]), PARTS)}",
        )
    return np.array([_SPLIT_NAMES.get(str(name), NO_PART) for name in names], np.int8)[codes]


def _when(
    frame: pl.DataFrame, columns: Columns, reading: Reading, user: np.ndarray, findings: Findings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(start, end, offset, missing); the end is the start plus the duration where a duration is known."""
    if "start_day" in columns and "start_min" in columns and not {"time", "start"} & set(columns.roles):
        start, end, offset, missing = _day_form(frame, columns, reading, user, findings)
    else:
        times = clock.read_times(frame[columns["start" if "start" in columns else "time"]], reading.tz)
        findings.refused("times that cannot be read", times.unreadable, "write 2024-05-31 18:05:00 or an epoch")
        mixed = times.own.any() and not times.own[times.valid].all()
        if mixed:
            findings.refused(
                "mixed time zones: times without a zone among times that name one",
                ~times.own & times.valid,
                "name the zone in every row or in none",
            )
        elif times.own.any() and len(np.unique(times.offset[times.valid])) > 1 and not reading.local:
            usual = np.bincount(np.unique(times.offset, return_inverse=True)[1]).argmax()
            other = times.valid & (times.offset != np.unique(times.offset)[usual])
            findings.mended("mixed time zones", other, "each time was read in its own zone; hours are local to it")
        start, offset, missing, end = times.utc, times.offset, ~times.valid, times.utc
        if "end" in columns:
            ends = clock.read_times(frame[columns["end"]], reading.tz)
            findings.refused("end times that cannot be read", ends.unreadable, "write them like the starts")
            findings.mended("rows without an end", times.valid & ~ends.valid, "the stay ends when it begins")
            end = np.where(ends.valid, ends.utc, start)
    if "duration" in columns:
        minutes = _numbers(frame[columns["duration"]])
        end = np.where(np.isfinite(minutes), start + np.nan_to_num(minutes * MINUTE).astype(np.int64), end)
    if "offset" in columns:
        offset = _integers(frame, columns, "offset", offset / MINUTE) * MINUTE
    if reading.local:
        offset = _local(start, reading.local, "start_day" in columns)
    findings.mended("rows without a time", missing, "row dropped")
    return start, end, offset, missing


def _local(start: np.ndarray, zone: str, dateless: bool) -> np.ndarray:
    if dateless and clock.fixed_offset(zone) is None:
        raise BadInput(f'day numbers carry no date, so local="{zone}" has to be an offset such as "+08:00"')
    return clock.local_offsets(start, zone)


def _day_form(
    frame: pl.DataFrame, columns: Columns, reading: Reading, user: np.ndarray, findings: Findings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    day, minute = _numbers(frame[columns["start_day"]]), _numbers(frame[columns["start_min"]])
    missing = ~np.isfinite(day) | ~np.isfinite(minute)
    outside = ~missing & ((minute < 0) | (minute >= 1440))
    findings.refused("minutes of the day outside 0..1439", outside, "start_min counts from midnight")
    day, minute = np.nan_to_num(day).astype(np.int64), np.nan_to_num(minute).astype(np.int64)
    weekday = _integers(frame, columns, "weekday", day) if "weekday" in columns else None
    start, offset = clock.day_times(user, day, minute, weekday, reading.tz)
    if weekday is not None:
        apart = ~missing & ((((start + offset) // DAY + 3) % 7) != weekday)
        findings.mended("weekdays that do not follow from the day number", apart, "the day number counts")
    end = start
    if "end_day" in columns and "end_min" in columns:
        last_day = _integers(frame, columns, "end_day", day)
        last_minute = _integers(frame, columns, "end_min", minute)
        end = start + (last_day - day) * DAY + (last_minute - minute) * MINUTE
    return start, end, offset, missing


def _mend_rows(rows: _Rows, columns: Columns, findings: Findings) -> None:
    """Coordinates and ends; what cannot stay is taken out of `keep`."""
    if "lon" in rows.extra:
        lon, lat = rows.extra["lon"], rows.extra["lat"]
        given = np.isfinite(lon) & np.isfinite(lat)
        impossible = given & ((np.abs(lat) > 90) | (np.abs(lon) > 180))
        turned = impossible & (np.abs(lon) <= 90) & (np.abs(lat) <= 180)
        if turned.sum() > 0.5 * given.sum():
            rule = f"use --columns lon={columns['lat']},lat={columns['lon']}"
            findings.refused("longitude and latitude look swapped", turned, rule)
        else:
            findings.mended("impossible coordinates", impossible, "row dropped")
        nowhere = given & (lon == 0) & (lat == 0)
        findings.mended("coordinates 0, 0", nowhere, "row dropped")
        rows.keep &= ~(impossible | nowhere)
        if "place" not in columns:
            findings.mended("rows without coordinates", ~given & rows.keep, "row dropped")
            rows.keep &= given
    backward = rows.keep & (rows.end < rows.start)
    findings.mended("stays that end before they begin", backward, "row dropped")
    rows.keep &= ~backward


def _visits(rows: _Rows, columns: Columns, reading: Reading, findings: Findings, frame: pl.DataFrame) -> Visits:
    order = _sorted_unique(rows, findings)
    if columns.shape == "fixes":
        return _from_fixes(rows, order, reading, findings)
    place, places, lonlat = rows.place, rows.places, None
    if "place" not in columns:
        found = np.full(len(place), -1)
        found[order] = cluster(
            rows.extra["lon"][order], rows.extra["lat"][order], reading.clusters, rows.user[order]
        )
        findings.mended("stays in no cluster", order[found[order] < 0], "row dropped (a stay at no place)")
        order = order[found[order] >= 0]
        place, places = found, np.arange(found.max() + 1 if len(order) else 0)
    end = _clip_overlaps(rows, order, findings)
    places, codes = _without_gaps_of(places, place[order])
    user_names, users = _without_gaps_of(rows.users, rows.user[order])
    _lonely(users, user_names, order, findings)
    if "lon" in rows.extra:
        lonlat = centres(codes, rows.extra["lon"][order], rows.extra["lat"][order], len(places))
    found_cells = _cells(frame, columns, reading, order, codes, len(places), lonlat, findings)
    optional: dict[str, Any] = {name: rows.extra[name][order] for name in ("part", "target") if name in rows.extra}
    return Visits(
        users.astype(np.int32),
        codes.astype(np.int32),
        rows.start[order],
        end,
        rows.offset[order].astype(np.int32),
        rows.extra["id"][order],
        user_names,
        places,
        found_cells,
        lonlat,
        **optional,
    )


def _without_gaps_of(names: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _without_gaps(names, codes, np.ones(len(codes), bool))


def _sorted_unique(rows: _Rows, findings: Findings) -> np.ndarray:
    """Kept rows by user and time, duplicates left out; ties keep the order of the file."""
    kept = np.flatnonzero(rows.keep)
    order = kept[np.lexsort((rows.start[kept], rows.user[kept]))]
    user, start = rows.user[kept], rows.start[kept]
    back = np.flatnonzero((user[1:] == user[:-1]) & (start[1:] < start[:-1])) + 1
    findings.mended("rows out of the order of time", kept[back], "sorted by user and start")
    lon = np.nan_to_num(rows.extra["lon"]) if "lon" in rows.extra else rows.place
    full = np.lexsort((order, lon[order], rows.end[order], rows.place[order], rows.start[order], rows.user[order]))
    ranked = order[full]
    same = np.ones(max(len(ranked) - 1, 0), bool)
    for column in (rows.user, rows.start, rows.end, rows.place, lon):
        same &= column[ranked[1:]] == column[ranked[:-1]]
    repeated = np.zeros(len(rows.user), bool)
    repeated[ranked[1:][same]] = True
    findings.mended("duplicate rows", repeated, "the first one kept")
    return order[~repeated[order]]


def _clip_overlaps(rows: _Rows, order: np.ndarray, findings: Findings) -> np.ndarray:
    """Ends of the ordered rows, none later than the user's next start."""
    end, start, user = rows.end[order].copy(), rows.start[order], rows.user[order]
    late = np.flatnonzero((user[1:] == user[:-1]) & (end[:-1] > start[1:]))
    findings.mended("overlapping stays", order[late], "the earlier stay ends when the later begins")
    end[late] = start[late + 1]
    return end


def _lonely(users: np.ndarray, names: np.ndarray, order: np.ndarray, findings: Findings) -> None:
    single = np.bincount(users, minlength=len(names)) == 1
    findings.mended("users with one visit", order[single[users]], "kept; they have no history, so no samples")


def centres(codes: np.ndarray, lon: np.ndarray, lat: np.ndarray, places: int) -> np.ndarray:
    """Mean position of the known visits of each place, across the date line too; NaN where none is known."""
    known = np.isfinite(lon) & np.isfinite(lat)
    codes, theta, phi = codes[known], np.radians(lon[known]), np.radians(lat[known])
    x = np.bincount(codes, np.cos(theta), places)
    y = np.bincount(codes, np.sin(theta), places)
    count = np.bincount(codes, minlength=places)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_lat = np.degrees(np.bincount(codes, phi, places) / count)
    mean_lon = np.where(count > 0, np.degrees(np.arctan2(y, x)), np.nan)
    return np.stack([mean_lon, mean_lat], 1)


def _cells(
    frame: pl.DataFrame, columns: Columns, reading: Reading, order: np.ndarray, codes: np.ndarray, places: int,
    lonlat: np.ndarray | None, findings: Findings,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Cells of every place: those of the table, else from the place's centre."""
    found: dict[int, np.ndarray] = {}
    for level, name in columns.cell_levels.items():
        text = frame[name].to_numpy()[order]
        known = np.array([value is not None and str(value) != "" for value in text])
        of_visit = np.zeros(len(order), np.uint64)
        of_visit[known] = s2.from_tokens([str(value) for value in text[known]])
        first = np.full(places, -1)
        first[codes[known][::-1]] = np.flatnonzero(known)[::-1]
        of_place = np.where(first >= 0, of_visit[first], np.uint64(0))
        differing = known & (of_visit != of_place[codes])
        findings.mended(
            f"level-{level} cells that differ within one place", order[differing], "the first one counts"
        )
        found[level] = of_place
    if not found and lonlat is not None:
        known = np.isfinite(lonlat).all(1)
        leaf = np.zeros(places, np.uint64)
        leaf[known] = s2.cell_ids(lonlat[known, 0], lonlat[known, 1])
        found = {
            level: np.where(known, s2.parents(np.where(known, leaf, 1), level), np.uint64(0))
            for level in reading.levels
        }
    whole = np.all([cell > 0 for cell in found.values()], axis=0) if found else np.zeros(0, bool)
    s2.check_tree({level: cell[whole] for level, cell in found.items()})
    return dict(sorted(found.items()))


def _from_fixes(rows: _Rows, order: np.ndarray, reading: Reading, findings: Findings) -> Visits:
    """Fixes -> stays -> places."""
    lon, lat = rows.extra["lon"][order], rows.extra["lat"][order]
    stays = detect_stays(rows.user[order], rows.start[order], lon, lat, reading.stays)
    labels = cluster(stays.lon, stays.lat, reading.clusters, stays.user)
    findings.mended("stays in no cluster", order[stays.first[labels < 0]], "dropped (a stay at no place)")
    kept = labels >= 0
    if not kept.any():
        raise BadInput(
            f"{len(order)} fixes hold no stay of {reading.stays.minutes} minutes at a place visited twice"
        )
    places, codes = _without_gaps_of(np.arange(labels.max() + 1), labels[kept])
    user_names, users = _without_gaps_of(rows.users, stays.user[kept])
    lonlat = centres(codes, stays.lon[kept], stays.lat[kept], len(places))
    leaf = s2.cell_ids(lonlat[:, 0], lonlat[:, 1])
    return Visits(
        users.astype(np.int32),
        codes.astype(np.int32),
        stays.start[kept],
        stays.end[kept],
        rows.offset[order][stays.first[kept]].astype(np.int32),
        np.arange(int(kept.sum())),
        user_names,
        places,
        {level: s2.parents(leaf, level) for level in sorted(reading.levels)},
        lonlat,
    )
