"""Histories to predict from, one JSON object a line: `{"id", "visits": [{"place", "start", …}, …]}`.

A visit has a `place`, a `start` (or `time`: text or an epoch; text without a zone is read in the run's `tz`), and
may have an `end` or a `duration` in minutes, `lon` and `lat`. The published sample form is read as well: then a
record's history is all that is known. Every record stands alone: what another line says is not used for it.
What the rules of tables mend is mended here too, and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.places.codec import Name, PlacesCodec
from linnet.domains.places.samples_file import json_lines
from linnet.domains.places.splits import Samples
from linnet.domains.places.told import Told, read_id, read_published, read_visits, zone_of
from linnet.domains.places.visits import Visits
from linnet.errors import BadInput


@dataclass(frozen=True)
class Histories:
    """Record i is user segment i of the table, whose last row is a stand-in for the visit to come."""

    ids: tuple[Any, ...]
    visits: Visits
    samples: Samples
    notes: tuple[str, ...] = ()  # what was mended, with the first place where it stood


def read_histories(path: Path, codec: PlacesCodec, *, tz: str = "UTC", local: str = "") -> Histories:
    """All records of a file, in its order. Places that the run knows are in the table beside those of the file."""
    zone, mended = zone_of(tz), Mended()
    place_kind, user_kind = kind_of(codec.places), kind_of(codec.users)
    ids, users, rows = [], [], []
    for where, record in json_lines(path):
        if "h_place" in record:
            visits = read_published(where, record, place_kind)
        else:
            visits = read_visits(where, record, zone, local, codec.levels, place_kind)
            visits = mended.visits(where, visits)
        ids.append(_name_of(where, record))
        user = record.get("user")
        users.append(None if user is None else read_id(f"{where}, user", user, user_kind))
        rows.append(visits)
    if not rows:
        raise BadInput(f"{path} holds no history")
    return _table(ids, users, rows, codec, mended.notes())


def kind_of(names: Sequence[Name]) -> type:
    """Whether the run's ids are numbers or texts."""
    return int if any(isinstance(name, int) for name in names) else str


def _name_of(where: str, record: dict[str, Any]) -> int | str | None:
    name = record.get("id", record.get("sample_id"))
    if name is not None and (isinstance(name, bool) or not isinstance(name, int | str)):
        raise BadInput(f"{where}, id: a text or a whole number is needed, not {type(name).__name__}")
    return name


class Mended:
    """The rules of tables, applied to the visits of one record after another."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[int, str]] = {}  # (what, rule) -> (how many, where the first is)

    def visits(self, where: str, given: list[Told]) -> list[Told]:
        order = sorted(range(len(given)), key=lambda at: given[at].start)
        back = [at for at in range(1, len(given)) if given[at].start < given[at - 1].start]
        self._note("visits out of the order of time", "sorted by start", where, back)
        kept: list[Told] = []
        seen: set[tuple[int, int, int | str]] = set()
        twice, late = [], []
        for at in order:
            visit = given[at]
            key = (visit.start, visit.end, visit.place)
            if key in seen:
                twice.append(at)
                continue
            seen.add(key)
            if kept and kept[-1].end > visit.start:
                kept[-1] = replace(kept[-1], end=visit.start)
                late.append(at)
            kept.append(visit)
        self._note("duplicate visits", "the first one kept", where, twice)
        self._note("overlapping visits", "the earlier one ends when the later begins", where, late)
        return kept

    def _note(self, what: str, rule: str, where: str, visits: list[int]) -> None:
        if visits:
            count, first = self.found.get((what, rule), (0, f"{where}, visit {visits[0] + 1}"))
            self.found[what, rule] = (count + len(visits), first)

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{what}: {count}, {rule} (first: {first})" for (what, rule), (count, first) in self.found.items()
        )


def _table(
    ids: list[Any], users: list[Any], rows: list[list[Told]], codec: PlacesCodec, notes: tuple[str, ...]
) -> Histories:
    """One table; each record is a user of its own and ends with a stand-in for the next visit.

    Known places keep the numbers that they have in the run, forgotten ones (without a name) among them.
    """
    flat = [visit for visits in rows for visit in (*visits, visits[-1])]
    lengths = np.array([len(visits) for visits in rows])
    known_places = len(codec.places)
    number: dict[Name, int] = {name: at for at, name in enumerate(codec.places) if name is not None}
    fresh: dict[Name, int] = {}
    for visit in flat:
        if visit.place not in number:
            fresh.setdefault(visit.place, known_places + len(fresh))
    number |= fresh
    place = np.array([number[visit.place] for visit in flat])
    places = np.empty(known_places + len(fresh), object)
    places[:] = [*codec.places, *fresh]
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
    return Histories(tuple(ids), table, samples, notes)


def _user_names(users: list[Any]) -> np.ndarray:
    """The user of each record; None where it names nobody. Kept as objects, since they need not be sorted here."""
    found = np.empty(len(users), object)
    found[:] = users
    return found
