"""Which column of a table plays which role: named by the user, or guessed from common names and shown.

Roles: user, time, start, end, duration, start_day, start_min, end_day, end_min, weekday, place, lon, lat,
offset (minutes from UTC to local), split, target, id, legacy, and s2_lNN for cells of level NN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from linnet.errors import BadInput, nearest

Shape = Literal["fixes", "stays", "check-ins"]

NAMES: dict[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "uid", "user_name", "username", "person", "agent", "agent_id"),
    "time": (
        "time", "timestamp", "datetime", "ts", "tracked_at", "checkin_time", "check_in_time",
        "utc_time", "utctimestamp", "utc_timestamp", "date_time", "created_at", "checked_in_at",
    ),
    "start": ("started_at", "start_time", "start", "t_start", "arrival", "arrived_at", "begin"),
    "end": ("finished_at", "end_time", "end", "t_end", "departure", "departed_at", "finish", "ended_at"),
    "duration": ("duration_min", "duration", "duration_minutes", "minutes", "stay_min"),
    "start_day": ("start_day", "day"),
    "start_min": ("start_min", "start_minute", "minute"),
    "end_day": ("end_day",),
    "end_min": ("end_min", "end_minute"),
    "weekday": ("weekday", "day_of_week", "dow"),
    "place": (
        "place", "place_id", "location_id", "location", "loc", "loc_id", "poi", "poi_id", "poiid", "venue",
        "venue_id", "venueid", "business_id", "spot", "cluster",
    ),
    "lon": ("lon", "lng", "longitude", "long", "x"),
    "lat": ("lat", "latitude", "y"),
    "offset": ("timezoneoffset", "timezone_offset", "tz_offset", "utc_offset", "offset_min"),
    "split": ("split", "part", "fold"),
    "target": ("valid_target", "is_target"),
    "id": ("visit_id", "id", "checkin_id", "stay_id", "sp_id"),
    "legacy": ("legacy_id",),
}  # fmt: skip
_CELL = re.compile(r"^(?:s2_?)?(?:l|level_?)(\d{1,2})$", re.IGNORECASE)
_CELL_ROLE = re.compile(r"^s2_l(\d{1,2})$")


@dataclass(frozen=True)
class Columns:
    """role -> name of the column; `guessed` are the roles that the user did not name."""

    roles: Mapping[str, str]
    guessed: frozenset[str]

    def __contains__(self, role: str) -> bool:
        return role in self.roles

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    @property
    def cell_levels(self) -> dict[int, str]:
        """level -> column."""
        found = {role: _CELL_ROLE.match(role) for role in self.roles}
        return {int(match[1]): self.roles[role] for role, match in found.items() if match}

    @property
    def shape(self) -> Shape:
        """What one row is: a GPS fix, a stay with a begin and an end, or a check-in."""
        if "place" not in self and not {"end", "duration", "end_day"} & set(self.roles):
            return "fixes"
        return "stays" if {"end", "duration", "end_day"} & set(self.roles) else "check-ins"

    def shown(self) -> str:
        """user=uid, time=ts, ... with a mark at what was guessed; what a person can paste back."""
        return ", ".join(f"{role}={name}" for role, name in self.roles.items())


def parse_mapping(text: str) -> dict[str, str]:
    """`time=ts,place=venue` as it comes from the command line."""
    mapping = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        role, equals, name = item.partition("=")
        if not equals or not name:
            raise BadInput(f'cannot read "{item}" as a column; write role=column, such as time=ts,place=venue')
        mapping[role.strip()] = name.strip()
    return mapping


def find_columns(present: Sequence[str], named: Mapping[str, str], where: str) -> Columns:
    """Give every role its column; refuse unknown roles and tables that lack what every shape needs."""
    for role, name in named.items():
        if role not in NAMES and not _CELL_ROLE.match(role):
            raise BadInput(f'there is no role "{role}" for a column{nearest(role, NAMES)}')
        if name not in present:
            raise BadInput(f'{where} has no column "{name}" (for {role}){nearest(name, present)}')
    by_lower = {name.lower(): name for name in reversed(present) if name not in named.values()}
    roles = dict(named)
    for role, usual in NAMES.items():
        found_names = [by_lower[name] for name in usual if name in by_lower]
        if role not in roles and found_names:
            roles[role] = found_names[0]
    for name in present:
        match = _CELL.match(name)
        if match and name not in roles.values() and f"s2_l{int(match[1])}" not in roles:
            roles[f"s2_l{int(match[1])}"] = name
    if "time" in roles and "start" in roles and not ("time" in named and "start" in named):
        roles.pop("start" if "time" in named else "time")
    ordered = {role: roles[role] for role in sorted(roles, key=lambda r: (r not in NAMES, _position(r)))}
    found = Columns(ordered, frozenset(set(ordered) - set(named)))
    _complete(found, present, where)
    return found


def _position(role: str) -> int:
    return list(NAMES).index(role) if role in NAMES else 0


def _complete(columns: Columns, present: Sequence[str], where: str) -> None:
    missing = []
    if "user" not in columns:
        missing.append("user")
    if not {"time", "start"} & set(columns.roles) and not {"start_day", "start_min"} <= set(columns.roles):
        missing.append("time (or start, or start_day and start_min)")
    if "place" not in columns and not {"lon", "lat"} <= set(columns.roles):
        missing.append("place (or lon and lat)")
    if missing:
        raise BadInput(
            f"{where} lacks {', '.join(missing)}; its columns are {', '.join(present)}. "
            f"Name them, for example --columns user=…,time=…,place=…"
        )
