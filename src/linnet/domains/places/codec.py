"""What a run has learned to name, and the counts it keeps: places, users, cells, and other people's moves.

Ids are the published ones: 0 pads, 1 is any place that the train part does not hold, then the known places in the
order of their names. Cells and users are numbered alike. Visits themselves are not kept, and no coordinates.
Counts of other people help to predict; with the user's own rows among them a model would be given its answers, so
the user's own are always taken away.
Legend: V = ids of places, P = places of a visit table, L = ids of cells of a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from linnet.codecs import Codec, Encoded
from linnet.domains.places import cells as s2
from linnet.domains.places.visits import Visits
from linnet.errors import BadInput
from linnet.untrusted import checked

FIRST = 2  # the id of the first known thing; 0 pads, 1 is unseen
Name = int | str | None  # None = forgotten


@dataclass(frozen=True)
class Moves:
    """How often each user went from place to place, and how often each was there.

    `pairs` are (user, from, to, times) and `stays` are (user, place, times), all of them ids, in ascending order.
    """

    pairs: np.ndarray  # int64 [moves, 4]
    stays: np.ndarray  # int64 [stays, 3]

    @classmethod
    def of(cls, user: np.ndarray, place: np.ndarray, row: np.ndarray) -> Moves:
        """From visits ordered by user and time; `row` numbers them, and a gap in it is no move."""
        user, place = user.astype(np.int64), place.astype(np.int64)
        next_to = (row[1:] == row[:-1] + 1) & (user[1:] == user[:-1])
        pairs = np.stack([user[:-1], place[:-1], place[1:]], 1)[next_to]
        return cls(_counted(pairs), _counted(np.stack([user, place], 1)))

    def without(self, user: int) -> Moves:
        return Moves(self.pairs[self.pairs[:, 0] != user], self.stays[self.stays[:, 0] != user])


def _counted(rows: np.ndarray) -> np.ndarray:
    """Distinct rows with how often each occurs as a last column."""
    if len(rows) == 0:
        return np.empty((0, rows.shape[1] + 1), np.int64)
    distinct, times = np.unique(rows, axis=0, return_counts=True)
    return np.column_stack([distinct, times]).astype(np.int64)


@dataclass(frozen=True)
class OthersTable:
    """Sorted keys for looking up everybody's counts and taking the user's own away. Unseen things have none."""

    size: int
    moves: tuple[np.ndarray, np.ndarray]  # keys (from, to) and times
    own_moves: tuple[np.ndarray, np.ndarray]  # keys (user, from, to) and times
    leaves: np.ndarray  # int64 [V]
    own_leaves: tuple[np.ndarray, np.ndarray]
    stays: np.ndarray  # int64 [V]
    own_stays: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, moves: Moves, size: int) -> OthersTable:
        user, source, goal, times = moves.pairs.T
        who, place, stays = moves.stays.T
        return cls(
            size,
            _summed(source * size + goal, times),
            _summed((user * size + source) * size + goal, times),
            np.bincount(source, times, size).astype(np.int64),
            _summed(user * size + source, times),
            np.bincount(place, stays, size).astype(np.int64),
            _summed(who * size + place, stays),
        )

    def moved(self, user: np.ndarray, source: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Moves source -> goal of everybody but the user."""
        own = _look_up(*self.own_moves, (user * self.size + source) * self.size + goal)
        return _look_up(*self.moves, source * self.size + goal) - own

    def left(self, user: np.ndarray, source: np.ndarray) -> np.ndarray:
        """Departures from source of everybody but the user."""
        return self.leaves[source] - _look_up(*self.own_leaves, user * self.size + source)

    def visited(self, user: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Visits to goal of everybody but the user."""
        return self.stays[goal] - _look_up(*self.own_stays, user * self.size + goal)


def _summed(keys: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse.ravel(), times, len(unique)).astype(np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if len(keys) == 0:
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


@dataclass(frozen=True)
class PlacesCodec(Codec):
    places: tuple[Name, ...]
    users: tuple[Name, ...]
    levels: tuple[int, ...]  # of the cells, coarse to fine
    cells: Mapping[int, tuple[str | None, ...]]  # level -> tokens
    cell_of_place: Mapping[int, tuple[int, ...]]  # level -> cell id of each known place
    moves: Moves

    @classmethod
    def of(cls, visits: Visits, part: np.ndarray) -> PlacesCodec:
        """Everything from the train part, and nothing else."""
        train = visits.rows(np.flatnonzero(part == 0))
        known, users = np.unique(train.place), np.unique(train.user)
        cells, owned = {}, {}
        for level, ids in sorted(visits.cells.items()):
            found, number = np.unique(ids[known], return_inverse=True)
            cells[level] = tuple(s2.tokens(found[found > 0]))
            shift = FIRST - int((found == 0).any())
            owned[level] = tuple(np.where(ids[known] > 0, number + shift, 1).tolist())
        place = np.searchsorted(known, train.place) + FIRST
        user = np.searchsorted(users, train.user) + FIRST
        return cls(
            tuple(visits.places[known].tolist()),
            tuple(visits.users[users].tolist()),
            tuple(sorted(visits.cells)),
            cells,
            owned,
            Moves.of(user, place, np.flatnonzero(part == 0)),
        )

    @property
    def tokens(self) -> Sequence[str]:
        return ("<pad>", "<unseen>", *("<forgotten>" if name is None else str(name) for name in self.places))

    def encode(self, value: str) -> Encoded:
        """Place names with blanks between them; unknown ones become the unseen id."""
        names = {str(name): number + FIRST for number, name in enumerate(self.places)}
        return Encoded(np.array([names.get(name, 1) for name in value.split()], np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        names = self.tokens
        return " ".join(names[int(number)] for number in ids)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ids of cells coarse to fine, and of places: what the tables of a model need."""
        return (*(len(self.cells[level]) + FIRST for level in self.levels), len(self.places) + FIRST)

    @property
    def stored_counts(self) -> int:
        """Numbers beside the parameters that predictions read."""
        return int(self.moves.pairs.size + self.moves.stays.size)

    def place_ids(self, names: np.ndarray) -> np.ndarray:
        return _numbers(self.places, names)

    def user_ids(self, names: np.ndarray) -> np.ndarray:
        return _numbers(self.users, names)

    def cell_ids(self, level: int, ids: np.ndarray) -> np.ndarray:
        """uint64 S2 ids to the ids of this codec."""
        if level not in self.cells:
            return np.ones(len(ids), np.int64)
        known = [cell or None for cell in self._cells(level).tolist()]  # a place in no cell is in no forgotten one
        return _numbers(known, ids)

    def _cells(self, level: int) -> np.ndarray:
        """uint64 S2 ids in the order of the codec's; 0 for a forgotten one."""
        names = self.cells[level]
        known = s2.from_tokens([name or "1" for name in names])
        return np.where([name is not None for name in names], known, np.uint64(0))

    def cells_of_places(self, level: int) -> np.ndarray:
        """uint64 S2 ids of the known places; 0 where a place has none."""
        names = np.concatenate([np.zeros(FIRST, np.uint64), self._cells(level)])
        return names[np.array(self.cell_of_place[level], np.int64)]

    def tree(self, level: int) -> np.ndarray:
        """int64 [V]: the cell of every place id; padding and unseen places lie in cells 0 and 1."""
        return np.concatenate([[0, 1], np.array(self.cell_of_place[level], np.int64)]).astype(np.int64)

    @cached_property
    def others(self) -> OthersTable:
        return OthersTable.of(self.moves, len(self.places) + FIRST)

    def forget(self, user: int | str) -> Forgotten:
        """Without this user's name and counts, and without places and cells that nobody else visited.

        Ids stay where they are, so that the tables of a network still fit: what is gone leaves an empty name.
        """
        if user not in self.users:
            raise BadInput(f"user {user!r} is not in this run; it knows {len(self.users)} users")
        number = self.users.index(user) + FIRST
        rest = self.moves.without(number)
        gone = ~np.isin(np.arange(len(self.places)) + FIRST, rest.stays[:, 1])
        users = tuple(None if name == user else name for name in self.users)
        codec, cells = replace(self, users=users, moves=rest).emptied(gone)
        return Forgotten(codec, number, np.flatnonzero(gone) + FIRST, cells)

    def emptied(self, gone: np.ndarray) -> tuple[PlacesCodec, dict[int, np.ndarray]]:
        """Without the names and cells of these places [P]; also the ids of cells in which no place is left."""
        places = tuple(None if away else name for name, away in zip(self.places, gone, strict=True))
        return replace(self, places=places).outside_cells(self.levels, gone)

    def outside_cells(self, levels: Sequence[int], gone: np.ndarray) -> tuple[PlacesCodec, dict[int, np.ndarray]]:
        """Without cells of these levels of these places [P]; also the ids of cells in which no place is left."""
        owned, left, lost = dict(self.cell_of_place), dict(self.cells), {}
        for level in levels:
            cells = zip(self.cell_of_place[level], gone, strict=True)
            owned[level] = tuple(1 if away else cell for cell, away in cells)
            names, kept = self.cells[level], set(owned[level])
            left[level] = tuple(name if at in kept else None for at, name in enumerate(names, FIRST))
            lost[level] = np.array([at for at, _ in enumerate(names, FIRST) if at not in kept], np.int64)
        return replace(self, cells=left, cell_of_place=owned), lost

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ("reads no plain text",)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "places",
            "places": list(self.places),
            "users": list(self.users),
            "cells": {str(level): list(names) for level, names in self.cells.items()},
            "cell_of_place": {str(level): list(ids) for level, ids in self.cell_of_place.items()},
            "pairs": self.moves.pairs.tolist(),
            "stays": self.moves.stays.tolist(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> PlacesCodec:
        kept: _Stored = checked(_Stored, stored, "")
        places, users = len(kept.places) + FIRST, len(kept.users) + FIRST
        if set(kept.cells) != set(kept.cell_of_place):
            raise BadInput("cells and cell_of_place have the same levels, and here they do not")
        for level, ids in kept.cell_of_place.items():
            if len(ids) != len(kept.places) or any(not 1 <= i < len(kept.cells[level]) + FIRST for i in ids):
                raise BadInput(
                    f"cell_of_place.{level} is no list of one cell for each of {len(kept.places)} places"
                )
        moves = Moves(
            _table(kept.pairs, "pairs", (users, places, places)), _table(kept.stays, "stays", (users, places))
        )
        codec = cls(kept.places, kept.users, tuple(sorted(kept.cells)), kept.cells, kept.cell_of_place, moves)
        for level in codec.levels:
            codec._cells(level)
        return codec


@dataclass(frozen=True)
class _Stored:
    """What codec.json holds; tables are looked at apart, since they may be long."""

    places: tuple[Name, ...]
    users: tuple[Name, ...]
    cells: dict[int, tuple[str | None, ...]]
    cell_of_place: dict[int, tuple[int, ...]]
    pairs: Any
    stays: Any


def _table(rows: Any, name: str, sizes: tuple[int, ...]) -> np.ndarray:
    """int64 rows of ids below these sizes and a count, in this order."""
    try:
        table = np.array(rows if isinstance(rows, list) else None)
    except ValueError:  # rows of several lengths
        table = np.array(None)
    table = table.reshape(0, len(sizes) + 1).astype(np.int64) if rows == [] else table
    fits = table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == len(sizes) + 1
    if not fits or (table < 1).any() or (table[:, :-1] >= np.array(sizes)).any():
        raise BadInput(f"{name} is no list of rows of {len(sizes)} known ids and a count")
    return table


@dataclass(frozen=True)
class Forgotten:
    """A codec without a user, and the ids whose rows of a network's tables have go too."""

    codec: PlacesCodec
    user: int | None  # None: all of them
    places: np.ndarray
    cells: Mapping[int, np.ndarray]  # level -> ids


def _numbers(known: Sequence[Name], names: np.ndarray) -> np.ndarray:
    """int64 ids of these names; 1 where a name is not known."""
    number = {name: at + FIRST for at, name in enumerate(known) if name is not None}
    if names.dtype == object:  # numbers, texts and None side by side cannot be sorted
        return np.array([number.get(name, 1) for name in names.tolist()], np.int64)
    unique, inverse = np.unique(names, return_inverse=True)
    return np.array([number.get(name, 1) for name in unique.tolist()], np.int64)[inverse.ravel()]
