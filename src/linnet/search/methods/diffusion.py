"""Diffusion tree search over tokens (DTS and DTS*; Jain et al., 2025): children are draws from p.

A node gets another child, drawn from p, while it has fewer than `width` n^`power` of them after n visits; a
token that is drawn again counts twice. Else DTS selects a child in proportion to its soft value, DTS* by an
upper confidence bound. Backed up is the soft Bellman equation: the value of a node is the mean over its drawn
children.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import BadInput
from linnet.search.methods.contract import Draw, Method
from linnet.search.nodes import invert, roll

if TYPE_CHECKING:
    from linnet.search.tree import Tree


@dataclass(frozen=True)
class DTS(Method):
    """With `star` it is DTS*: selection is greedy up to a bound with constant `c`, and the answer the best
    text.
    """

    star: bool = False
    width: float = 2.0
    power: float = 0.8
    c: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.width > 0 or not 0 < self.power <= 1:
            raise BadInput(f"width is {self.width} and power {self.power}; width must be above 0, power in 0..1")

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        selection = Drawn(self, tree, k)
        return [Draw(leaf) for leaf in roll(tree, np.zeros(k), tree.random(k), selection).tolist()]

    def entered(self, tree: Tree, leaves: np.ndarray) -> None:
        """Back up: leaves have exp(lam r), inner nodes the mean over their drawn children."""
        tree.nodes["soft"][leaves] = np.exp(tree.gains(tree.nodes["reward"][leaves]) - tree.shift)
        level = leaves
        for _ in range(int(tree.nodes["depth"][leaves].max(initial=0))):
            level = np.unique(tree.nodes["parent"][level])
            for node in level[level >= 0].tolist():
                children = tree.children[node]
                copies = tree.nodes["copies"][children]
                known = copies * (tree.nodes["visits"][children] > 0)
                tree.nodes["soft"][node] = (known * tree.nodes["soft"][children]).sum() / max(1, known.sum())
            level = level[level > 0]

    def log_partition(self, tree: Tree) -> float | None:
        soft = float(tree.nodes["soft"][0])
        return math.log(soft) + tree.shift if soft > 0 else None

    def samples(self, tree: Tree, count: int) -> list[int]:
        if self.star or not tree.nodes["soft"][0] > 0:
            return super().samples(tree, count)
        numbers = tree.random(count)
        leaves = roll(tree, np.zeros(count), numbers, softly)
        return tree.finished(leaves, numbers)


class Drawn:
    """The guide of a wave: widen, or select."""

    def __init__(self, method: DTS, tree: Tree, rows: int) -> None:
        self.method = method
        self.coming: dict[int, int] = {}  # rollouts of this wave through a node

    def __call__(self, tree: Tree, nodes: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        tokens = np.full(len(nodes), -1, dtype=np.int64)
        for at, node in enumerate(nodes.tolist()):
            self.coming[node] = self.coming.get(node, 0) + 1
            if tree.nodes["visits"][node] and not self._widens(tree, node):
                tokens[at] = self._select(tree, node, float(uniform[at]))
        drawn = np.flatnonzero(tokens < 0)
        if len(drawn):
            tokens[drawn] = tree.draw(nodes[drawn], uniform[drawn])
            children = tree.follow(nodes[drawn], tokens[drawn])
            np.add.at(tree.nodes["copies"], children, 1)
        return tokens

    def _widens(self, tree: Tree, node: int) -> bool:
        visits = int(tree.nodes["visits"][node]) + self.coming[node]
        copies = int(tree.nodes["copies"][tree.children.get(node, [])].sum())
        known = tree.nodes["soft"][node] > 0
        return copies < self.method.width * visits**self.method.power or not known

    def _select(self, tree: Tree, node: int, uniform: float) -> int:
        children = np.array(tree.children[node])
        soft, visits = tree.nodes["soft"][children], tree.nodes["visits"][children]
        if not self.method.star:
            chosen = int(invert(soft * tree.nodes["copies"][children], np.array([uniform]))[0][0])
            return int(tree.nodes["token"][children[chosen]])
        coming = np.array([self.coming.get(child, 0) for child in children.tolist()])
        with np.errstate(divide="ignore"):
            value = (np.log(soft) + tree.shift) / max(self.method.lam, 1e-9)
        bound = value + self.method.c * np.sqrt(math.log(visits.sum() + 1) / np.maximum(visits + coming, 1))
        return int(tree.nodes["token"][children[int(np.where(visits > 0, bound, -math.inf).argmax())]])


def softly(tree: Tree, nodes: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The guide of the final draw: children in proportion to their soft values."""
    tokens = np.empty(len(nodes), dtype=np.int64)
    for at, node in enumerate(nodes.tolist()):
        children = np.array(tree.children[node])
        chosen, _ = invert(tree.nodes["soft"][children] * tree.nodes["copies"][children], uniform[at : at + 1])
        tokens[at] = tree.nodes["token"][children[chosen[0]]]
    return tokens
