"""The visit table: who was where from when to when, as a struct of arrays.

Rows are ordered by user, then by start. Users and places are small integers whose names are kept beside them;
the numbers follow the sorted names, so they depend on nothing but the data.
Legend: N = visits, U = users, P = places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

MINUTE, DAY = 60, 86_400
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

    def fingerprint(self) -> str:
        """A short hash of what happened when, by names: the same for any order of reading."""
        digest = hashlib.sha256()
        for names, codes in ((self.users, self.user), (self.places, self.place)):
            digest.update("\x1f".join(map(str, names)).encode())
            digest.update(np.ascontiguousarray(codes, np.int32).data)
        for column in (self.start, self.end, self.offset):
            digest.update(np.ascontiguousarray(column, np.int64).data)
        return digest.hexdigest()[:16]


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
