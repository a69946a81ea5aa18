"""Methods that rank texts by log p: beam search, diverse beam search, and best-first search."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from linnet.errors import BadInput
from linnet.search.methods.contract import Draw, Method
from linnet.search.nodes import INNER

if TYPE_CHECKING:
    from linnet.search.tree import Tree

Entry = list[Any]  # minus log p, a node, and which of its children


@dataclass(frozen=True)
class Beam(Method):
    """The likeliest `width` prefixes go on, in one wave; without `width` as many as the budget holds.

    With more than one of `groups` the beam is diverse (Vijayakumar et al., 2016): a group's tokens lose
    `diversity` for each time that a group before it has chosen them at the same step.
    """

    width: int | None = None
    groups: int = 1
    diversity: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise BadInput(f"width is {self.width}; a beam needs at least 1 row")
        if self.groups < 1 or (self.width is not None and self.width < self.groups):
            raise BadInput(f"{self.groups} groups need a beam of at least that width, and at least 1 group")

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        if "beam" in tree.memory:
            return []
        tree.memory["beam"] = True
        width = min(self.width or tree.planned, tree.planned)
        shares = [width // self.groups + (group < width % self.groups) for group in range(self.groups)]
        beams = [[0] for share in shares if share]
        scores = [np.zeros(1) for _ in beams]
        while inner := [node for beam in beams for node in beam if tree.nodes["kind"][node] == INNER]:
            tree.expand(np.unique(inner))
            chosen: dict[int, int] = {}
            for group, share in enumerate(shares[: len(beams)]):
                beams[group], scores[group] = self._next(tree, beams[group], scores[group], share, chosen)
        leaves = dict.fromkeys(node for beam in beams for node in beam)
        return [Draw(leaf) for leaf in leaves if not tree.nodes["visits"][leaf]]

    def _next(
        self, tree: Tree, beam: list[int], scores: np.ndarray, width: int, chosen: dict[int, int]
    ) -> tuple[list[int], np.ndarray]:
        """The best continuations of one group; texts that have ended stay as they are."""
        nodes = np.array(beam)
        inner = tree.nodes["kind"][nodes] == INNER
        rows = tree.nodes["row"][nodes[inner]]
        tokens = tree.rows["ids"][rows]
        found = scores[inner][:, None] + tree.rows["logprobs"][rows].astype(np.float64)
        lost = np.array([chosen.get(token, 0) for token in tokens.ravel().tolist()]).reshape(tokens.shape)
        ranked = np.concatenate(((found - self.diversity * lost).ravel(), scores[~inner]))
        order = np.argsort(-ranked, kind="stable")[:width]
        order = order[np.isfinite(ranked[order])]
        going = order[order < found.size]
        kept = tokens.ravel()[going].astype(np.int64)
        for token in kept.tolist():
            chosen[token] = chosen.get(token, 0) + 1
        children = tree.follow(nodes[inner][going // tokens.shape[1]], kept)
        ended = order[order >= found.size] - found.size
        beam = [*children.tolist(), *nodes[~inner][ended].tolist()]
        return beam, np.concatenate((found.ravel()[going], scores[~inner][ended]))


@dataclass(frozen=True)
class BestFirst(Method):
    """All texts in the order of their probability, the likeliest first.

    `parallel` inner nodes are computed at once; with 1 no node is computed that the order does not need.
    """

    parallel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel < 1:
            raise BadInput(f"parallel is {self.parallel}; at least 1 node must be computed at once")

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        frontier = Frontier(tree)
        draws: list[Draw] = []
        while len(draws) < k and frontier.heap:
            inner = frontier.pop(self.parallel)
            if not inner:
                leaf = frontier.pop_leaf()
                if not tree.nodes["visits"][leaf]:
                    draws.append(Draw(leaf))
            elif not frontier.expand(inner):
                break
        return draws


class Frontier:
    """The children of expanded nodes that were not reached yet, the likeliest first; of each node one is
    waiting.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        if "frontier" not in tree.memory:
            tree.memory["frontier"], tree.memory["rest"] = [], {}
            self._open(0)
        self.heap: list[Entry] = tree.memory["frontier"]

    def pop(self, most: int) -> list[int]:
        """The first inner nodes, up to the first leaf; none if a leaf is first."""
        nodes: list[int] = []
        while self.heap and len(nodes) < most:
            node = self._child(self.heap[0])
            if self.tree.nodes["kind"][node] != INNER:
                break
            self._take()
            nodes.append(node)
        return nodes

    def pop_leaf(self) -> int:
        leaf = self._child(self.heap[0])
        self._take()
        return leaf

    def expand(self, nodes: list[int]) -> bool:
        """Compute what follows these nodes; False, and nothing happens, where the budget does not hold it."""
        tree = self.tree
        new = [node for node in nodes if tree.nodes["row"][node] < 0]
        if tree.step.forward_tokens + len(new) > tree.allowance:
            for node in nodes:
                heapq.heappush(self.heap, [-float(tree.nodes["logprob"][node]), -node, -1])
            return False
        tree.expand(new)
        for node in nodes:
            self._open(node)
        return True

    def _open(self, node: int) -> None:
        self._push(node, 0)

    def _push(self, node: int, child: int) -> None:
        tree = self.tree
        row, width = tree.nodes["row"][node], tree.rows["ids"].shape[1]
        if child < width:
            share = float(tree.rows["logprobs"][row, child])
        elif child - width < len(self._others(node)):
            share = float(tree.full_row(node)[self._others(node)[child - width]])
        else:
            return
        if share > -math.inf:
            heapq.heappush(tree.memory["frontier"], [-float(tree.nodes["logprob"][node]) - share, node, child])

    def _others(self, node: int) -> list[int]:
        """The tokens after a node that it does not keep, the likeliest first."""
        tree = self.tree
        rest: dict[str, list[int]] = tree.memory["rest"]
        if str(node) not in rest:
            row = tree.nodes["row"][node]
            if not tree.rows["rest"][row] > 0:
                return []
            order = np.argsort(-tree.full_row(node), kind="stable")
            rest[str(node)] = order[~np.isin(order, tree.rows["ids"][row])].tolist()
        return rest[str(node)]

    def _child(self, entry: Entry) -> int:
        """The node of an entry; it becomes one if it is none."""
        node, child = int(entry[1]), int(entry[2])
        if child < 0:  # a node that was put back
            return -node
        width = self.tree.rows["ids"].shape[1]
        row = self.tree.nodes["row"][node]
        token = self.tree.rows["ids"][row, child] if child < width else self._others(node)[child - width]
        return int(self.tree.follow(np.array([node]), np.array([token], dtype=np.int64))[0])

    def _take(self) -> None:
        """Remove the first entry; the next child of the same node waits in its stead."""
        _, node, child = heapq.heappop(self.heap)
        if child >= 0:
            self._push(node, child + 1)
