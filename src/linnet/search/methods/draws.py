"""Methods that draw from the model: best-of-n, soft best-of-n, and without replacement; and greedy, which draws
nothing.

All share the tree's cache: a prefix that was drawn before costs no tokens again, and a text no second reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.search.methods.contract import Draw, Method
from linnet.search.methods.maxent import distinct
from linnet.search.nodes import invert, roll

if TYPE_CHECKING:
    from linnet.search.tree import Tree


@dataclass(frozen=True)
class Greedy(Method):
    """The likeliest token at each step: one text."""

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        (leaf,) = roll(tree, np.zeros(1), np.zeros((1, tree.limit)), likeliest)
        return [] if tree.nodes["visits"][leaf] else [Draw(int(leaf))]


@dataclass(frozen=True)
class BestOfN(Method):
    """Independent draws from p, visited or not; the answer is the best of them."""

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        leaves = roll(tree, np.zeros(k), tree.random(k))
        return [Draw(leaf, 0.0, 0.0, replaced=True) for leaf in leaves.tolist()]

    def log_partition(self, tree: Tree) -> float | None:
        return log_mean(tree)


@dataclass(frozen=True)
class SoftBestOfN(BestOfN):
    """Independent draws from p; the answer is one of them, with probability in proportion to exp(lam r)."""

    def samples(self, tree: Tree, count: int) -> list[int]:
        gains = np.exp(tree.draws["loggain"] - tree.shift)
        if not gains.sum() > 0:
            return []
        chosen, _ = invert(gains, tree.random(count)[:, 0])
        return tree.finished(tree.draws["leaf"][chosen], tree.random(count))


@dataclass(frozen=True)
class WithoutReplacement(Method):
    """Draws from p among the texts that were not drawn yet (a trie of unsampled mass; Shi, Bieber and Sutton,
    2020).

    Its estimate of Z, with the exact part and each draw's unvisited mass, is that of Des Raj (1956).
    """

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        return distinct(tree, k, defence=1.0, shrinkage=1.0)

    def log_partition(self, tree: Tree) -> float | None:
        mean = log_mean(tree)
        if mean is None:
            return None
        return float(np.logaddexp(tree.log_mass, math.log(tree.unseen) + mean if tree.unseen > 0 else -math.inf))


def likeliest(tree: Tree, nodes: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The guide of greedy search."""
    tree.expand(np.unique(nodes))
    return tree.rows["ids"][tree.nodes["row"][nodes], 0].astype(np.int64)


def log_mean(tree: Tree) -> float | None:
    """The logarithm of the mean of exp(lam r) over the draws, by their weights."""
    weight, weighted = float(tree.nodes["weight"][0]), float(tree.nodes["weighted"][0])
    if not weight > 0:
        return None
    return math.log(weighted / weight) + tree.shift if weighted > 0 else -math.inf
