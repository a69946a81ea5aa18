"""Monte-Carlo tree search: UCT and PUCT, and Gumbel search with sequential halving.

Rollouts of a wave are selected one after another; those under way count as visits with the mean of their parent.
Where selection comes to a node without visits, the model draws the rest. Rewards are scaled to 0..1 by the least
and the largest so far. A branch that has been seen to its end is not selected again.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from linnet.errors import BadInput
from linnet.search.methods.contract import Draw, Method
from linnet.search.nodes import INNER, roll

if TYPE_CHECKING:
    from linnet.search.tree import Tree

DONE = 1e-12


class Arms(NamedTuple):
    """The kept children of a node [K] as they are while a wave is selected."""

    tokens: np.ndarray
    logprobs: np.ndarray
    visits: np.ndarray
    quality: np.ndarray  # mean reward, 0..1; of those without visits that of the node
    open: np.ndarray  # bool


@dataclass(frozen=True)
class Selection(Method):
    """What the rules below share: a wave of paths by one rule."""

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        if tree.unseen <= DONE:
            return []
        virtual: dict[int, int] = {}
        starts = [self._select(tree, virtual, rollout) for rollout in range(k)]
        leaves = roll(tree, np.array(starts), tree.random(k))
        return [Draw(leaf) for leaf in leaves.tolist()]

    def _select(self, tree: Tree, virtual: dict[int, int], rollout: int) -> int:
        """From the root to the first node below it that has no visits, or to a leaf."""
        node = 0
        while tree.nodes["kind"][node] == INNER and (node == 0 or tree.nodes["visits"][node] > 0):
            arms = measured(tree, node, virtual)
            if not arms.open.any():  # what is left is below children that are not kept: the model draws
                break
            token = arms.tokens[self._pick(tree, node, arms, rollout)]
            node = int(tree.follow(np.array([node]), np.array([token], dtype=np.int64))[0])
            virtual[node] = virtual.get(node, 0) + 1
        return node

    @abstractmethod
    def _pick(self, tree: Tree, node: int, arms: Arms, rollout: int) -> int:
        """The index of an open child."""


@dataclass(frozen=True)
class MCTS(Selection):
    """`puct`: quality + c p sqrt(N) / (1 + n). `uct`: quality + c sqrt(ln N / n), the likeliest unvisited first.

    `width` limits the children of a node to its likeliest ones.
    """

    rule: Literal["puct", "uct"] = "puct"
    c: float = 1.25
    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in ("puct", "uct"):
            raise BadInput(f'rule is "{self.rule}"; it must be "puct" or "uct"')
        if self.width is not None and self.width < 1:
            raise BadInput(f"width is {self.width}; a node needs at least 1 child")

    def _pick(self, tree: Tree, node: int, arms: Arms, rollout: int) -> int:
        total = float(arms.visits.sum())
        if self.rule == "puct":
            scores = arms.quality + self.c * np.exp(arms.logprobs) * math.sqrt(total + 1) / (1 + arms.visits)
        else:
            waiting = arms.open & (arms.visits == 0)
            waiting[self.width :] = False
            if waiting.any():
                return int(waiting.argmax())
            scores = arms.quality + self.c * np.sqrt(math.log(total + 1) / np.maximum(arms.visits, 1))
        allowed = arms.open.copy()
        if self.width is not None and allowed[: self.width].any():
            allowed[self.width :] = False
        return int(np.where(allowed, scores, -math.inf).argmax())


@dataclass(frozen=True)
class Gumbel(Selection):
    """Gumbel search (Danihelka et al., 2022): the root's first tokens are drawn without replacement, and
    sequential halving shares the budget among the `considered` ones; below, visits follow the improved policy.

    `visit_scale` and `quality_scale` say how fast rewards outweigh log p.
    """

    considered: int = 16
    visit_scale: float = 50.0
    quality_scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.considered < 1:
            raise BadInput(f"considered is {self.considered}; at least 1 token must be considered at the root")

    def _pick(self, tree: Tree, node: int, arms: Arms, rollout: int) -> int:
        gained = (self.visit_scale + arms.visits.max()) * self.quality_scale * arms.quality
        if node == 0:
            return self._pick_root(tree, arms, gained, rollout)
        improved = arms.logprobs + gained
        improved = np.exp(improved - improved.max())
        scores = improved / improved.sum() - arms.visits / (1 + arms.visits.sum())
        return int(np.where(arms.open, scores, -math.inf).argmax())

    def _pick_root(self, tree: Tree, arms: Arms, gained: np.ndarray, rollout: int) -> int:
        noise = np.random.default_rng([tree.seed, *tree.committed, 1]).gumbel(size=len(arms.tokens))
        scores = np.where(np.isfinite(arms.logprobs), noise + arms.logprobs, -math.inf)
        first = np.argsort(-scores, kind="stable")[: self.considered]
        possible = np.zeros(len(scores), dtype=bool)
        possible[first] = True
        possible &= arms.open
        if not possible.any():
            possible = arms.open
        turn = considered_visits(min(self.considered, int(possible.sum())), max(tree.planned, 1))
        wanted = turn[min(tree.rollouts + rollout, len(turn) - 1)]
        if (possible & (arms.visits <= wanted)).any():
            possible = possible & (arms.visits <= wanted)
        return int(np.where(possible, scores + np.where(arms.visits > 0, gained, 0), -math.inf).argmax())


def considered_visits(arms: int, rollouts: int) -> list[int]:
    """At each rollout, how often the child that it goes to has been visited before, under sequential halving."""
    if arms <= 1:
        return list(range(rollouts))
    phases = math.ceil(math.log2(arms))
    visits, left = [0] * arms, arms
    turns: list[int] = []
    while len(turns) < rollouts:
        for _ in range(max(1, rollouts // (phases * left))):
            turns += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(2, left // 2)
    return turns[:rollouts]


def measured(tree: Tree, node: int, virtual: dict[int, int]) -> Arms:
    """The children of a node, with the rollouts under way."""
    row = tree.nodes["row"][node]
    tokens, logprobs = tree.rows["ids"][row], tree.rows["logprobs"][row].astype(np.float64)
    low, high = tree.reward_range()
    mean = (float(tree.nodes["total"][node]) / max(1, int(tree.nodes["visits"][node])) - low) / (high - low)
    visits, totals = np.zeros(len(tokens)), np.zeros(len(tokens))
    free = np.isfinite(logprobs)
    children = np.array(
        [child for child in tree.children.get(node, ()) if tree.nodes["slot"][child] >= 0], dtype=int
    )
    if len(children):
        slots, own = tree.nodes["slot"][children], tree.nodes["visits"][children]
        coming = np.array([virtual.get(child, 0) for child in children.tolist()])
        visits[slots] = own + coming
        totals[slots] = (tree.nodes["total"][children] - low * own) / (high - low) + coming * mean
        free[slots] &= tree.nodes["seen"][children] < 1
    quality = np.where(visits > 0, totals / np.maximum(visits, 1), mean)
    return Arms(tokens, logprobs, visits, quality, free)
