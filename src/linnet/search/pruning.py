"""Moving the root of a tree: a committed token keeps its subtree, and the rest is freed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import BadInput
from linnet.search.nodes import INNER

if TYPE_CHECKING:
    from linnet.search.tree import Tree


def advance(tree: Tree, tokens: Sequence[int]) -> None:
    """Make the node after these tokens the root.

    The sums of its subtree are as they were; what was drawn before told of another Z, so the confidence sequence
    begins anew while the bounds stay.
    """
    if tree.queue:
        raise BadInput("rewards of this tree are awaited; tell them before it advances")
    root = descend(tree, tokens)
    kept = below(tree, root)
    number = np.full(tree.nodes.count, -1)
    number[kept] = np.arange(len(kept))
    dropped = np.setdiff1d(np.flatnonzero(tree.nodes["handle"] >= 0), kept)
    tree.step.release(tree.nodes["handle"][dropped].tolist())
    tree.committed = (*tree.committed, *tokens)
    shrink(tree, kept, number)
    tree.memory.clear()
    tree.leaves = [int(number[leaf]) for leaf in tree.leaves if number[leaf] >= 0]
    tree.draws.keep(np.flatnonzero(number[tree.draws["leaf"]] >= 0))
    tree.draws["leaf"][:] = number[tree.draws["leaf"]]
    tree.draws["logweight"][:] = np.nan
    recount(tree)


def descend(tree: Tree, tokens: Sequence[int]) -> int:
    """The node after these tokens, expanded."""
    node = 0
    for at, token in enumerate(tokens):
        if not 0 <= token < tree.step.vocabulary:
            raise BadInput(f"token {token} is outside the vocabulary (0..{tree.step.vocabulary - 1})")
        tree.expand([node])
        node = int(tree.follow(np.array([node]), np.array([token]))[0])
        if tree.nodes["kind"][node] != INNER:
            raise BadInput(f"the text has ended with token {at + 1} of the {len(tokens)} to advance by")
    tree.expand([node])
    return node


def below(tree: Tree, root: int) -> np.ndarray:
    """The nodes of a subtree, its root first."""
    inside = np.zeros(tree.nodes.count, dtype=bool)
    inside[root] = True
    parent = tree.nodes["parent"]
    level = np.array([root])
    while len(level):
        level = np.flatnonzero(np.isin(parent, level))
        inside[level] = True
    return np.flatnonzero(inside)


def shrink(tree: Tree, kept: np.ndarray, number: np.ndarray) -> None:
    """Only these nodes stay, under new numbers."""
    tree.nodes.keep(kept)
    nodes = tree.nodes
    nodes["parent"][1:] = number[nodes["parent"][1:]]
    nodes["parent"][0] = nodes["token"][0] = nodes["slot"][0] = -1
    nodes["depth"][:] -= nodes["depth"][0]
    nodes["logprob"][:] -= nodes["logprob"][0]
    nodes["prior"][0] = 0
    with_row = np.flatnonzero(nodes["row"] >= 0)
    tree.rows.keep(nodes["row"][with_row])
    nodes["row"][with_row] = np.arange(len(with_row))
    tree.full = {int(number[node]): row for node, row in tree.full.items() if number[node] >= 0}
    tree.reindex()


def recount(tree: Tree) -> None:
    """The visited part of Z of the new root."""
    visited = np.unique(tree.draws["leaf"])
    rewards, shares = tree.nodes["reward"][visited], np.exp(tree.nodes["logprob"][visited])
    tree.mass = float((shares * np.exp(tree.gains(rewards) - tree.shift)).sum())
    tree.mean = float((shares * np.where(np.isneginf(rewards), 0, rewards)).sum())
