"""Series in memory: all of them end to end in one array, with what belongs to each.

Legend: n = series, S = steps of all series, C = channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnet.errors import BadInput
from linnet.untrusted import shown

MISSING = frozenset(("", "na", "nan", "null", "none", "?", "-nan", "n/a"))
LARGEST = 1e30  # of a value: networks compute in float32, and its square has to stay below 1e300


def as_numbers(given: Sequence[Any], where: Callable[..., str]) -> np.ndarray:
    """float64 of texts or numbers, NaN where missing; `where` says in words where an entry stands.

    Infinite numbers and those beyond LARGEST come of damage, not of measurement, and are refused as texts are.
    """
    try:
        found = np.array(given, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        found = np.empty((0, 0))
    if found.ndim != 1:  # texts, lists, or integers beyond all floats
        found = np.array([_number(cell, index, where) for index, cell in enumerate(given)], np.float64)
    far = np.flatnonzero(np.abs(found) > LARGEST)
    if len(far):
        index = int(far[0])
        wrong = "too large" if np.isfinite(found[index]) else "not a finite number"
        right = f"a value is a number up to {LARGEST:g}, or missing"
        raise BadInput(f"{where(index)}: {str(given[index])[:60]} is {wrong}; {right}")
    return found


def _number(cell: Any, index: int, where: Callable[..., str]) -> float:
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        given = cell[:60] if isinstance(cell, str) else shown(cell)
        raise BadInput(
            f'{where(index)}: "{given}" is no number; a missing value is empty, NA, null or ?'
        ) from None


@dataclass(frozen=True)
class Series:
    """One series as a file holds it. `labels` has one label for each step, or one for all of them."""

    name: str
    values: np.ndarray  # float64 [steps, C], NaN where missing
    where: str  # file and row, for messages
    labels: np.ndarray | None = None  # text [steps] or [1]
    group: str = ""  # what is kept in one part: a person, a machine
    spacing: float = 0.0  # seconds between two steps; 0: not known

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class SeriesTable:
    """Many series. `spacing` is the commonest time between two steps in seconds; 0 where files name no times."""

    values: np.ndarray  # float64 [S, C]
    starts: np.ndarray  # int64 [n + 1]
    names: tuple[str, ...]
    channels: tuple[str, ...]
    where: tuple[str, ...]
    groups: tuple[str, ...]
    labels: np.ndarray | None = None  # text [S]
    spacing: float = 0.0
    frequency: str = ""  # a name that the files give: hourly, weekly
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        series: Sequence[Series],
        channels: Sequence[str],
        notes: Iterable[str] = (),
        problems: Iterable[str] = (),
        frequency: str = "",
    ) -> SeriesTable:
        """The table of these series; those without a value are left out and named."""
        found, kept = list(problems), []
        for one in series:
            if np.isfinite(one.values).any():
                kept.append(one)
            else:
                found.append(f"{one.where}: the series {one.name} has no value and is left out")
        if not kept:
            raise BadInput("there is no series with a value" + (f": {found[0]}" if found else ""))
        labels = None
        if all(one.labels is not None for one in kept):
            labels = np.concatenate([_spread(one) for one in kept])
        spacings = [one.spacing for one in kept if one.spacing]
        return cls(
            np.concatenate([one.values for one in kept]),
            np.cumsum([0, *map(len, kept)], dtype=np.int64),
            tuple(one.name for one in kept),
            tuple(channels),
            tuple(one.where for one in kept),
            tuple(one.group for one in kept),
            labels,
            float(np.median(spacings)) if spacings else 0.0,
            frequency,
            tuple(notes),
            tuple(found),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def series(self, index: int) -> np.ndarray:
        """[steps, C]"""
        return self.values[self.starts[index] : self.starts[index + 1]]

    def select(self, chosen: Sequence[int] | np.ndarray) -> SeriesTable:
        """Only these series."""
        steps = np.concatenate(
            [np.arange(self.starts[i], self.starts[i + 1]) for i in chosen] or [np.empty(0, int)]
        )
        return replace(
            self,
            values=self.values[steps],
            starts=np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64),
            names=tuple(self.names[i] for i in chosen),
            where=tuple(self.where[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            labels=None if self.labels is None else self.labels[steps],
        )

    def univariate(self) -> SeriesTable:
        """Each channel as a series of its own, named SERIES/CHANNEL: forecasts are made channel by channel."""
        if len(self.channels) == 1:
            return self
        count = len(self.channels)
        parts = [self.series(index)[:, channel] for index in range(len(self)) for channel in range(count)]
        known = [bool(np.isfinite(part).any()) for part in parts]
        names = [f"{name}/{channel}" for name in self.names for channel in self.channels]
        kept = [index for index, any_value in enumerate(known) if any_value]
        return replace(
            self,
            values=np.concatenate([parts[index] for index in kept])[:, None],
            starts=np.cumsum([0, *(len(parts[index]) for index in kept)], dtype=np.int64),
            names=tuple(names[index] for index in kept),
            channels=("value",),
            where=tuple(self.where[index // count] for index in kept),
            groups=tuple(self.groups[index // count] for index in kept),
            labels=None,
        )

    def continued(self, later: SeriesTable) -> tuple[SeriesTable, np.ndarray]:
        """These series with the values of the same names in `later` after them, and where those begin [n].

        Series that `later` does not hold stay as they are.
        """
        following = {name: later.series(index) for index, name in enumerate(later.names)}
        unknown = sorted(set(following) - set(self.names))
        if unknown:
            raise BadInput(f"{later.where[later.names.index(unknown[0])]}: the series {unknown[0]} has no history")
        nothing = np.empty((0, self.values.shape[1]))
        parts = [(self.series(i), following.get(name, nothing)) for i, name in enumerate(self.names)]
        lengths = np.array([[len(old), len(new)] for old, new in parts])
        starts = np.concatenate([[0], np.cumsum(lengths.sum(1))]).astype(np.int64)
        values = np.concatenate([piece for pair in parts for piece in pair])
        joined = replace(self, values=values, starts=starts, labels=None)
        return joined, starts[:-1] + lengths[:, 0]

    def fingerprint(self) -> str:
        """A short hash of everything that a network reads."""
        digest = hashlib.sha256(np.ascontiguousarray(self.values).data)
        digest.update(self.starts.tobytes())
        if self.labels is not None:
            digest.update("\n".join(self.labels.tolist()).encode())
        return digest.hexdigest()[:16]


def as_text(values: np.ndarray) -> str:
    """A series as the numbers of a prompt."""
    return " ".join(f"{value:.12g}" for value in values)


def _spread(one: Series) -> np.ndarray:
    assert one.labels is not None
    return np.repeat(one.labels, len(one)) if len(one.labels) == 1 else one.labels
