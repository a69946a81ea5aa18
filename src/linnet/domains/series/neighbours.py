"""Labels without a network: the commonest class, and the class of the nearest training case.

Cases are [n, C, T] arrays. Missing values at the end of a case are its padding; others are drawn as a line between
the values around them. Distances are squared and summed over channels, with time warping or without.
Legend: n = cases, C = channels, T = steps, K = classes, m = training cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Labeller(Protocol):
    """A fitted classifier."""

    def probabilities(self, cases: np.ndarray) -> np.ndarray:
        """[n, K]."""


class Classifier(Protocol):
    def fit(self, cases: np.ndarray, classes: np.ndarray, count: int) -> Labeller:
        """From cases [n, C, T] and their classes [n] below `count`."""


@dataclass(frozen=True)
class Shares:
    """The same probabilities for every case."""

    shares: np.ndarray

    def probabilities(self, cases: np.ndarray) -> np.ndarray:
        return np.repeat(self.shares[None], len(cases), 0)


@dataclass(frozen=True)
class Majority:
    """The commonest class, with the shares of the training cases as probabilities."""

    def fit(self, cases: np.ndarray, classes: np.ndarray, count: int) -> Shares:
        return Shares(np.bincount(classes, minlength=count) / max(1, len(classes)))


def lengths_of(cases: np.ndarray) -> np.ndarray:
    """[n]: steps up to the last one with a value in any channel, at least 1."""
    known = np.isfinite(cases).any(1)
    return np.where(known.any(1), cases.shape[-1] - known[:, ::-1].argmax(1), 1)


def complete(case: np.ndarray, length: int) -> np.ndarray:
    """[C, length]: gaps drawn as lines; a channel without a value is zero."""
    values = np.asarray(case[:, :length], np.float64).copy()
    steps = np.arange(length)
    for channel in values:
        known = np.isfinite(channel)
        if not known.all():
            channel[:] = np.interp(steps, steps[known], channel[known]) if known.any() else 0.0
    return values


def stretched(case: np.ndarray, length: int) -> np.ndarray:
    """[C, length]: a complete case at another length, by lines between its steps."""
    if case.shape[1] == length:
        return case
    steps = np.linspace(0, case.shape[1] - 1, length)
    return np.stack([np.interp(steps, np.arange(case.shape[1]), channel) for channel in case])


@dataclass(frozen=True)
class NearestNeighbour:
    """The class of the nearest training case, by Euclidean distance or by dynamic time warping.

    `window` is the share of the steps by which warping may shift; 0 is the Euclidean distance, for which cases of
    other lengths are stretched to that of the longest training case.
    """

    window: float = 0.0

    def fit(self, cases: np.ndarray, classes: np.ndarray, count: int) -> Neighbours:
        lengths = lengths_of(cases)
        known = tuple(complete(case, length) for case, length in zip(cases, lengths.tolist(), strict=True))
        return Neighbours(known, classes, count, self.window)


@dataclass(frozen=True)
class Neighbours:
    known: tuple[np.ndarray, ...]  # [C, own length] each
    classes: np.ndarray
    count: int
    window: float

    def probabilities(self, cases: np.ndarray) -> np.ndarray:
        nearest = self.distances(cases).argmin(-1)
        return np.asarray(np.eye(self.count)[self.classes[nearest]])

    def distances(self, cases: np.ndarray) -> np.ndarray:
        """[n, m]: squared distances to the training cases."""
        lengths = lengths_of(cases).tolist()
        wanted = [complete(case, length) for case, length in zip(cases, lengths, strict=True)]
        if self.window:
            return np.stack([warped(case, self.known, self.window) for case in wanted])
        longest = max(case.shape[1] for case in self.known)
        ours, theirs = (
            np.stack([stretched(case, longest).ravel() for case in part]) for part in (wanted, self.known)
        )
        apart = np.square(ours).sum(-1)[:, None] + np.square(theirs).sum(-1) - 2 * ours @ theirs.T
        return np.asarray(np.maximum(apart, 0))


def warped(case: np.ndarray, others: tuple[np.ndarray, ...], window: float = 1.0) -> np.ndarray:
    """[m]: squared distances of one case [C, T] under time warping to each of the others [C, own length].

    The table of partial distances is filled along its diagonals, all others at once.
    """
    rows, columns = case.shape[1], np.array([other.shape[1] for other in others])
    skewed = _skewed(_costs(case, others, window))
    end = rows + columns - 2  # the diagonal on which the last cell of each other lies
    found = np.empty(len(others))
    before, last = np.full((2, len(others), rows + 1), np.inf)
    for diagonal in range(int(end.max()) + 1):
        best = np.minimum(last[:, :-1], last[:, 1:])  # from (i - 1, j) and (i, j - 1)
        np.minimum(best, before[:, :-1], out=best)  # from (i - 1, j - 1)
        if diagonal == 0:
            best[:, 0] = 0
        now = np.full_like(last, np.inf)
        now[:, 1:] = best + skewed[:, :, diagonal]
        ended = end == diagonal
        found[ended] = now[ended, rows]
        before, last = last, now
    return found


def _costs(case: np.ndarray, others: tuple[np.ndarray, ...], window: float) -> np.ndarray:
    """[m, T, longest]: squared differences of every two steps, infinite outside of the window and the series."""
    rows, longest = case.shape[1], max(other.shape[1] for other in others)
    found = np.full((len(others), rows, longest), np.inf)
    for index, other in enumerate(others):
        apart = np.square(case[:, :, None] - other[:, None]).sum(0)
        shift = np.abs(
            np.arange(rows)[:, None] / max(1, rows - 1) - np.arange(other.shape[1]) / max(1, other.shape[1] - 1)
        )
        slack = max(window, 1 / max(1, min(rows, other.shape[1]) - 1))  # always room for one path
        found[index, :, : other.shape[1]] = np.where(shift <= slack + 1e-12, apart, np.inf)
    return found


def _skewed(costs: np.ndarray) -> np.ndarray:
    """[m, T, T + longest - 1]: cell (i, j) moves to (i, i + j), so that a diagonal is one column."""
    count, rows, columns = costs.shape
    wide = np.full((count, rows, columns + rows), np.inf)
    wide[:, :, :columns] = costs
    flat = wide.reshape(count, -1)[:, : rows * (columns + rows - 1)]
    return flat.reshape(count, rows, columns + rows - 1)
