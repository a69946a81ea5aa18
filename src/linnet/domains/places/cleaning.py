"""From files to the visit table: fixes, stays or check-ins in, `Visits` out, with a list of what was repaired.

Rules, in this order: rows without user, place or time and lines with more fields than columns are dropped; a
table with longitude and latitude swapped is refused; impossible coordinates and ends before starts drop the row;
a table that would lose more than half of its rows is refused; exact duplicates keep their first row; rows are
sorted; where stays of a user overlap, the earlier one ends when the later one begins. A refusal names everything
else that was found, too. Histories to predict from take the same way, each as a user of its own.
Legend: N = rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from linnet.domains.places import cells as s2
from linnet.domains.places import sources
from linnet.domains.places.columns import (
    Columns,
    Findings,
    Problem,
    Refused,
    find_columns,
    names,
    numbers,
    without_gaps,
)
from linnet.domains.places.times import moments
from linnet.domains.places.visits import NO_PART, PARTS, ClusterRule, StayRule, Visits, cluster, detect_stays
from linnet.errors import BadInput, counted, nearest

if TYPE_CHECKING:
    import polars as pl

_WORDS = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing"))  # for PARTS
_SPLIT_NAMES = {word: number for number, words in enumerate(_WORDS) for word in words}


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
    unused: tuple[str, ...] = ()  # settings that change nothing here, with the reason

    def notes(self) -> tuple[str, ...]:
        """What a person should see before trusting the rest."""
        shown = f"columns ({self.columns.shape}): {self.columns.shown()}"
        guessed = f"guessed: {', '.join(sorted(self.columns.guessed))}" if self.columns.guessed else ""
        return (shown, *filter(None, [guessed]), *self.unused)


@dataclass
class _Rows:
    """The table while it is being repaired; every array is [N]."""

    user: np.ndarray
    place: np.ndarray  # -1 = still to be found from the coordinates
    start: np.ndarray
    end: np.ndarray
    offset: np.ndarray
    extra: dict[str, np.ndarray]
    users: np.ndarray
    places: np.ndarray


def ingest(paths: Sequence[Path], reading: Reading | None = None) -> Ingested:
    """Read, repair, sort. Problems that cannot be repaired raise `Refused`, with all that was found."""
    reading = reading or Reading()
    files = sources.files_of(paths)
    found = clean(files, sources.read_tables(files, reading.columns), reading)
    return replace(found, unused=tuple(_unused(found.columns, reading)))


def _unused(columns: Columns, reading: Reading) -> Iterator[str]:
    usual = Reading()
    if columns.cell_levels and reading.levels != usual.levels:
        yield "data.levels changes nothing: the table has cells of its own"
    if columns.shape != "fixes" and reading.stays != usual.stays:
        yield "data.stays changes nothing: a row is no fix"
    if "place" in columns and reading.clusters != usual.clusters:
        yield "data.clusters changes nothing: the table names its places"


def clean(files: Sequence[Path], frame: pl.DataFrame, reading: Reading, *, alone: bool = False) -> Ingested:
    """The visits of a table. With `alone`, each record of JSON is a user, and a place has a name in it alone."""
    columns = find_columns(frame, reading.columns, str(files[0]))
    if len(frame) == 0:
        raise BadInput(f"{files[0]} has a line of names and no rows")
    findings = Findings.of(files, frame)
    rows = _raw_rows(columns, reading, findings, alone=alone)
    _repair_rows(rows, columns, findings)
    findings.refuse_most()
    if findings.any_refused:
        _look_on(rows, columns, findings)
    findings.stop_if_refused()
    try:
        visits = _visits(rows, columns, reading, findings, alone=alone)
    except BadInput as error:
        raise Refused(findings.problems, str(error)) from None
    findings.stop_if_refused()
    if len(visits) == 0:
        raise Refused(findings.problems, f"none of the {len(frame)} rows is left")
    return Ingested(visits, tuple(findings.problems), columns)


def _look_on(rows: _Rows, columns: Columns, findings: Findings) -> None:
    """Name what is wrong with the other rows of a table that is refused, so that it can be repaired in one go."""
    if findings.doubtful_times or not findings.keep.any():
        return
    order = _sorted_unique(rows, findings)
    if columns.shape == "stays":
        _clip_overlaps(rows, order, findings)


def _raw_rows(columns: Columns, reading: Reading, findings: Findings, *, alone: bool) -> _Rows:
    frame = columns.frame
    if sources.LONGER in frame.columns:
        longer = frame[sources.LONGER].fill_null(False).to_numpy()
        findings.dropped("lines with more fields than columns", longer, "row dropped (which field is which?)")
    if sources.RECORD in frame.columns and (alone or "user" not in columns):
        user = frame[sources.RECORD].to_numpy()
        users = np.arange(user.max(initial=-1) + 1)
    else:
        user, users = names(columns["user"], "user", findings)
    if "place" in columns:
        place, places = names(columns["place"], "place", findings)
        if alone:
            pairs, place = np.unique(user * (len(places) + 1) + place, return_inverse=True)
            places = places[pairs % (len(places) + 1)] if len(places) else places
    else:
        place, places = np.full(len(frame), -1), np.empty(0, np.int64)
    start, end, offset = moments(columns, reading.tz, reading.local, user, findings)
    extra: dict[str, np.ndarray] = {}
    if "lon" in columns and "lat" in columns:
        (extra["lon"], wrong), (extra["lat"], broken) = numbers(columns["lon"]), numbers(columns["lat"])
        broken |= wrong
        if "place" in columns:
            findings.repaired("coordinates that are no numbers", broken, "row kept without its position")
            if broken.sum() * 2 > len(broken):
                findings.refused("most coordinates are no numbers", broken, "write 116.3214 or 116,3214")
        else:
            findings.dropped("coordinates that are no numbers", broken)
    extra["id"] = columns.integers("id", np.arange(len(frame)))
    if "target" in columns:
        extra["target"] = columns.integers("target", np.ones(len(frame))).astype(bool)
    if "split" in columns:
        extra["part"] = _parts(columns["split"], findings)
    return _Rows(user, place, start, end, offset, extra, users, places)


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


def _repair_rows(rows: _Rows, columns: Columns, findings: Findings) -> None:
    """Coordinates and ends."""
    if "lon" in rows.extra:
        lon, lat = rows.extra["lon"], rows.extra["lat"]
        given = np.isfinite(lon) & np.isfinite(lat)
        impossible = given & ((np.abs(lat) > 90) | (np.abs(lon) > 180))
        turned = impossible & _swapped(lon, lat, given & ~impossible)
        if turned.sum() > 0.5 * given.sum():
            rule = f"use --columns lon={columns.roles['lat']},lat={columns.roles['lon']}"
            findings.refused("longitude and latitude look swapped", turned, rule)
            findings.keep &= ~impossible
        else:
            users = len(np.unique(rows.user[turned]))
            rule = f"row dropped (rows of {counted(users, 'user')}); swap the two numbers back to keep them"
            findings.dropped("longitude and latitude look swapped", turned, rule)
            findings.dropped("impossible coordinates", impossible & ~turned)
        findings.dropped("coordinates 0, 0", given & (lon == 0) & (lat == 0))
        if "place" not in columns:
            findings.dropped("rows without coordinates", ~given & findings.keep)
    findings.dropped("stays that end before they begin", findings.keep & (rows.end < rows.start))


def _swapped(lon: np.ndarray, lat: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Rows that are points when read the other way round, near the possible ones where there are any."""
    turned = (np.abs(lon) <= 90) & (np.abs(lat) <= 180)
    if possible.sum() <= turned.sum():
        return turned
    for other, own in ((lat, lon), (lon, lat)):
        turned = turned & (other >= own[possible].min() - 1) & (other <= own[possible].max() + 1)
    return turned


def _visits(rows: _Rows, columns: Columns, reading: Reading, findings: Findings, *, alone: bool) -> Visits:
    order = _sorted_unique(rows, findings)
    fixes, count = columns.shape == "fixes", len(order)
    if fixes:
        order = _stays(rows, order, reading.stays)
    places, lonlat = rows.places, None
    if "place" not in columns:
        found = cluster(rows.extra["lon"][order], rows.extra["lat"][order], reading.clusters, rows.user[order])
        rule = f"{'' if fixes else 'row '}dropped (a stay at no place)"
        findings.dropped("stays in no cluster", order[found < 0], rule)
        rows.place[order], order = found, order[found >= 0]
        places = np.arange(found.max(initial=-1) + 1)
        if fixes and not len(order):
            raise BadInput(
                f"{count:,} fixes hold no stay of {reading.stays.minutes:g} minutes at a place visited twice"
            )
    end = _clip_overlaps(rows, order, findings)
    places, codes = without_gaps(places, rows.place[order])
    user_names, users = without_gaps(rows.users, rows.user[order])
    if not alone:
        single = (np.bincount(users, minlength=len(user_names)) == 1)[users]
        findings.repaired("users with one visit", order[single], "kept; they have no history, so no samples")
    if "lon" in rows.extra:
        lonlat = centres(codes, rows.extra["lon"][order], rows.extra["lat"][order], len(places))
    found_cells = _cells(columns, reading, order, codes, len(places), lonlat, findings)
    optional: dict[str, Any] = {name: rows.extra[name][order] for name in ("part", "target") if name in rows.extra}
    return Visits(
        users.astype(np.int32),
        codes.astype(np.int32),
        rows.start[order],
        end,
        rows.offset[order].astype(np.int32),
        np.arange(len(order)) if fixes else rows.extra["id"][order],
        user_names,
        places,
        found_cells,
        lonlat,
        **optional,
        dated="start_day" not in columns,
    )


def _stays(rows: _Rows, order: np.ndarray, rule: StayRule) -> np.ndarray:
    """Make the first fix of each stay the whole stay; the rows of these."""
    lon, lat = rows.extra["lon"], rows.extra["lat"]
    stays = detect_stays(rows.user[order], rows.start[order], lon[order], lat[order], rule)
    first = order[stays.first]
    rows.end = rows.start.copy()
    rows.end[first], lon[first], lat[first] = stays.end, stays.lon, stays.lat
    return first


def _sorted_unique(rows: _Rows, findings: Findings) -> np.ndarray:
    """Kept rows by user and time, duplicates left out; ties keep the order of the file."""
    kept = np.flatnonzero(findings.keep)
    order = kept[np.lexsort((rows.start[kept], rows.user[kept]))]
    user, start = rows.user[kept], rows.start[kept]
    back = np.flatnonzero((user[1:] == user[:-1]) & (start[1:] < start[:-1])) + 1
    findings.repaired("rows out of the order of time", kept[back], "sorted by user and start")
    where = [np.nan_to_num(rows.extra[name]) for name in ("lon", "lat") if name in rows.extra]
    columns = [rows.user, rows.start, rows.end, rows.place, *where]
    ranked = order[np.lexsort((order, *(column[order] for column in reversed(columns))))]
    same = np.ones(max(len(ranked) - 1, 0), bool)
    for column in columns:
        same &= column[ranked[1:]] == column[ranked[:-1]]
    repeated = np.zeros(len(rows.user), bool)
    repeated[ranked[1:][same]] = True
    findings.dropped("duplicate rows", repeated, "the first one kept")
    return order[~repeated[order]]


def _clip_overlaps(rows: _Rows, order: np.ndarray, findings: Findings) -> np.ndarray:
    """Ends of the ordered rows, none later than the user's next start."""
    end, start, user = rows.end[order].copy(), rows.start[order], rows.user[order]
    late = np.flatnonzero((user[1:] == user[:-1]) & (end[:-1] > start[1:]))
    findings.repaired("overlapping stays", order[late], "the earlier stay ends when the later begins")
    end[late] = start[late + 1]
    return end


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
    columns: Columns, reading: Reading, order: np.ndarray, codes: np.ndarray, places: int,
    lonlat: np.ndarray | None, findings: Findings,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Cells of every place: those of the table, else from the place's centre."""
    found: dict[int, np.ndarray] = {}
    for level, name in columns.cell_levels.items():
        text = columns.frame[name].to_numpy()[order]
        known = np.array([value is not None and str(value) != "" for value in text], bool)
        of_visit = _tokens_of_level(text, known, level, name, order, findings)
        first = np.full(places, -1)
        first[codes[known][::-1]] = np.flatnonzero(known)[::-1]
        of_place = np.where(first >= 0, of_visit[first], np.uint64(0))
        differing = known & (of_visit != of_place[codes])
        findings.repaired(
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
    if not findings.any_refused:
        s2.check_tree({level: cell[whole] for level, cell in found.items()})
    return dict(sorted(found.items()))


def _tokens_of_level(
    text: np.ndarray, known: np.ndarray, level: int, name: str, order: np.ndarray, findings: Findings
) -> np.ndarray:
    """uint64 ids of the cells of one column; what is no token, or one of another level, is refused."""
    ids = np.zeros(len(text), np.uint64)
    ids[known] = s2.read_tokens([str(value) for value in text[known]])
    strange = known & (ids == 0)
    findings.refused(f"{name}: not the token of an S2 cell", order[strange], "up to 16 hexadecimal digits")
    other = known & ~strange & (s2.levels(ids) != level)
    if other.any():
        given = ", ".join(map(str, np.unique(s2.levels(ids[other])).tolist()))
        findings.refused(
            f"{name}: cells of level {given}, not {level}", order[other], f"name the column of level {level}"
        )
    return ids
