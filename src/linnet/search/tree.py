"""The tree of a search: a struct of arrays over nodes, what was drawn, and what was spent.

A node is the root and some tokens after it. An inner node that has been expanded holds the log-probabilities of
its most probable children and the mass of the rest; a child becomes a node when something passes through it. A
leaf ends with an end token, or is cut at the limit of the target, or is closed: the reward's limit for its
prefix says what is below it.
Legend: n = nodes or rollouts, K = children that are kept of a node, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from linnet.search.columns import Column, Columns
from linnet.search.reward import Ids, Reward
from linnet.search.steps import Rows, Step

if TYPE_CHECKING:
    from linnet.search.methods.contract import Method

INNER, ENDED, CUT, CLOSED = range(4)  # kinds of nodes
NODES = {
    "parent": Column(np.int32, -1),
    "token": Column(np.int32, -1),
    "slot": Column(np.int16, -1),  # of the token among the kept children of the parent; -1: one of the rest
    "depth": Column(np.int32),
    "kind": Column(np.int8, INNER),
    "row": Column(np.int32, -1),  # in `rows`; -1: not expanded
    "handle": Column(np.int64, -1),  # of the step
    "prior": Column(np.float64),  # log p(token | parent)
    "logprob": Column(np.float64),  # log p(node | root)
    "reward": Column(np.float64, math.nan),  # of a leaf that was scored
    "visits": Column(np.int32),  # rollouts that passed through
    "total": Column(np.float64),  # sum of their rewards
    "weight": Column(np.float64),  # sum of their importance weights w
    "weighted": Column(np.float64),  # sum of w exp(lam r - shift)
    "seen": Column(np.float64),  # share of the prior mass below that belongs to visited leaves
    "soft": Column(np.float64),  # the soft value that DTS backs up: exp(lam V - shift)
}
DRAWS = {
    "leaf": Column(np.int32),
    "logweight": Column(np.float64),  # log w; nan where the proposal's probability is unknown
    "mass": Column(np.float64),  # log of the exact part M of Z when this was drawn
    "unseen": Column(np.float64),  # the prior mass U of what was unvisited then
}
FULL_ROWS = 64 << 20  # bytes of full rows that a tree keeps
DONE = 1e-12  # mass that counts as none


class Draw(NamedTuple):
    """One leaf that a method proposes, and what is known of the proposal."""

    leaf: int
    logweight: float = math.nan
    mass: float = -math.inf
    unseen: float = 1.0


class Leaf(NamedTuple):
    """A finished text, as a person reads it."""

    text: str
    ids: Ids
    reward: float
    logprob: float


class Nodes:
    """The nodes of one root: created, expanded and drawn from. It knows the law p, and nothing of rewards but
    limits.
    """

    def __init__(self, root: Sequence[int], step: Step, reward: Reward) -> None:
        self.step, self.reward, self.root = step, reward, tuple(root)
        self.committed: Ids = ()  # tokens that `advance` has fixed
        self.nodes = Columns(NODES)
        self.children: dict[int, list[int]] = {}  # of a node: those that are nodes
        self.index: dict[tuple[int, int], int] = {}  # (node, token) -> child
        self.full: dict[int, np.ndarray] = {}  # full rows of nodes that are visited often
        self.nodes.add(1)
        begun = step.begin(root)
        self.rows = Columns(
            {
                "ids": Column(np.int32, 0, begun.ids.shape[1]),
                "logprobs": Column(begun.logprobs.dtype, 0, begun.ids.shape[1]),
                "rest": Column(np.float64),  # mass of all others
            }
        )
        self._store(np.array([0]), begun)

    @property
    def limit(self) -> int:
        """The depth at which a row is cut."""
        return self.step.target.max_tokens - len(self.committed)

    def path(self, node: int) -> Ids:
        """The tokens from the root to a node."""
        tokens = []
        parent, token = self.nodes["parent"], self.nodes["token"]
        while node > 0:
            tokens.append(int(token[node]))
            node = int(parent[node])
        return tuple(reversed(tokens))

    def generated(self, leaf: int) -> Ids:
        """The ids that a leaf has generated: all since the search began, without an end token."""
        path = self.path(leaf)
        return (*self.committed, *(path[:-1] if self.nodes["kind"][leaf] == ENDED else path))

    def expand(self, nodes: Sequence[int], uniform: np.ndarray | None = None) -> list[int]:
        """Compute what may follow these inner nodes, all in batches, and draw a token after each from p."""
        drawn: list[int] = []
        for first in range(0, len(nodes), self.step.widest):
            part = np.asarray(nodes[first : first + self.step.widest])
            parents = self.nodes["handle"][self.nodes["parent"][part]]
            rows = self.step.extend(parents.tolist(), self.nodes["token"][part].tolist())
            self._store(part, rows)
            if uniform is not None:
                drawn += self.draw(part, uniform[first : first + len(part)], rows)
        return drawn

    def draw(self, nodes: np.ndarray, uniform: np.ndarray, rows: Rows | None = None) -> list[int]:
        """One token from p after each of these expanded nodes, by inversion: kept children first, then the
        rest.
        """
        row = self.nodes["row"][nodes]
        running = np.exp(self.rows["logprobs"][row].astype(np.float64)).cumsum(1)
        wanted = uniform * (running[:, -1] + self.rows["rest"][row])
        slots = (running <= wanted[:, None]).sum(1)
        tokens = self.rows["ids"][row, np.minimum(slots, running.shape[1] - 1)]
        for at in np.flatnonzero(slots == running.shape[1]):
            node, rest = int(nodes[at]), float(self.rows["rest"][row[at]])
            if rest > 0:
                full = self.full_row(node) if rows is None else rows.full(int(at))
                tokens[at] = self.draw_rest(node, full, (wanted[at] - running[at, -1]) / rest)
        return tokens.tolist()

    def draw_rest(self, node: int, full: np.ndarray, uniform: float, excluded: Sequence[int] = ()) -> int:
        """A token from p among those that are not kept, nor excluded."""
        shares = np.exp(np.asarray(full, dtype=np.float64))
        shares[self.rows["ids"][self.nodes["row"][node]]] = 0
        shares[list(excluded)] = 0
        running = shares.cumsum()
        if not running[-1] > 0:  # rounding has left nothing there: the least of the kept
            return int(self.rows["ids"][self.nodes["row"][node], -1])
        return int(min(np.searchsorted(running, uniform * running[-1], side="right"), np.flatnonzero(shares)[-1]))

    def full_row(self, node: int) -> np.ndarray:
        """All log-probabilities after a node; those asked for first are kept, up to a cap."""
        if node not in self.full:
            row = self.step.row(int(self.nodes["handle"][node]))
            if (len(self.full) + 1) * row.nbytes > FULL_ROWS:
                return row
            self.full[node] = row
        return self.full[node]

    def child(self, node: int, token: int) -> int:
        """The child of an expanded node by its token; it becomes a node if it is none."""
        found = self.index.get((node, token))
        if found is None:
            found = self._create(node, token)
        return found

    def _create(self, node: int, token: int) -> int:
        nodes, row = self.nodes, int(self.nodes["row"][node])
        slots = np.flatnonzero(self.rows["ids"][row] == token)
        slot = int(slots[0]) if len(slots) else -1
        prior = float(self.rows["logprobs"][row, slot] if len(slots) else self.full_row(node)[token])
        depth = int(nodes["depth"][node]) + 1
        (new,) = nodes.add(1).tolist()
        nodes["parent"][new], nodes["token"][new], nodes["slot"][new] = node, token, slot
        nodes["depth"][new], nodes["prior"][new] = depth, prior
        nodes["logprob"][new] = nodes["logprob"][node] + prior
        nodes["kind"][new] = ENDED if token in self.step.ends else CUT if depth == self.limit else INNER
        self.children.setdefault(node, []).append(new)
        self.index[node, token] = new
        return new

    def _store(self, nodes: np.ndarray, rows: Rows) -> None:
        added = self.rows.add(len(nodes))
        self.rows["ids"][added], self.rows["logprobs"][added] = rows.ids, rows.logprobs
        self.rows["rest"][added] = np.exp(rows.rest)
        self.nodes["row"][nodes], self.nodes["handle"][nodes] = added, rows.handles


class Tree(Nodes):
    """A search at some moment: `extend` goes on, `ask` and `tell` leave the rewards to the caller."""

    def __init__(self, root: Sequence[int], step: Step, method: Method, reward: Reward, seed: int = 0) -> None:
        super().__init__(root, step, reward)
        self.method, self.seed = method, seed
        self.draws = Columns(DRAWS)
        self.rollouts = self.reward_calls = 0
        self.seconds = 0.0
