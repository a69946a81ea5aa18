"""Arrays that are read like one without being in memory: shards end to end, marks that follow from starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Joined:
    """Several arrays that are read as one."""

    parts: tuple[np.ndarray, ...]

    @property
    def offsets(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.parts)])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)

    def __getitem__(self, places: Any, /) -> np.ndarray:
        places = _indices(places, len(self))
        flat = places.reshape(-1)
        which = np.searchsorted(self.offsets, flat, side="right") - 1
        found = np.empty(len(flat), self.dtype)
        for part in np.unique(which):
            here = which == part
            found[here] = self.parts[part][flat[here] - self.offsets[part]]
        return found.reshape(places.shape)


@dataclass(frozen=True)
class EveryTarget:
    """The marks of rows in which every token counts but the first."""

    starts: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(bool)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)

    def __getitem__(self, places: Any, /) -> np.ndarray:
        places = _indices(places, len(self))
        found = self.starts[np.searchsorted(self.starts, places, side="right") - 1]
        return np.asarray(found != places)


def _indices(places: Any, length: int) -> np.ndarray:
    """Whole numbers for a slice, a mask or an array of places."""
    if isinstance(places, slice):
        return np.arange(*places.indices(length))
    places = np.asarray(places)
    if places.dtype == bool:
        return np.flatnonzero(places)
    if places.size and not -1 < places.min() <= places.max() < length:
        raise IndexError(f"places from 0 to {length - 1}, not {places.min()} to {places.max()}")
    return places
