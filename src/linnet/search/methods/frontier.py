"""What a best-first search goes on with: of each expanded node its best child that was not reached yet."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from linnet.search.nodes import INNER

if TYPE_CHECKING:
    from linnet.search.tree import Tree

Entry = list[Any]  # minus the rank, log p, a node, and which of its children


class Frontier:
    """The children of expanded nodes that were not reached yet, the best first; of each node one is waiting.

    `bonus` is added to the log p of the children of each node. The entries live in the memory of the tree.
    """

    def __init__(self, tree: Tree, bonus: np.ndarray | None = None) -> None:
        self.tree, self.bonus = tree, bonus
        if "frontier" not in tree.memory:
            tree.memory["frontier"], tree.memory["rest"] = [], {}
            self._push(0, 0)
        self.heap: list[Entry] = tree.memory["frontier"]
        if bonus is not None:
            for entry in self.heap:
                entry[0] = -entry[1] - bonus[abs(entry[2])]
            heapq.heapify(self.heap)

    def leaves(self, k: int, parallel: int = 1, least: float = -math.inf, most: float = math.inf) -> list[int]:
        """The next unvisited leaves whose log p is above `least`; at most about `most` nodes are computed for
        them, `parallel` at once.
        """
        found: list[int] = []
        # Rows are counted, and not tokens: a tree that was saved and opened computes some tokens again.
        last = self.tree.rows.count + most
        while len(found) < k and self.heap and self.heap[0][1] > least and self.tree.rows.count < last:
            inner = self._inner(parallel, least)
            if not inner:
                leaf = self._child(self.heap[0])
                self._take()
                if not self.tree.nodes["visits"][leaf]:
                    found.append(leaf)
            elif not self._expand(inner):
                break
        return found

    def _inner(self, most: int, least: float) -> list[int]:
        """The first inner nodes, up to the first leaf; none if a leaf is first."""
        nodes: list[int] = []
        while self.heap and len(nodes) < most and self.heap[0][1] > least:
            node = self._child(self.heap[0])
            if self.tree.nodes["kind"][node] != INNER:
                break
            self._take()
            nodes.append(node)
        return nodes

    def _expand(self, nodes: list[int]) -> bool:
        """Compute what follows these nodes; False, and nothing happens, where the budget does not hold it."""
        tree = self.tree
        new = [node for node in nodes if tree.nodes["row"][node] < 0]
        if tree.step.forward_tokens + len(new) > tree.allowance:
            for node in nodes:
                self._enter(float(tree.nodes["logprob"][node]), -node, -1)
            return False
        tree.expand(new)
        for node in nodes:
            self._push(node, 0)
        return True

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
            self._enter(float(tree.nodes["logprob"][node]) + share, node, child)

    def _enter(self, logprob: float, node: int, child: int) -> None:
        bonus = 0.0 if self.bonus is None or abs(node) >= len(self.bonus) else float(self.bonus[abs(node)])
        heapq.heappush(self.tree.memory["frontier"], [-logprob - bonus, logprob, node, child])

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
        node, child = int(entry[2]), int(entry[3])
        if child < 0:  # a node that was put back
            return -node
        width = self.tree.rows["ids"].shape[1]
        row = self.tree.nodes["row"][node]
        token = self.tree.rows["ids"][row, child] if child < width else self._others(node)[child - width]
        return int(self.tree.follow(np.array([node]), np.array([token], dtype=np.int64))[0])

    def _take(self) -> None:
        """Remove the first entry; the next child of the same node waits in its stead."""
        _, _, node, child = heapq.heappop(self.heap)
        if child >= 0:
            self._push(node, child + 1)
