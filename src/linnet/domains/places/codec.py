"""What a run has learned to name, and the counts it keeps: places, users, cells, and other people's moves.

Ids are the published ones: 0 pads, 1 is any place that the train part does not hold, then the known places in the
order of their names. Cells and users are numbered alike. Visits themselves are not kept, and no coordinates.
Legend: V = ids of places, P = places of a visit table, L = ids of cells of a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from linnet.codecs import Encoded
from linnet.domains.places import cells as s2
from linnet.domains.places.others import Moves, OthersTable
from linnet.domains.places.visits import Visits
from linnet.errors import BadInput

FIRST = 2  # the id of the first known thing; 0 pads, 1 is unseen


@dataclass(frozen=True)
class PlacesCodec:
    places: tuple[int | str, ...]
    users: tuple[int | str, ...]
    levels: tuple[int, ...]  # of the cells, coarse to fine
    cells: Mapping[int, tuple[str, ...]]  # level -> tokens
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
        return ("<pad>", "<unseen>", *map(str, self.places))

    @property
    def begin(self) -> None:
        return None

    @property
    def end(self) -> None:
        return None

    def encode(self, value: str) -> Encoded:
        """Place names with blanks between them; unknown ones become the unseen id."""
        names = {str(name): number + FIRST for number, name in enumerate(self.places)}
        return Encoded(np.array([names.get(name, 1) for name in value.split()], np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        names = self.tokens
        return " ".join(names[int(number)] for number in ids)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        return self.decode(ids)

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
        return _numbers(tuple(int(cell) for cell in s2.from_tokens(self.cells[level])), ids.astype(object))

    def tree(self, level: int) -> np.ndarray:
        """int64 [V]: the cell of every place id; padding and unseen places lie in cells 0 and 1."""
        return np.concatenate([[0, 1], np.array(self.cell_of_place[level], np.int64)]).astype(np.int64)

    @cached_property
    def others(self) -> OthersTable:
        return OthersTable.of(self.moves, len(self.places) + FIRST)

    def forget(self, user: int | str) -> PlacesCodec:
        """Without this user's name and counts, and without places that nobody else visited."""
        if user not in self.users:
            raise BadInput(f"user {user!r} is not in this run; it knows {len(self.users)} users")
        number = self.users.index(user) + FIRST
        rest = self.moves.without(number)
        seen = np.isin(np.arange(len(self.places)) + FIRST, rest.stays[:, 1])
        renamed = np.concatenate([[0, 1], np.where(seen, np.cumsum(seen) + FIRST - 1, 1)])
        shifted = lambda ids: ids - (ids > number)  # noqa: E731
        pairs, stays = rest.pairs.copy(), rest.stays.copy()
        pairs[:, 0], stays[:, 0] = shifted(pairs[:, 0]), shifted(stays[:, 0])
        pairs[:, 1:3], stays[:, 1] = renamed[pairs[:, 1:3]], renamed[stays[:, 1]]
        return replace(
            self,
            places=tuple(name for name, kept in zip(self.places, seen, strict=True) if kept),
            users=tuple(name for name in self.users if name != user),
            cell_of_place={
                level: tuple(cell for cell, kept in zip(owned, seen, strict=True) if kept)
                for level, owned in self.cell_of_place.items()
            },
            moves=Moves(pairs, stays),
        )

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
        return cls(
            tuple(stored["places"]),
            tuple(stored["users"]),
            tuple(sorted(map(int, stored["cells"]))),
            {int(level): tuple(names) for level, names in stored["cells"].items()},
            {int(level): tuple(ids) for level, ids in stored["cell_of_place"].items()},
            Moves(
                np.array(stored["pairs"], np.int64).reshape(-1, 4),
                np.array(stored["stays"], np.int64).reshape(-1, 3),
            ),
        )


def _numbers(known: Sequence[int | str], names: np.ndarray) -> np.ndarray:
    """int64 ids of these names; 1 where a name is not known."""
    unique, inverse = np.unique(names, return_inverse=True)
    number = {name: place + FIRST for place, name in enumerate(known)}
    return np.array([number.get(name, 1) for name in unique.tolist()], np.int64)[inverse.ravel()]
