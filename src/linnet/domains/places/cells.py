"""S2 cells from coordinates, vectorised: the square tree over the sphere that gives places their parents.

A cell id of level L is a uint64: 3 bits of the face, 2 L bits of the position on a Hilbert curve, a 1, zeros.
The parent of a cell is a mask of its id, so the levels of one place always form a strict tree.
Not a geometry library: no areas, no covers, no neighbours.
Legend: N = number of points; every array is [N].
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from linnet.errors import BadInput

LEAF = 30  # the deepest level
_SWAP, _INVERT = 1, 2
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")
_POSITION_TO_IJ = ((0, 1, 3, 2), (0, 2, 3, 1), (3, 2, 0, 1), (3, 1, 0, 2))
_POSITION_TO_ORIENTATION = (_SWAP, 0, 0, _INVERT | _SWAP)


@functools.cache
def _curve() -> tuple[np.ndarray, np.ndarray]:
    """One step of the Hilbert curve: (orientation, ij) -> position and next orientation."""
    position = np.zeros((4, 4), np.uint64)
    orientation = np.zeros((4, 4), np.intp)
    for turned in range(4):
        for at, ij in enumerate(_POSITION_TO_IJ[turned]):
            position[turned, ij] = at
            orientation[turned, ij] = turned ^ _POSITION_TO_ORIENTATION[at]
    return position, orientation


def cell_ids(lon: np.ndarray, lat: np.ndarray, level: int = LEAF) -> np.ndarray:
    """uint64 ids of the cells of this level that hold these points (degrees)."""
    _known_level(level)
    face, u, v = _face_uv(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
    i, j = _leaf_coordinate(u), _leaf_coordinate(v)
    position, orientation = _curve()
    state = (face & _SWAP).astype(np.intp)
    curve = np.zeros(face.shape, np.uint64)
    for bit in range(LEAF - 1, LEAF - 1 - level, -1):
        ij = (((i >> bit) & 1) << 1) | ((j >> bit) & 1)
        curve = (curve << np.uint64(2)) | position[state, ij]
        state = orientation[state, ij]
    head = (face.astype(np.uint64) << np.uint64(2 * level)) | curve
    return ((head << np.uint64(1)) | np.uint64(1)) << np.uint64(2 * (LEAF - level))


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


def _face_uv(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The face of the cube that each point projects to, and where on it (-1..1)."""
    theta, phi = np.radians(lon), np.radians(lat)
    xyz = np.stack([np.cos(theta) * np.cos(phi), np.sin(theta) * np.cos(phi), np.sin(phi)], -1)
    x, y, z = xyz[..., 0], xyz[..., 1], xyz[..., 2]
    axis = np.argmax(np.abs(xyz), -1)
    largest = np.take_along_axis(xyz, axis[..., None], -1)[..., 0]
    face = axis + 3 * (largest < 0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # only the chosen face's quotient is used
        u = np.choose(face, [y / x, -x / y, -x / z, z / x, z / y, -y / z])
        v = np.choose(face, [z / x, z / y, -y / z, y / x, -x / y, -x / z])
    return face, u, v


def _leaf_coordinate(u: np.ndarray) -> np.ndarray:
    """0 .. 2**30 - 1 along one side of a face; the quadratic map makes cells of similar area."""
    root = np.sqrt(1 + 3 * np.abs(u))
    s = np.where(u >= 0, 0.5 * root, 1 - 0.5 * root)
    return np.clip(np.floor((1 << LEAF) * s), 0, (1 << LEAF) - 1).astype(np.int64)
