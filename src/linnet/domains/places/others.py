"""Moves between places: everybody's counts, from which a user's own are always taken away.

Counts of other people help to predict; with the user's own rows among them a model would be told its answers.
Legend: V = ids of places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
