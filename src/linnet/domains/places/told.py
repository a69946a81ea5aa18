"""One visit of a history, as a person or a program tells it in JSON: every field is checked and named when wrong.

No message repeats a coordinate. Ids are read as tables read them: whole numbers or texts, and a text such as "12"
is the number 12 where the run's ids are numbers (a number is a text where they are texts).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from linnet.domains.places import cells as s2
from linnet.domains.places import clock
from linnet.domains.places.samples_file import LONGEST
from linnet.domains.places.visits import DAY, MINUTE
from linnet.errors import BadInput

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0+)?")
_PER_VISIT = ("h_start_min", "h_duration", "h_day_diff", "h_weekday")


@dataclass(frozen=True)
class Told:
    place: int | str
    start: int  # seconds in UTC
    end: int
    offset: int
    cells: dict[int, int]


def zone_of(tz: str) -> timezone | ZoneInfo:
    fixed = clock.fixed_offset(tz)
    if fixed is not None:
        return timezone(timedelta(seconds=fixed))
    clock.known_zone(tz)
    return ZoneInfo(tz)


def read_id(where: str, given: Any, kind: type) -> int | str:
    """The name of a place or a user, as the run writes its own: `kind` is int or str."""
    if isinstance(given, float) and given.is_integer() and abs(given) < 2**53:
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        shown = f" ({given})" if isinstance(given, float) else ""
        raise BadInput(f"{where}: an id is a text or a whole number, not {_kind(given)}{shown}")
    if isinstance(given, str):
        given = given.strip()
        if not given:
            raise BadInput(f"{where}: an id is a text or a whole number, and this one is empty")
        return int(given.partition(".")[0]) if kind is int and _WHOLE.fullmatch(given) else given
    return given if kind is int else str(given)


def read_visits(
    where: str, record: dict[str, Any], zone: timezone | ZoneInfo, local: str, levels: Sequence[int], kind: type
) -> list[Told]:
    given = record.get("visits")
    if not isinstance(given, list) or not given:
        raise BadInput(f'{where} needs "visits", a list with at least one visit, or the published sample form')
    return [
        _visit(f"{where}, visit {number}", visit, zone, local, levels, kind)
        for number, visit in enumerate(given, 1)
    ]


def _visit(
    where: str, visit: Any, zone: timezone | ZoneInfo, local: str, levels: Sequence[int], kind: type
) -> Told:
    if not isinstance(visit, dict) or "place" not in visit:
        raise BadInput(f'{where}: a visit needs a "place"')
    place = read_id(f"{where}, place", visit["place"], kind)
    field = "start" if "start" in visit else "time"
    if visit.get(field) is None:
        raise BadInput(f'{where}: a visit needs a "start" or a "time"')
    start, offset = _moment(f"{where}, {field}", visit[field], zone)
    if local:
        offset = int(clock.local_offsets(np.array([start]), local)[0])
    end = start
    if visit.get("end") is not None:
        end = _moment(f"{where}, end", visit["end"], zone)[0]
    elif visit.get("duration") is not None:
        minutes = _number(f"{where}, duration", visit["duration"], "minutes")
        if abs(minutes) > 1e9:
            raise BadInput(f"{where}, duration: {minutes:g} minutes are more than a life has")
        end = start + int(minutes * MINUTE)
    if end < start:
        raise BadInput(f"{where} ends before it begins")
    return Told(place, start, end, offset, _cells(where, visit, levels))


def _cells(where: str, visit: dict[str, Any], levels: Sequence[int]) -> dict[int, int]:
    """The cells around the visit's coordinates, which are not kept and not shown."""
    given = [name for name in ("lon", "lat") if visit.get(name) is not None]
    if not given:
        return {}
    if len(given) == 1:
        raise BadInput(f"{where} has {given[0]} alone; coordinates are lon and lat")
    lon, lat = (_number(f"{where}, {name}", visit[name], "degrees", shown=False) for name in ("lon", "lat"))
    if not (abs(lon) <= 180 and abs(lat) <= 90):
        turned = "; are lon and lat swapped?" if abs(lat) <= 180 and abs(lon) <= 90 else ""
        raise BadInput(f"{where}: impossible coordinates{turned}")
    leaf = s2.cell_ids(np.array([lon]), np.array([lat]))
    return {level: int(s2.parents(leaf, level)[0]) for level in levels}


def _number(where: str, given: Any, unit: str, *, shown: bool = True) -> float:
    try:
        value = math.nan if isinstance(given, bool | list | dict) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        said = f", not {given!r}" if shown and isinstance(given, str | float) else ""
        raise BadInput(f"{where}: a number of {unit} is needed{said}")
    return value


def _moment(where: str, given: Any, zone: timezone | ZoneInfo) -> tuple[int, int]:
    """(seconds in UTC, offset) of an epoch or a text."""
    wrong = BadInput(f"{where}: {given!r} is no time; write 2024-05-31T18:05:00 or an epoch in seconds")
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise BadInput(f"{where}: {_kind(given)} is no time; write 2024-05-31T18:05:00 or an epoch in seconds")
    try:
        if isinstance(given, str):
            moment = datetime.fromisoformat(given)
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
        else:
            moment = datetime.fromtimestamp(float(given), UTC).astimezone(zone)
        offset = moment.utcoffset()
        return int(moment.timestamp()), int(offset.total_seconds()) if offset else 0
    except (ValueError, OverflowError, OSError):
        raise wrong from None


def _kind(given: Any) -> str:
    """What JSON calls this."""
    if given is None:
        return "null"
    names = {bool: "true or false", list: "a list", dict: "an object", float: "a fraction"}
    return names.get(type(given), type(given).__name__)


def read_published(where: str, record: dict[str, Any], kind: type) -> list[Told]:
    """The history of a published sample; its days count from the target's day."""
    names = ("h_place", *_PER_VISIT)
    missing = [name for name in names if name not in record]
    if missing:
        raise BadInput(f"{where} lacks {', '.join(missing)}")
    cells = [name for name in record if name.startswith("h_s2_l") and name[6:].isdigit()]
    for name in (*names, *cells):
        if not isinstance(record[name], list):
            raise BadInput(f"{where}, {name}: a list is needed, not {_kind(record[name])}")
    lengths = {name: len(record[name]) for name in (*names, *cells)}
    if len(set(lengths.values())) != 1:
        raise BadInput(f"{where}: the lists of its history differ in length: {lengths}")
    if not record["h_place"]:
        raise BadInput(f"{where} has an empty history")
    columns = {name: [_whole(f"{where}, {name}", value) for value in record[name]] for name in _PER_VISIT}
    tokens = {int(name[6:]): [int(cell) for cell in s2.from_tokens(record[name])] for name in cells}
    # The last visit's weekday fixes the week; only differences of days matter beside it.
    base = 7 * 1000 + (columns["h_weekday"][-1] - 3) % 7 + columns["h_day_diff"][-1]
    found = []
    for at, name in enumerate(record["h_place"]):
        start = (base - columns["h_day_diff"][at]) * DAY + columns["h_start_min"][at] * MINUTE
        end = start + min(columns["h_duration"][at], LONGEST) * MINUTE
        place = read_id(f"{where}, h_place", name, kind)
        found.append(Told(place, start, end, 0, {level: ids[at] for level, ids in tokens.items()}))
    return sorted(found, key=lambda visit: visit.start)


def _whole(where: str, given: Any) -> int:
    value = _number(where, given, "days or minutes")
    if abs(value) > 10**7:
        raise BadInput(f"{where}: {value:g} is no number of days or minutes")
    return int(value)
