"""Histories to predict from, one JSON object a line: `{"id", "visits": [{"place", "start", …}, …]}`.

A visit has a `place`, a `start` (or `time`: text or an epoch; text without a zone is read in the run's `tz`), and
may have an `end` or a `duration` in minutes, `lon` and `lat`. The published sample form is read as well: then a
record's history is all that is known. Every record stands alone: what another line says is not used for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from linnet.domains.places import cells as s2
from linnet.domains.places import clock
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.samples_file import LONGEST, json_lines
from linnet.domains.places.splits import Samples
from linnet.domains.places.visits import DAY, MINUTE, Visits
from linnet.errors import BadInput


@dataclass(frozen=True)
class Histories:
    """Record i is user segment i of the table, whose last row is a stand-in for the visit to come."""

    ids: tuple[Any, ...]
    visits: Visits
    samples: Samples


@dataclass(frozen=True)
class _Visit:
    place: int | str
    start: int  # seconds in UTC
    end: int
    offset: int
    cells: dict[int, int]


def read_histories(path: Path, codec: PlacesCodec, *, tz: str = "UTC", local: str = "") -> Histories:
    """All records of a file, in its order. Places that the run knows are in the table beside those of the file."""
    levels = codec.levels
    zone = _zone(tz)
    ids, users, rows = [], [], []
    for where, record in json_lines(path):
        visits = _published(where, record) if "h_place" in record else _visits(where, record, zone, local, levels)
        ids.append(record.get("id", record.get("sample_id")))
        users.append(record.get("user"))
        rows.append(sorted(visits, key=lambda visit: visit.start))
    if not rows:
        raise BadInput(f"{path} holds no history")
    return _table(ids, users, rows, codec)


def _zone(tz: str) -> timezone | ZoneInfo:
    fixed = clock.fixed_offset(tz)
    if fixed is not None:
        return timezone(timedelta(seconds=fixed))
    clock.known_zone(tz)
    return ZoneInfo(tz)


def _visits(
    where: str, record: dict[str, Any], zone: timezone | ZoneInfo, local: str, levels: Sequence[int]
) -> list[_Visit]:
    given = record.get("visits")
    if not isinstance(given, list) or not given:
        raise BadInput(f'{where} needs "visits", a list with at least one visit, or the published sample form')
    return [
        _visit(f"{where}, visit {number}", visit, zone, local, levels) for number, visit in enumerate(given, 1)
    ]


def _visit(where: str, visit: Any, zone: timezone | ZoneInfo, local: str, levels: Sequence[int]) -> _Visit:
    if not isinstance(visit, dict) or "place" not in visit:
        raise BadInput(f'{where}: a visit needs a "place"')
    moment = visit.get("start", visit.get("time"))
    if moment is None:
        raise BadInput(f'{where}: a visit needs a "start" or a "time"')
    start, offset = _moment(where, moment, zone)
    if local:
        offset = int(clock.local_offsets(np.array([start]), local)[0])
    end = start
    if "end" in visit:
        end = _moment(where, visit["end"], zone)[0]
    elif "duration" in visit:
        end = start + int(float(visit["duration"]) * MINUTE)
    if end < start:
        raise BadInput(f"{where} ends before it begins")
    found: dict[int, int] = {}
    if "lon" in visit and "lat" in visit:
        lon, lat = float(visit["lon"]), float(visit["lat"])
        if not (abs(lon) <= 180 and abs(lat) <= 90):
            raise BadInput(f"{where}: impossible coordinates")
        leaf = s2.cell_ids(np.array([lon]), np.array([lat]))
        found = {level: int(s2.parents(leaf, level)[0]) for level in levels}
    return _Visit(visit["place"], start, end, offset, found)


def _moment(where: str, given: Any, zone: timezone | ZoneInfo) -> tuple[int, int]:
    """(seconds in UTC, offset) of an epoch or a text."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        moment = datetime.fromtimestamp(float(given), UTC).astimezone(zone)
    else:
        try:
            moment = datetime.fromisoformat(str(given))
        except ValueError:
            raise BadInput(f"{where}: {given!r} is no time; write 2024-05-31T18:05:00 or an epoch") from None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
    offset = moment.utcoffset()
    return int(moment.timestamp()), int(offset.total_seconds()) if offset else 0


def _published(where: str, record: dict[str, Any]) -> list[_Visit]:
    """The history of a published sample; its days count from the target's day."""
    names = ("h_place", "h_start_min", "h_duration", "h_day_diff", "h_weekday")
    missing = [name for name in names if name not in record]
    if missing:
        raise BadInput(f"{where} lacks {', '.join(missing)}")
    if not record["h_place"]:
        raise BadInput(f"{where} has an empty history")
    tokens = {
        int(name[6:]): [int(cell) for cell in s2.from_tokens(record[name])]
        for name in record
        if name[:6] == "h_s2_l"
    }
    # The last visit's weekday fixes the week; only differences of days matter beside it.
    base = 7 * 1000 + (int(record["h_weekday"][-1]) - 3) % 7 + int(record["h_day_diff"][-1])
    found = []
    for at, place in enumerate(record["h_place"]):
        start = (base - int(record["h_day_diff"][at])) * DAY + int(record["h_start_min"][at]) * MINUTE
        end = start + min(int(record["h_duration"][at]), LONGEST) * MINUTE
        found.append(_Visit(place, start, end, 0, {level: cells[at] for level, cells in tokens.items()}))
    return found


def _table(ids: list[Any], users: list[Any], rows: list[list[_Visit]], codec: PlacesCodec) -> Histories:
    """One table; each record is a user of its own and ends with a stand-in for the next visit."""
    flat = [visit for visits in rows for visit in (*visits, visits[-1])]
    lengths = np.array([len(visits) for visits in rows])
    number = {name: at for at, name in enumerate(codec.places)}
    place = np.array([number.setdefault(visit.place, len(number)) for visit in flat])
    places = np.empty(len(number), object)
    places[:] = list(number)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])
    end = np.array([visit.end for visit in flat], np.int64)
    start = np.array([visit.start for visit in flat], np.int64)
    target = starts[1:] - 1
    start[target], end[target] = end[target], end[target]
    cells = {}
    for level in codec.levels:
        of_place = np.zeros(len(places), np.uint64)
        for at, visit in zip(place.tolist(), flat, strict=True):
            of_place[at] = visit.cells.get(level, int(of_place[at]))
        known = codec.cells_of_places(level)
        of_place[: len(known)] = np.where(known > 0, known, of_place[: len(known)])
        cells[level] = of_place
    table = Visits(
        np.repeat(np.arange(len(rows)), lengths + 1).astype(np.int32), place.astype(np.int32), start, end,
        np.array([visit.offset for visit in flat], np.int32), np.arange(len(flat)),
        _user_names(users), places, cells,
    )  # fmt: skip
    history = np.delete(np.arange(len(flat)), target).astype(np.int32)
    samples = Samples(
        target, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), history, starts[:-1], starts[:-1],
        np.full(len(rows), 2, np.int8),
    )  # fmt: skip
    return Histories(tuple(ids), table, samples)


def _user_names(users: list[Any]) -> np.ndarray:
    """The user of each record; None where it names nobody. Kept as objects, since they need not be sorted here."""
    found = np.empty(len(users), object)
    found[:] = users
    return found
