"""Places from stays: DBSCAN on the sphere, the same labels as scikit-learn's for the same points.

Points are hashed into cubes of side `metres` in 3-d, where neighbours lie in adjacent cubes; neither poles nor the
date line are special. Legend: S = points; pairs are (i, j) with i != j within the distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from linnet.domains.places.stays import EARTH
from linnet.domains.places.visits import ranges

_BLOCK = 2_000_000  # candidate pairs looked at together


class ClusterRule(BaseModel):
    """trackintel's names in brackets; with `by="user"` two people never share a place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metres: float = 20.0  # epsilon
    least: int = 2  # num_samples, the point itself counted
    by: Literal["dataset", "user"] = "dataset"  # agg_level


def cluster(lon: np.ndarray, lat: np.ndarray, rule: ClusterRule, user: np.ndarray) -> np.ndarray:
    """int64 [S] labels from 0 in the order of the first core point; -1 = noise."""
    if len(lon) == 0:
        return np.empty(0, np.int64)
    group = np.zeros(len(lon), np.int64) if rule.by == "dataset" else user.astype(np.int64)
    points = _on_sphere(lon, lat)
    reach = 2 * EARTH * np.sin(rule.metres / (2 * EARTH))  # the chord of an arc of that many metres
    pairs = list(_neighbours(points, group, reach))
    first = np.concatenate([pair[0] for pair in pairs])
    second = np.concatenate([pair[1] for pair in pairs])
    core = 1 + np.bincount(first, minlength=len(lon)) >= rule.least
    inner = core[first] & core[second]
    root = _components(first[inner], second[inner], len(lon))
    heads = np.flatnonzero(core & (root == np.arange(len(lon))))
    label = np.full(len(lon), -1)
    label[core] = np.searchsorted(heads, root[core])
    border = core[second] & ~core[first]  # a border point belongs to the first cluster that reaches it
    lowest = np.full(len(lon), len(lon))
    np.minimum.at(lowest, first[border], label[second[border]])
    return np.where(lowest < len(lon), lowest, label)


def _on_sphere(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    theta, phi = np.radians(lon), np.radians(lat)
    return EARTH * np.stack([np.cos(theta) * np.cos(phi), np.sin(theta) * np.cos(phi), np.sin(phi)], 1)


def _neighbours(points: np.ndarray, group: np.ndarray, reach: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All ordered pairs of different points of one group within reach."""
    cube = np.floor(points / reach).astype(np.int64)
    cubes, inverse = np.unique(np.column_stack([group, cube]), axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    edges = np.searchsorted(inverse.ravel()[order], np.arange(len(cubes) + 1))
    key, multipliers = _pack(cubes)
    sorted_key = np.argsort(key)
    steps = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for step in steps:
        wanted = key + (step * multipliers[1:]).sum()
        found = sorted_key[np.minimum(np.searchsorted(key, wanted, sorter=sorted_key), len(key) - 1)]
        here = np.flatnonzero(key[found] == wanted)
        yield from _between(points, order, edges, here, found[here], reach)


def _pack(cubes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One number a cube, linear in its coordinates modulo 2**64, so that a neighbour's number is a sum."""
    rng = np.random.default_rng(0)
    while True:
        multipliers = rng.integers(-(2**62), 2**62, 4) | 1
        key = (cubes * multipliers).sum(1)
        if len(np.unique(key)) == len(key):
            return key, multipliers


def _between(
    points: np.ndarray, order: np.ndarray, edges: np.ndarray, here: np.ndarray, there: np.ndarray, reach: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs between the cubes `here` and `there`, in blocks of bounded size."""
    size_here, size_there = edges[here + 1] - edges[here], edges[there + 1] - edges[there]
    block = np.cumsum(size_here * size_there) // _BLOCK
    for number in np.unique(block):
        chosen = block == number
        left, owner = ranges(edges[here[chosen]], edges[here[chosen] + 1])
        right, of = ranges(edges[there[chosen]][owner], edges[there[chosen] + 1][owner])
        i, j = order[left[of]], order[right]
        near = (i != j) & (((points[i] - points[j]) ** 2).sum(1) <= reach**2)
        yield i[near], j[near]


def _components(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """The lowest point of each point's connected component, by hooking and pointer jumping."""
    root = np.arange(count)
    while True:
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            return root
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (jumped := root[root] != root).any():
            root = np.where(jumped, root[root], root)
