"""Maximum-entropy search: exact mass of visited leaves, defensive importance weights, shrinkage to the parent.

At a node s let b(a|s) be the prior over what is unvisited below, p(a|s) u(sa) / u(s), and q(a|s) the same times
m(sa), an estimate of E[exp(lam r)] below the child that is drawn towards that of its parent:
m(sa) = (S1(sa) + c m(s)) / (S0(sa) + c), with the sums S0 of w and S1 of w exp(lam r) over rollouts through sa.
A rollout follows q throughout with probability 1 - eps, else b, and has the weight of the mixture,
w = B / (eps B + (1 - eps) Q) <= 1/eps, so that no branch starves because its first rollouts were poor.
Every leaf that is drawn is new; in a wave all rollouts see the same tree, and some may meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from linnet.errors import BadInput
from linnet.search.methods.contract import Draw, Method
from linnet.search.methods.frontier import Frontier
from linnet.search.nodes import invert, roll

if TYPE_CHECKING:
    from linnet.search.tree import Tree

DONE = 1e-12  # mass that counts as none
WORTH = 0.05  # of the mass that a draw finds on average: what a leaf must have to be chosen
HORIZON = 64  # draws that are expected to follow at least
PARALLEL = 8  # nodes that are expanded at once where leaves are chosen, at most
CHOSEN = {"sample": 0.75, "best": 0.9}  # of the rollouts, at most (dev/LOG.md)
TURNS = 8  # in which a wave looks for leaves that it does not have


class Options(NamedTuple):
    """What may follow a visited node: its kept children, the rest as one bucket, and visited children of the
    rest.
    """

    tokens: np.ndarray  # -1: the bucket
    prior: np.ndarray
    unseen: np.ndarray
    mean: np.ndarray  # m, relative to exp(shift)


@dataclass(frozen=True)
class MaxEnt(Method):
    """`mode` says what the search is for: draws from p exp(lam r) / Z, or the best text.

    `defence` is eps, `shrinkage` c; without a number c is estimated from the tree, for each depth. A share
    `chosen` of the rollouts, at most, goes to leaves that are chosen and not drawn; without a number it is that of
    the mode.
    """

    mode: Literal["sample", "best"] = "sample"
    defence: float = 0.5
    shrinkage: float | None = None
    chosen: float | None = None
    focus: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("sample", "best"):
            raise BadInput(f'mode is "{self.mode}"; it must be "sample" or "best"')
        if not 0 < self.defence <= 1:
            raise BadInput(f"defence is {self.defence}; it must lie above 0 and not above 1")
        if not 0 <= self.share <= 1 or not 0 <= self.focus < math.inf:
            raise BadInput(
                f"chosen is {self.chosen} and focus {self.focus}; chosen must lie in 0..1, focus be >= 0"
            )
        if self.shrinkage is not None and not self.shrinkage > 0:
            raise BadInput(f"shrinkage is {self.shrinkage}; it must be above 0")

    @property
    def share(self) -> float:
        """Of the rollouts that may be chosen."""
        return CHOSEN[self.mode] if self.chosen is None else self.chosen

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        if tree.unseen <= DONE:
            return []
        return self._chosen(tree, k) or distinct(tree, k, self.defence, self.shrinkage)

    def _chosen(self, tree: Tree, k: int) -> list[Draw]:
        """Leaves that are worth a visit for certain; none, while their share of the rollouts is used up.

        In mode `sample` those are the likeliest, as long as they have enough of the unseen mass and cost no more
        than draws would; in mode `best` the best first, where a reward counts as up to `focus` nats.
        """
        if self.share == 0:
            return []
        already = tree.memory.get("chosen", 0)
        rewards = tree.nodes["reward"][tree.leaves]
        drawing = self.mode == "sample" or bool((rewards != rewards[:1]).any())  # in mode `best` once they differ
        if drawing and (
            already >= self.share * (tree.rollouts + 1) or tree.rollouts < tree.memory.get("pause", 0)
        ):
            return []
        least, bonus = -math.inf, None
        if self.mode == "best":
            bonus = focused(tree, self.focus)
        else:
            least = math.log(WORTH * tree.unseen / max(HORIZON, tree.rollouts))
        # Where the likeliest texts are many, a frontier widens for ever: it may compute what draws would.
        leaves = Frontier(tree, bonus).leaves(k, at_once(tree), least, most=max(k, PARALLEL) * tree.limit)
        if not leaves:
            tree.memory["pause"] = 2 * tree.rollouts + PARALLEL
        tree.memory["chosen"] = already + len(leaves)
        return [Draw(leaf) for leaf in leaves]

    def log_partition(self, tree: Tree) -> float | None:
        if not tree.draws.count:
            return None
        total = tree.mass + tree.unseen * root_mean(tree)
        return math.log(total) + tree.shift if total > 0 else -math.inf

    def samples(self, tree: Tree, count: int) -> list[int]:
        """In mode `sample`: a visited leaf with probability p g / Z, else one of the unvisited, which is
        scored.
        """
        if self.mode == "best" or not tree.draws.count:
            return super().samples(tree, count)
        rest = tree.unseen * root_mean(tree)
        numbers = tree.random(count)
        visited, shares = self.visited(tree)
        running = shares.cumsum()
        wanted = numbers[:, -2] * ((running[-1] if len(running) else 0.0) + rest)
        starts = np.zeros(count, dtype=np.int64)
        known = wanted < (running[-1] if len(running) else 0.0)
        starts[known] = visited[np.searchsorted(running, wanted[known], side="right")]
        leaves = np.array(starts)
        fresh = np.flatnonzero(~known)
        leaves[fresh] = roll(
            tree, starts[fresh], numbers[fresh], Walk(tree, np.ones(len(fresh), dtype=bool), self.shrinkage)
        )
        return tree.finished(leaves, numbers)

    def shrinkage_at(self, tree: Tree, depth: int) -> float:
        """c of the children at this depth."""
        return shrinkages(tree)[depth] if self.shrinkage is None else self.shrinkage

    def visited(self, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
        """The visited leaves, closed ones among them, and p g of each, relative to exp(shift)."""
        leaves = np.unique(tree.draws["leaf"])
        gains = tree.gains(tree.nodes["reward"][leaves])
        return leaves, np.exp(tree.nodes["logprob"][leaves] + gains - tree.shift)


def at_once(tree: Tree) -> int:
    """How many nodes to expand together: few where the budget is small, since some of them lead to no leaf."""
    left = (tree.allowance - tree.step.forward_tokens) / (PARALLEL * tree.limit)
    return PARALLEL if left >= PARALLEL else max(1, int(left))


def focused(tree: Tree, focus: float) -> np.ndarray:
    """What each node adds to the log p of its children: `focus` times the mean reward below, on a scale of 0 to 1.

    A mean is drawn towards that of the parent, which counts as one rollout.
    """
    low, high = tree.reward_range()
    mean = np.zeros(tree.nodes.count)
    if not tree.leaves:
        return mean
    visits, total, depth = tree.nodes["visits"], tree.nodes["total"], tree.nodes["depth"]
    mean[0] = total[0] / visits[0]
    for level in range(1, int(depth.max()) + 1):
        here = np.flatnonzero(depth == level)
        mean[here] = (total[here] + mean[tree.nodes["parent"][here]]) / (visits[here] + 1)
    return focus * (mean - low) / (high - low)


def root_mean(tree: Tree) -> float:
    """m of the root: the mean of exp(lam r - shift) by the weights so far, before the first draw that of p over
    visited leaves, and 1 where there are none.
    """
    weight, seen = float(tree.nodes["weight"][0]), float(tree.nodes["seen"][0])
    if weight > 0:
        return float(tree.nodes["weighted"][0]) / weight
    return tree.mass / seen if seen > 0 else 1.0


def distinct(tree: Tree, k: int, defence: float, shrinkage: float | None) -> list[Draw]:
    """At most k different unvisited leaves, in the order in which independent draws from the mixture find them.

    Skipping those that this wave has is drawing without replacement: the i-th new leaf has the mixture's law
    without the earlier ones, which have the mixture's mass `taken`, and their prior mass is no longer unvisited.
    """
    unseen = tree.unseen
    if unseen <= DONE:
        return []
    draws: dict[int, Draw] = {}
    taken, left = 0.0, unseen
    for turn in range(TURNS):
        numbers = tree.random(k - len(draws), turn)
        walk = Walk(tree, numbers[:, -1] > defence, shrinkage)
        leaves = roll(tree, np.zeros(len(numbers)), numbers, walk)
        weights = 1 / (defence + (1 - defence) * np.exp(walk.ratio))  # of the prior over the mixture
        for leaf, weight in zip(leaves.tolist(), weights.tolist(), strict=True):
            if leaf in draws or left <= DONE * unseen or taken >= 1 - DONE:
                continue
            scale = math.log(1 - taken) + math.log(unseen / left)
            draws[leaf] = Draw(leaf, math.log(weight) + scale, scale - math.log(defence))
            prior = math.exp(tree.nodes["logprob"][leaf])
            taken, left = taken + prior / unseen / weight, left - prior
        if len(draws) == k or left <= DONE * unseen:
            break
    return list(draws.values())


def options(tree: Tree, node: int, mean: float, shrinkage: float) -> Options:
    """What may follow a visited node whose own m is `mean`."""
    row = tree.nodes["row"][node]
    children = np.array(tree.children[node])
    unseen = 1 - tree.nodes["seen"][children]
    weight, weighted = tree.nodes["weight"][children], tree.nodes["weighted"][children]
    means = (weighted + shrinkage * mean) / (weight + shrinkage)
    slots, prior = tree.nodes["slot"][children], np.exp(tree.nodes["prior"][children])
    others = slots < 0
    kept = np.exp(tree.rows["logprobs"][row].astype(np.float64))
    tokens = np.concatenate((tree.rows["ids"][row], [-1], tree.nodes["token"][children[others]]))
    result = Options(
        tokens,
        np.concatenate((kept, [tree.bucket(node)], prior[others])),
        np.ones(len(tokens)),
        np.full(len(tokens), mean),
    )
    at = np.where(others, len(kept) + np.cumsum(others), slots)
    result.unseen[at], result.mean[at] = unseen, means
    return result


class Walk:
    """The guide of some rollouts on one tree, and what they gather: `ratio` is log Q - log B of each."""

    def __init__(self, tree: Tree, guided: np.ndarray, shrinkage: float | None) -> None:
        self.guided = guided
        self.shrinkages = shrinkages(tree) if shrinkage is None else [shrinkage] * (tree.limit + 1)
        self.ratio = np.zeros(len(guided))
        self.means = {0: root_mean(tree)}  # m of the nodes on the way

    def __call__(self, tree: Tree, nodes: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        tokens = np.empty(len(nodes), dtype=np.int64)
        visited = tree.nodes["visits"][nodes] > 0
        for node in np.unique(nodes[visited]).tolist():
            here = np.flatnonzero(nodes == node)
            tokens[here] = self._choose(tree, node, rows[here], uniform[here])
        fresh = np.flatnonzero(~visited)
        if len(fresh):
            tokens[fresh] = tree.draw(nodes[fresh], uniform[fresh])
        return tokens

    def _choose(self, tree: Tree, node: int, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        found = options(tree, node, self.means[node], self.shrinkages[int(tree.nodes["depth"][node]) + 1])
        left = found.prior * found.unseen
        tilted = left * found.mean
        if not tilted.sum() > 0:
            tilted = left
        guided = self.guided[rows]
        chosen, inside = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        chosen[guided], inside[guided] = invert(tilted, uniform[guided])
        chosen[~guided], inside[~guided] = invert(left, uniform[~guided])
        self.ratio[rows] += np.log(tilted[chosen] / tilted.sum()) - np.log(left[chosen] / left.sum())
        tokens = found.tokens[chosen].astype(np.int64)
        for at in np.flatnonzero(tokens < 0):
            extra = found.tokens[tree.rows["ids"].shape[1] + 1 :]
            tokens[at] = tree.draw_rest(node, tree.full_row(node), float(inside[at]), extra.tolist())
        children = tree.follow(np.full(len(tokens), node), tokens)
        self.means.update(zip(children.tolist(), found.mean[chosen].tolist(), strict=True))
        return tokens


# How far the mean of a child is drawn towards that of its parent, estimated from the tree itself.
#
# For each depth, the rewards' gains g = exp(lam r) of rollouts vary within children by s2 and the true means of
# children vary about their parents by t2. The best linear estimate of a child's mean counts its parent's as c = s2
# / t2 rollouts. Both variances come from the sums of the tree as in a one-way analysis of variance over all
# parents of that depth. Where few children tell, the ratio stays near `FIRST`.

FIRST = 1.0  # c before anything is known
TRUST = 4.0  # children that this guess counts as
LEAST, MOST = 0.25, 4.0  # more would serve the mean square and not the law, where a few large gains make up Z
AGAIN = 1.1  # growth of the tree after which c is estimated again


def shrinkages(tree: Tree) -> list[float]:
    """c of the children at each depth; estimated again when the tree has grown by a tenth."""
    held = tree.memory.get("shrinkage")
    if held is None or tree.draws.count >= AGAIN * held[0]:
        held = tree.memory["shrinkage"] = [max(8, tree.draws.count), estimated(tree)]
    found: list[float] = held[1]
    return found


def estimated(tree: Tree) -> list[float]:
    """c of the children at depths 0, 1, ...; FIRST where nothing varies."""
    nodes = tree.nodes
    weight, parent = nodes["weight"], nodes["parent"]
    children = np.flatnonzero((weight > 0) & (parent >= 0))
    children = children[nodes["visits"][parent[children]] > 1]
    count = weight[children]
    mean = nodes["weighted"][children] / count
    above = parent[children]
    between = count * (mean - nodes["weighted"][above] / weight[above]) ** 2
    within = np.maximum(nodes["squared"][children] - count * mean**2, 0.0)
    found = []
    for depth in range(tree.limit + 1):
        here = nodes["depth"][children] == depth
        parents = np.unique(above[here])
        total, kinds = float(count[here].sum()), int(here.sum()) - len(parents)
        spread = total - float((count[here] ** 2 / weight[above[here]]).sum())
        again = total - int(here.sum())
        noise = float(within[here].sum()) / again if again >= 1 else 0.0
        if kinds < 1 or not noise > 0:
            found.append(FIRST)
            continue
        size = spread / kinds  # rollouts of a child
        ratio = float(between[here].sum()) / kinds / noise  # 1 where the children do not differ
        ratio = (kinds * ratio + TRUST * (1 + size / FIRST)) / (kinds + TRUST)
        found.append(float(np.clip(size / max(ratio - 1, 1e-9), LEAST, MOST)))
    return found
