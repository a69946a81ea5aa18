"""Growing columns of equal length: the storage of a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Column(NamedTuple):
    """The type of a column, what new entries hold (None: nothing in particular), and the width of a vector."""

    dtype: np.dtype | type
    fill: float | None = 0
    width: int | None = None


class Columns:
    """Named arrays with `count` entries each; `columns["name"]` is a view of them that lasts until the next
    `add`.
    """

    def __init__(self, kinds: Mapping[str, Column]) -> None:
        self.kinds, self.count = dict(kinds), 0
        self._held = {name: self._empty(kind, 64) for name, kind in self.kinds.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._held[name][: self.count]

    def add(self, more: int) -> np.ndarray:
        """The indices of new entries, which hold the fill of their column."""
        first, self.count = self.count, self.count + more
        for name, kind in self.kinds.items():
            held = self._held[name]
            if self.count > len(held):
                self._held[name] = self._empty(kind, max(self.count, 2 * len(held)))
                self._held[name][:first] = held[:first]
            if kind.fill is not None:
                self._held[name][first : self.count] = kind.fill
        return np.arange(first, self.count)

    def keep(self, indices: np.ndarray) -> None:
        """Only these entries stay, in this order."""
        for name in self.kinds:
            self._held[name] = self._held[name][indices].copy()
        self.count = len(indices)

    def arrays(self) -> dict[str, np.ndarray]:
        """All columns, to be saved."""
        return {name: self[name] for name in self.kinds}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over saved columns; a ValueError where they are not of one length, or a vector of another width."""
        held = {name: np.array(arrays[name], dtype=kind.dtype) for name, kind in self.kinds.items()}
        lengths = {len(values) if values.ndim else 0 for values in held.values()}
        if len(lengths) != 1:
            raise ValueError("columns have different lengths")
        for name, values in held.items():
            width = self.kinds[name].width
            if values.shape[1:] != (() if width is None else (width,)):
                raise ValueError(f"{name} has shape {list(values.shape)}")
        self._held, self.count = held, lengths.pop()

    @property
    def bytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())

    @staticmethod
    def _empty(kind: Column, length: int) -> np.ndarray:
        return np.empty(length if kind.width is None else (length, kind.width), dtype=kind.dtype)
