"""S2 cells from coordinates: the square tree over the sphere that gives places their parents.

A cell id of level L is a uint64: 3 bits of the face, 2 L bits of the position on a Hilbert curve, a 1, zeros.
The parent of a cell is a mask of its id, so the levels of one place always form a strict tree.
Legend: N = number of points; every array is [N].
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from linnet.errors import BadInput, library

LEAF = 30  # the deepest level
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")


def cell_ids(lon: np.ndarray, lat: np.ndarray, level: int = LEAF) -> np.ndarray:
    """uint64 ids of the cells of this level that hold these points (degrees)."""
    s2cell = library("s2cell", "cells of coordinates need s2cell", "places")
    _known_level(level)
    points = zip(np.asarray(lat, np.float64).tolist(), np.asarray(lon, np.float64).tolist(), strict=True)
    return np.array([s2cell.lat_lon_to_cell_id(y, x, level) for y, x in points], np.uint64)


def parents(ids: np.ndarray, level: int) -> np.ndarray:
    """The cells of a coarser (or the same) level around these cells."""
    _known_level(level)
    ids = np.asarray(ids, np.uint64)
    if ids.size and int(levels(ids).min()) < level:
        raise BadInput(f"a cell of level {int(levels(ids).min())} has no parent of level {level}")
    mark = np.uint64(1 << (2 * (LEAF - level)))
    return (ids & ~(mark - np.uint64(1)) & ~mark) | mark


def levels(ids: np.ndarray) -> np.ndarray:
    """The level of each cell, from its lowest set bit."""
    ids = np.asarray(ids, np.uint64)
    lowest = ids & (~ids + np.uint64(1))
    return LEAF - np.round(np.log2(np.maximum(lowest, np.uint64(1)).astype(np.float64))).astype(np.int64) // 2


def tokens(ids: np.ndarray) -> list[str]:
    """The usual short names: hexadecimal without trailing zeros."""
    return [f"{int(cell):016x}".rstrip("0") or "X" for cell in np.asarray(ids, np.uint64)]


def from_tokens(names: Sequence[str]) -> np.ndarray:
    """uint64 ids of cell tokens; a text that is no token is refused."""
    ids = read_tokens(names)
    if (ids == 0).any():
        wrong = str(names[int(np.argmax(ids == 0))])
        raise BadInput(f"{wrong!r} is not the token of an S2 cell (up to 16 hexadecimal digits)")
    return ids


def read_tokens(names: Sequence[str]) -> np.ndarray:
    """uint64 ids of cell tokens; 0 for a text that is none."""
    unique, inverse = np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)
    return np.array([_token(str(name)) for name in unique], np.uint64)[inverse]


def _token(name: str) -> int:
    if len(name) > 16 or not _HEXADECIMAL.fullmatch(name):
        return 0
    number = int(name.ljust(16, "0"), 16)
    return number if number >> 61 <= 5 else 0  # the first three bits name one of six faces


def check_tree(by_level: dict[int, np.ndarray]) -> None:
    """Refuse cells whose finer levels do not lie inside the coarser ones."""
    ordered = sorted(by_level)
    for coarse, fine in zip(ordered, ordered[1:], strict=False):
        wrong = np.flatnonzero(parents(by_level[fine], coarse) != by_level[coarse])
        if len(wrong):
            row = int(wrong[0])
            raise BadInput(
                f"{len(wrong)} places have a level-{fine} cell outside their level-{coarse} cell; the first is "
                f"place {row}: {tokens(by_level[fine][row : row + 1])[0]} is not in "
                f"{tokens(by_level[coarse][row : row + 1])[0]}"
            )


def _known_level(level: int) -> None:
    if not 0 <= level <= LEAF:
        raise BadInput(f"S2 cells have levels 0 to {LEAF}, not {level}")
