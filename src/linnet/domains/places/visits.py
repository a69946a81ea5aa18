"""The visit table, and how it is made of positions: stays of fixes, places of stays.

A visit says who was where from when to when. Rows are ordered by user, then by start. Users and places are small
integers whose names are kept beside them; the numbers follow the sorted names, so they depend on the data alone.
Legend: N = visits, U = users, P = places, F = fixes in the order of user and time, S = stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from linnet.errors import library

MINUTE, DAY = 60, 86_400
LONGEST = 2879  # minutes; stays are capped in the published files, and where their length is a feature
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
PARTS = ("train", "validation", "test")
NO_PART = -1


@dataclass(frozen=True)
class Visits:
    """`start` and `end` are seconds since 1970 in UTC; adding `offset` gives the local clock."""

    user: np.ndarray  # int32 [N]
    place: np.ndarray  # int32 [N]
    start: np.ndarray  # int64 [N]
    end: np.ndarray  # int64 [N]; equal to start where only arrivals are known
    offset: np.ndarray  # int32 [N]
    id: np.ndarray  # int64 [N]: the row's name in its source
    users: np.ndarray  # str or int64 [U], sorted
    places: np.ndarray  # str or int64 [P], sorted
    cells: Mapping[int, np.ndarray] = field(default_factory=dict)  # level -> uint64 [P]; 0 = unknown
    lonlat: np.ndarray | None = None  # float64 [P, 2], NaN = unknown
    part: np.ndarray | None = None  # int8 [N]: index into PARTS, NO_PART = none; None = the source has no split
    target: np.ndarray | None = None  # bool [N]: visits that may be predicted; None = all
    dated: bool = True  # False: days are numbers in the source, and dates are invented

    def __len__(self) -> int:
        return len(self.user)

    @property
    def bounds(self) -> np.ndarray:
        """int64 [U + 1]: the rows of user u are bounds[u] to bounds[u + 1]."""
        return np.searchsorted(self.user, np.arange(len(self.users) + 1)).astype(np.int64)

    def clock(self, *, local: bool = True) -> np.ndarray:
        """Start in seconds on the local (or the UTC) clock."""
        return self.start + self.offset if local else self.start

    def day(self, *, local: bool = True) -> np.ndarray:
        """Calendar days since 1970 of the start."""
        return self.clock(local=local) // DAY

    def minute(self, *, local: bool = True) -> np.ndarray:
        """Minute of the day of the start, 0 to 1439."""
        return self.clock(local=local) % DAY // MINUTE

    def weekday(self, *, local: bool = True) -> np.ndarray:
        """0 = Monday."""
        return (self.day(local=local) + 3) % 7

    @property
    def duration(self) -> np.ndarray:
        """Minutes."""
        return (self.end - self.start) // MINUTE

    def rows(self, chosen: np.ndarray) -> Visits:
        """Only these rows (ascending); users and places keep their numbers."""
        picked: dict[str, np.ndarray | None] = {
            name: None if (column := getattr(self, name)) is None else column[chosen]
            for name in ("user", "place", "start", "end", "offset", "id", "part", "target")
        }
        return replace(self, **picked)  # type: ignore[arg-type]

    def without(self, gone: np.ndarray) -> Visits:
        """Without these users (bool [U]), and without the places that nobody else visited."""
        left = self.rows(np.flatnonzero(~gone[self.user]))
        users, user = np.unique(left.user, return_inverse=True)
        places, place = np.unique(left.place, return_inverse=True)
        return replace(
            left,
            user=user.astype(np.int32),
            place=place.astype(np.int32),
            users=self.users[users],
            places=self.places[places],
            cells={level: ids[places] for level, ids in self.cells.items()},
            lonlat=None if self.lonlat is None else self.lonlat[places],
        )

    def fingerprint(self) -> str:
        """A short hash of what happened when, by names: the same for any order of reading."""
        digest = hashlib.sha256()
        for names, codes in ((self.users, self.user), (self.places, self.place)):
            digest.update("\x1f".join(map(str, names)).encode())
            digest.update(np.ascontiguousarray(codes, np.int32).data)
        for column in (self.start, self.end, self.offset):
            digest.update(np.ascontiguousarray(column, np.int64).data)
        return digest.hexdigest()[:16]


def mark_of(user: object, salt: str) -> str:
    """A user in a form that tells nothing but whether it is this one."""
    return f"{salt}:{hashlib.sha256(f'{salt}:{user}'.encode()).hexdigest()[:32]}"


def marked(users: Iterable[object], marks: Sequence[str]) -> np.ndarray:
    """bool [users]: whom one of these marks means."""
    salts = sorted({mark.partition(":")[0] for mark in marks})
    return np.array([any(mark_of(user, salt) in marks for salt in salts) for user in users], bool)


def legacy_ids(visits: Visits, part: np.ndarray) -> np.ndarray:
    """int32 [P]: the published numbering: 1 = never visited in the train part, else its rank there + 2; 0 pads."""
    known = np.zeros(len(visits.places), bool)
    known[visits.place[part == 0]] = True
    return np.where(known, np.cumsum(known) + 1, 1).astype(np.int32)


def ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers of many half-open ranges, end to end, and the number of the range that each comes from."""
    lengths = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(first)), lengths)
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - starts[owner] + first[owner], owner


EARTH = 6_371_000.0  # metres, as trackintel has it


class StayRule(BaseModel):
    """When fixes are a stay, by the rule of trackintel's `sliding` staypoints, with its names in brackets.

    A fix opens a stay, and the first fix at or beyond the distance closes it. Ours is vectorised in numpy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metres: float = Field(200.0, gt=0, description="dist_threshold")
    minutes: float = Field(30.0, ge=0, description="time_threshold")
    gap_minutes: float = Field(
        24 * 60.0, gt=0, description="gap_threshold: a longer silence before the closing fix voids the stay"
    )
    include_last: bool = Field(True, description="the last stay of a user counts")


@dataclass(frozen=True)
class Stays:
    start: np.ndarray  # [S] time of the first fix
    end: np.ndarray  # [S] time of the fix that left
    lon: np.ndarray  # [S] mean of the fixes
    lat: np.ndarray  # [S]
    first: np.ndarray  # [S] number of the first fix


def distance(
    lon: np.ndarray, lat: np.ndarray, to_lon: np.ndarray | float, to_lat: np.ndarray | float
) -> np.ndarray:
    """Haversine metres between points in degrees."""
    phi, to_phi = np.radians(lat), np.radians(to_lat)
    across = np.sin(np.radians(np.subtract(to_lon, lon)) / 2)
    along = np.sin((to_phi - phi) / 2)
    return 2 * EARTH * np.arcsin(np.sqrt(np.clip(along**2 + np.cos(phi) * np.cos(to_phi) * across**2, 0, 1)))


def detect_stays(user: np.ndarray, time: np.ndarray, lon: np.ndarray, lat: np.ndarray, rule: StayRule) -> Stays:
    """Stays of every user; `time` in seconds."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1, [len(user)]])
    found: list[tuple[int, int, int]] = []
    for begin, stop in zip(edges[:-1], edges[1:], strict=True):
        found += _of_user(time, lon, lat, int(begin), int(stop), rule)
    first, past, leaving = np.array(found, np.int64).reshape(-1, 3).T
    sums = [np.concatenate([[0.0], np.cumsum(column - column[:1])]) for column in (lon, lat)]
    count = np.maximum(past - first, 1)
    centre = [(total[past] - total[first]) / count for total in sums]
    shift = (lon[:1], lat[:1]) if len(lon) else (np.zeros(1), np.zeros(1))
    return Stays(time[first], time[leaving], centre[0] + shift[0], centre[1] + shift[1], first)


def _of_user(
    time: np.ndarray, lon: np.ndarray, lat: np.ndarray, begin: int, stop: int, rule: StayRule
) -> list[tuple[int, int, int]]:
    """(first fix, end of its fixes, fix that closes) of each stay."""
    found = []
    first = begin
    while True:
        leaving = _first_beyond(lon, lat, first, stop, rule.metres)
        if leaving == stop:
            break
        lasted = time[leaving] - time[first] >= rule.minutes * 60
        if lasted and time[leaving] - time[leaving - 1] < rule.gap_minutes * 60:
            found.append((first, leaving, leaving))
        first = leaving
    if rule.include_last and stop - first > 1 and time[stop - 1] - time[first] >= rule.minutes * 60:
        found.append((first, stop - 1, stop - 1))
    return found


def _first_beyond(lon: np.ndarray, lat: np.ndarray, first: int, stop: int, metres: float) -> int:
    """The first fix at least this far from `first`, searched in blocks that double; `stop` if there is none."""
    begin, width = first + 1, 32
    while begin < stop:
        until = min(begin + width, stop)
        far = distance(lon[begin:until], lat[begin:until], lon[first], lat[first]) >= metres
        if far.any():
            return begin + int(far.argmax())
        begin, width = until, 2 * width
    return stop


class ClusterRule(BaseModel):
    """DBSCAN on the sphere, with trackintel's names in brackets; with `by="user"` nobody shares a place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metres: float = Field(20.0, gt=0, description="epsilon")
    least: int = Field(2, ge=1, description="num_samples, the point itself counted")
    by: Literal["dataset", "user"] = Field("dataset", description="agg_level")


def cluster(lon: np.ndarray, lat: np.ndarray, rule: ClusterRule, user: np.ndarray) -> np.ndarray:
    """int64 [S] labels from 0 in the order of the first core point, as scikit-learn has them; -1 = noise."""
    if len(lon) == 0:
        return np.empty(0, np.int64)
    names = ("scipy.sparse", "scipy.sparse.csgraph", "scipy.spatial")
    sparse, csgraph, spatial = (library(name, "clusters of positions need scipy", "places") for name in names)
    theta, phi = np.radians(lon), np.radians(lat)
    aside = 4.0 * user if rule.by == "user" else 0.0 * user  # in radii: users have no neighbours in common
    points = EARTH * np.stack([np.cos(theta) * np.cos(phi), np.sin(theta) * np.cos(phi), np.sin(phi), aside], 1)
    reach = 2 * EARTH * np.sin(rule.metres / (2 * EARTH))  # the chord of an arc of that many metres
    pairs = spatial.KDTree(points).query_pairs(reach, output_type="ndarray")
    first, second = np.concatenate([pairs, pairs[:, ::-1]]).T
    core = 1 + np.bincount(first, minlength=len(lon)) >= rule.least
    inner = core[first] & core[second]
    graph = sparse.coo_array((inner[inner], (first[inner], second[inner])), shape=(len(lon), len(lon)))
    component = csgraph.connected_components(graph)[1]
    _, begins, number = np.unique(component[core], return_index=True, return_inverse=True)
    label = np.full(len(lon), -1)
    label[core] = begins.argsort().argsort()[number]
    border = core[second] & ~core[first]  # a border point belongs to the first cluster that reaches it
    lowest = np.full(len(lon), len(lon))
    np.minimum.at(lowest, first[border], label[second[border]])
    return np.where(lowest < len(lon), lowest, label)
