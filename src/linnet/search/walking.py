"""Rollouts as one batch: all rows take a token at a time, and those that have ended leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from linnet.search.tree import Tree

INNER, CLOSED = 0, 3  # kinds of nodes


def invert(shares: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices drawn in proportion to shares of any total, and what is left of each uniform number inside of its
    share.
    """
    running = shares.cumsum()
    wanted = uniform * running[-1]
    index = np.minimum(np.searchsorted(running, wanted, side="right"), np.flatnonzero(shares)[-1])
    left = (wanted - (running[index] - shares[index])) / shares[index]
    return index, np.clip(left, 0.0, np.nextafter(1.0, 0.0))


class Guide(Protocol):
    def __call__(self, tree: Tree, nodes: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A token for each of these rows, which have come to these inner nodes."""
        ...


def prior(tree: Tree, nodes: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The law p itself."""
    return tree.draw(nodes, uniform)


def roll(tree: Tree, starts: np.ndarray, numbers: np.ndarray, guide: Guide = prior) -> np.ndarray:
    """The leaves to which these rows come from `starts`, with one uniform number a token from `numbers`."""
    at = np.array(starts, dtype=np.int64)
    going = np.flatnonzero(np.isin(tree.nodes["kind"][at], (INNER, CLOSED)))
    while len(going):
        nodes = at[going]
        uniform = numbers[going, tree.nodes["depth"][nodes]]
        at[going] = tree.follow(nodes, guide(tree, nodes, going, uniform))
        going = going[tree.nodes["kind"][at[going]] == INNER]
    return at
