"""The nodes of a tree: created, expanded and drawn from.

A node is the root and some tokens after it. An inner node that has been expanded holds the log-probabilities of
its most probable children and the mass of the rest; a child becomes a node when something passes through it. A
leaf ends with an end token, is cut at the limit of the target, or is closed: what the reward declares of its
prefix says all about the texts below it.
Legend: n = nodes or rollouts, K = children that are kept of a node, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from linnet.search.columns import Column, Columns
from linnet.search.reward import Ids, Reward
from linnet.search.steps import Rows, Step

if TYPE_CHECKING:
    from linnet.search.tree import Tree

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
    "squared": Column(np.float64),  # sum of w exp(2 (lam r - shift))
    "seen": Column(np.float64),  # share of the prior mass below that belongs to visited leaves
    "copies": Column(np.int32),  # how often DTS has drawn this child
    "soft": Column(np.float64),  # what DTS backs up: an estimate of E[exp(lam r - shift)] below
}
FULL_ROWS = 64 << 20  # bytes of full rows that a tree keeps
ROUNDING = 1e-5  # how far a sum of probabilities in float32 may be off, as a share of it


class Nodes:
    """The nodes below one root. They know the law p, and of rewards no more than the limits of prefixes."""

    def __init__(self, root: Sequence[int], step: Step, reward: Reward) -> None:
        self.step, self.reward, self.root = step, reward, tuple(root)
        self.committed: Ids = ()  # tokens that `advance` has fixed
        self.nodes = Columns(NODES)
        self.children: dict[int, list[int]] = {}  # of a node: those that are nodes
        self.index: dict[int, int] = {}  # node * V + token -> child
        self.full: dict[int, np.ndarray] = {}  # full rows of nodes that are visited often
        self.drawn: dict[int, float] = {}  # node * V + token -> log p, of the rest, until it becomes a node
        self.nodes.add(1)
        begun = step.begin(root)
        width = begun.ids.shape[1]
        ids = np.uint16 if step.vocabulary <= 1 << 16 else np.int32
        kept = {"ids": Column(ids, None, width), "logprobs": Column(begun.logprobs.dtype, None, width)}
        self.rows = Columns({**kept, "rest": Column(np.float64)})  # rest: mass of all others
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

    def generated(self, node: int) -> Ids:
        """The ids that were generated up to a node, since the search began; without an end token."""
        path = self.path(node)
        return (*self.committed, *(path[:-1] if self.nodes["kind"][node] == ENDED else path))

    def draw(self, nodes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A token from p after each of these inner nodes [n]; those that are new are expanded in batches."""
        tokens = np.full(len(nodes), -1, dtype=np.int64)
        fresh = np.unique(nodes[self.nodes["row"][nodes] < 0])
        for part, rows in self.expanded(fresh):
            here = np.flatnonzero(np.isin(nodes, part))
            tokens[here], shares = self._inverse(nodes[here], uniform[here])
            beyond = here[shares >= 0]
            if len(beyond):
                drawn, logprobs = rows.others(np.searchsorted(part, nodes[beyond]), shares[shares >= 0])
                tokens[beyond] = drawn
                keys = nodes[beyond].astype(np.int64) * self.step.vocabulary + drawn
                self.drawn.update(zip(keys.tolist(), logprobs.tolist(), strict=True))
        known = np.flatnonzero(tokens < 0)
        tokens[known], shares = self._inverse(nodes[known], uniform[known])
        for at, share in zip(known[shares >= 0], shares[shares >= 0].tolist(), strict=True):
            tokens[at] = self.draw_rest(int(nodes[at]), self.full_row(int(nodes[at])), share)
        return tokens

    def expand(self, nodes: Sequence[int] | np.ndarray) -> None:
        """Compute what may follow these inner nodes, none of them twice, where it is not known."""
        wanted = np.asarray(nodes, dtype=np.int64)
        for _ in self.expanded(wanted[self.nodes["row"][wanted] < 0]):
            pass

    def expanded(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        """Expand new nodes; the full rows of a batch are valid until the next one."""
        for first in range(0, len(nodes), self.step.widest):
            part = nodes[first : first + self.step.widest]
            parents = self.nodes["handle"][self.nodes["parent"][part]]
            rows = self.step.extend(parents.tolist(), self.nodes["token"][part].tolist())
            self._store(part, rows)
            yield part, rows

    def draw_rest(self, node: int, full: np.ndarray, uniform: float, excluded: Sequence[int] = ()) -> int:
        """A token from p among those that are neither kept nor excluded."""
        kept = self.rows["ids"][self.nodes["row"][node]]
        shares = np.exp(np.asarray(full, dtype=np.float64))
        shares[kept] = 0
        shares[list(excluded)] = 0
        running = shares.cumsum()
        if not running[-1] > 0:  # rounding has left nothing there: the least of the kept
            return int(kept[-1])
        return int(min(np.searchsorted(running, uniform * running[-1], side="right"), shares.nonzero()[0][-1]))

    def bucket(self, node: int) -> float:
        """The mass of the tokens after an expanded node that are neither kept nor nodes."""
        rest = float(self.rows["rest"][self.nodes["row"][node]])
        children = np.array(self.children.get(node, ()), dtype=np.int64)
        left = rest - float(np.exp(self.nodes["prior"][children[self.nodes["slot"][children] < 0]]).sum())
        return left if left > ROUNDING * rest else 0.0

    def exhausted(self, node: int) -> bool:
        """Whether all that may follow a node has been seen; sums of rounded probabilities do not tell."""
        row = self.nodes["row"][node]
        if row < 0 or self.bucket(node) > 0:
            return False
        children = np.array(self.children.get(node, ()), dtype=np.int64)
        kept, seen = self.nodes["slot"][children] >= 0, self.nodes["seen"][children] == 1
        possible = int((np.exp(self.rows["logprobs"][row].astype(np.float64)) > 0).sum())
        return bool(seen[~kept].all() and seen[kept].sum() >= possible)

    def full_row(self, node: int) -> np.ndarray:
        """All log-probabilities after a node; those asked for first are kept, up to a cap."""
        if node in self.full:
            return self.full[node]
        row = self.step.row(int(self.nodes["handle"][node]))
        if (len(self.full) + 1) * row.nbytes <= FULL_ROWS:
            self.full[node] = row
        return row

    def follow(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The children of expanded nodes by their tokens [n]; those that were no nodes become nodes."""
        keys = (nodes.astype(np.int64) * self.step.vocabulary + tokens).tolist()
        missing = {key: at for at, key in enumerate(keys) if key not in self.index}
        if missing:
            at = np.fromiter(missing.values(), dtype=np.int64)
            created = self._create(nodes[at], tokens[at])
            self.index.update(zip(missing, created.tolist(), strict=True))
        return np.array([self.index[key] for key in keys], dtype=np.int64)

    def reindex(self) -> None:
        """The children of each node, and the child that each token leads to, from the columns."""
        parents, tokens = self.nodes["parent"][1:].tolist(), self.nodes["token"][1:].tolist()
        self.index, self.children = {}, {}
        for node, (parent, token) in enumerate(zip(parents, tokens, strict=True), 1):
            self.index[parent * self.step.vocabulary + token] = node
            self.children.setdefault(parent, []).append(node)

    def _create(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        new, nodes = self.nodes.add(len(parents)), self.nodes
        rows = nodes["row"][parents]
        same = self.rows["ids"][rows] == tokens[:, None]
        kept, slots = same.any(1), same.argmax(1)
        nodes["parent"][new], nodes["token"][new] = parents, tokens
        nodes["slot"][new] = np.where(kept, slots, -1)
        prior = self.rows["logprobs"][rows, slots].astype(np.float64)
        for at in np.flatnonzero(~kept):
            known = self.drawn.pop(int(parents[at]) * self.step.vocabulary + int(tokens[at]), None)
            prior[at] = self.full_row(int(parents[at]))[tokens[at]] if known is None else known
        nodes["prior"][new], nodes["logprob"][new] = prior, nodes["logprob"][parents] + prior
        depth = nodes["depth"][parents] + 1
        ended = np.isin(tokens, list(self.step.ends))
        nodes["depth"][new] = depth
        nodes["kind"][new] = np.where(ended, ENDED, np.where(depth >= self.limit, CUT, INNER))
        for parent, child in zip(parents.tolist(), new.tolist(), strict=True):
            self.children.setdefault(parent, []).append(child)
        if self.reward.prefix is not None:
            self._close(new)
        return new

    def _close(self, new: np.ndarray) -> None:
        """Inner nodes below which the limit of their prefix leaves one reward only."""
        assert self.reward.prefix is not None
        for node in new[self.nodes["kind"][new] == INNER].tolist():
            most = self.reward.prefix(self.generated(node))
            least = -math.inf if self.reward.least is None else self.reward.least
            if most <= least:
                self.nodes["kind"][node] = CLOSED
                self.nodes["reward"][node] = most if most == -math.inf else least

    def _store(self, nodes: np.ndarray, rows: Rows) -> None:
        added = self.rows.add(len(nodes))
        self.rows["ids"][added], self.rows["logprobs"][added] = rows.ids, rows.logprobs
        self.rows["rest"][added] = np.exp(rows.rest)
        self.nodes["row"][nodes], self.nodes["handle"][nodes] = added, rows.handles

    def _inverse(self, nodes: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A token from p after each of these expanded nodes, by inversion: kept children first, then the rest.

        The second array has -1, or where the draw falls into the rest what is left of its uniform number.
        """
        row = self.nodes["row"][nodes]
        running = np.exp(self.rows["logprobs"][row].astype(np.float64)).cumsum(1)
        rest = self.rows["rest"][row]
        wanted = uniform * (running[:, -1] + rest)
        slots = (running <= wanted[:, None]).sum(1)
        width = running.shape[1]
        possible = np.isfinite(self.rows["logprobs"][row]).sum(1)  # rounding may point beyond the last of them
        tokens = self.rows["ids"][row, np.minimum(slots, possible - 1)].astype(np.int64)
        beyond = (slots == width) & (rest > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(beyond, (wanted - running[:, -1]) / rest, -1.0)
        return tokens, np.minimum(shares, np.nextafter(1.0, 0.0))


# --- rollouts as one batch: all rows take a token at a time, and those that have ended leave ---


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
