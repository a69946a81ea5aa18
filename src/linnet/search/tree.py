"""A search at some moment: what was drawn, what it cost, and what follows from it.

A tree grows in waves. A method proposes leaves from the tree as it is (`ask`); their rewards are entered together
(`tell`). For each node the tree keeps the share of prior mass below it that visited leaves have, and sums over the
rollouts that passed through it; so the visited part of Z, the sum over x of p(x) exp(lam r(x)), is known exactly.
Numbers that grow like exp(lam r) are held relative to exp(shift), the largest one so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from linnet.errors import BadInput
from linnet.search.budgets import Budget
from linnet.search.columns import Column, Columns
from linnet.search.intervals import Value, estimate
from linnet.search.methods.contract import Draw, Method
from linnet.search.nodes import CLOSED, CUT, ROUNDING, Nodes, roll
from linnet.search.reward import Ids, Reward
from linnet.search.steps import Step

DRAWS = {
    "leaf": Column(np.int32),
    "logweight": Column(np.float64),  # log w; nan where the proposal's probability is unknown
    "logmost": Column(np.float64),  # log of the largest w that was possible
    "loggain": Column(np.float64),  # lam r
    "mass": Column(np.float64),  # log of the exact part of Z when this was drawn
    "unseen": Column(np.float64),  # the prior mass of what was unvisited then
}
DONE = 1e-12  # mass that counts as none
NUMBERS = 8  # random numbers of a rollout beside one for each token


class Leaf(NamedTuple):
    """A finished text, as a person reads it."""

    text: str
    ids: Ids
    reward: float
    logprob: float


class Tree(Nodes):
    """`extend` goes on; `ask` and `tell` leave the rewards to the caller; `advance` moves the root."""

    def __init__(self, root: Sequence[int], step: Step, method: Method, reward: Reward, seed: int = 0) -> None:
        super().__init__(root, step, reward)
        self.method, self.seed = method, seed
        self.draws = Columns(DRAWS)
        self.leaves: list[int] = []  # visited ones with a text, in the order in which they were scored
        self.queue: list[Draw] = []  # of a wave, from the first whose reward is not known
        self.rollouts = self.reward_calls = self.planned = 0
        self.seconds = 0.0
        self.shift = 0.0
        self.mass = 0.0  # sum of p exp(lam r - shift) over visited leaves
        self.mean = 0.0  # sum of p r over visited leaves
        self.allowance = math.inf  # forward tokens at which a method must stop
        self.memory: dict[str, Any] = {}  # what the method keeps from wave to wave; plain values that JSON holds
        self.notes: list[str] = []
        self.watch: Callable[[Tree], None] | None = None  # called after each wave

    @property
    def unseen(self) -> float:
        """The prior mass of all that is unvisited."""
        return max(0.0, 1.0 - float(self.nodes["seen"][0]))

    @property
    def log_mass(self) -> float:
        """The logarithm of the visited part of Z."""
        return math.log(self.mass) + self.shift if self.mass > 0 else -math.inf

    @property
    def value(self) -> Value:
        """(1/lam) log E_p[exp(lam r)] with an interval that holds whenever one looks, and the mass it cannot
        see.
        """
        return estimate(self)

    @property
    def best(self) -> Leaf | None:
        """The text with the largest reward of all that were scored; of equal ones the likeliest."""
        if not self.leaves:
            return None
        reward, logprob = self.nodes["reward"][self.leaves], self.nodes["logprob"][self.leaves]
        return self.leaf(self.leaves[int(np.lexsort((-logprob, -reward))[0])])

    def leaf(self, node: int) -> Leaf:
        ids = self.generated(node)
        return Leaf(
            self.step.text(ids), ids, float(self.nodes["reward"][node]), float(self.nodes["logprob"][node])
        )

    def samples(self, count: int) -> list[Leaf]:
        """Texts as the method's final choice: draws from its estimate of the target, or its best ones."""
        return [self.leaf(node) for node in self.method.samples(self, count)]

    def extend(self, budget: Budget) -> Tree:
        """Go on until the budget is used or the method has no more to propose. An interrupt ends it as it is."""
        from linnet.search.spending import Spending

        spending = Spending(self, budget)
        try:
            while k := spending.wave():
                began, before = time.perf_counter(), self.rollouts
                leaves = self.ask(k)
                if leaves:
                    self._tell(leaves, self.score(leaves))
                self.seconds += time.perf_counter() - began
                if self.watch is not None:
                    self.watch(self)
                if self.rollouts == before or spending.idle():
                    break
        except KeyboardInterrupt:
            self.queue.clear()
            spending.interrupted()
        return self

    def ask(self, k: int) -> list[int]:
        """Leaves of a wave of at most k rollouts whose rewards are wanted; until all are known, the same ones."""
        if not self.queue:
            self.queue = self.method.wave(self, k)
            self.rollouts += len(self.queue)
            self._exclude()
            self._enter()
        unknown = (draw.leaf for draw in self.queue if math.isnan(self.nodes["reward"][draw.leaf]))
        return list(dict.fromkeys(unknown))

    def tell(self, leaf: int, reward: float) -> None:
        """The reward of one leaf that was asked for."""
        self._tell([leaf], np.array([reward], dtype=np.float64))

    def random(self, rollouts: int, turn: int = 0) -> np.ndarray:
        """Uniform numbers [rollouts, tokens + NUMBERS] for the next rollouts, and others for each turn.

        Those of a rollout depend on its number and the seed alone.
        """
        numbers = np.empty((rollouts, self.step.target.max_tokens + NUMBERS))
        for at in range(rollouts):
            key = np.array([self.seed & (2**64 - 1), self.rollouts + at], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, turn]))
            numbers[at] = generator.random(numbers.shape[1])
        return numbers

    def score(self, leaves: Sequence[int]) -> np.ndarray:
        """Rewards of these leaves, by calls of the reward."""
        if self.reward.own:
            return self.nodes["logprob"][list(leaves)]
        ids = [self.generated(leaf) for leaf in leaves]
        self.reward_calls += len(ids)
        return self.reward.numbers([self.step.text(one) for one in ids], ids, self.step.prompt)

    def _tell(self, leaves: Sequence[int], rewards: np.ndarray) -> None:
        wanted = {draw.leaf for draw in self.queue}
        for leaf, reward in zip(leaves, rewards.tolist(), strict=True):
            if leaf not in wanted or not math.isnan(self.nodes["reward"][leaf]):
                raise BadInput(f"no reward is wanted of node {leaf}; `ask` gives the leaves that need one")
            self.reward.check(self.step.text(self.generated(leaf)), reward)
        self.nodes["reward"][list(leaves)] = rewards
        self.leaves += leaves
        self._enter()

    def _exclude(self) -> None:
        """A leaf that is cut has weight 0, where the target says so."""
        if self.step.target.cut == "excluded":
            cut = [draw.leaf for draw in self.queue if self.nodes["kind"][draw.leaf] == CUT]
            self.nodes["reward"][cut] = -math.inf

    def reward_range(self) -> tuple[float, float]:
        """The least and the largest finite reward so far; a range of 1 where they are equal."""
        rewards = self.nodes["reward"][self.leaves]
        rewards = rewards[np.isfinite(rewards)]
        low, high = (float(rewards.min()), float(rewards.max())) if len(rewards) else (0.0, 1.0)
        return low, high if high > low else low + 1

    def gains(self, rewards: np.ndarray) -> np.ndarray:
        """log exp(lam r)."""
        return np.where(
            np.isneginf(rewards), -math.inf, self.method.lam * np.where(np.isneginf(rewards), 0, rewards)
        )

    def _enter(self) -> None:
        """Enter the draws whose rewards are known, in their order, up to the first whose reward is not."""
        unknown = np.isnan(self.nodes["reward"][[draw.leaf for draw in self.queue]])
        count = int(unknown.argmax()) if unknown.any() else len(self.queue)
        if not count:
            return
        draws, self.queue = self.queue[:count], self.queue[count:]
        leaves = np.array([draw.leaf for draw in draws])
        gains = self.gains(self.nodes["reward"][leaves])
        self._raise_shift(float(gains.max()))
        added = self.draws.add(count)
        self.draws["leaf"][added], self.draws["loggain"][added] = leaves, gains
        self.draws["logweight"][added] = [draw.logweight for draw in draws]
        self.draws["logmost"][added] = [draw.logmost for draw in draws]
        self._moments(added, leaves, gains, np.array([draw.replaced for draw in draws]))
        self._visit(np.unique(leaves[self.nodes["seen"][leaves] == 0]))
        self._add_up(leaves, gains, self.draws["logweight"][added])
        self.method.entered(self, leaves)

    def _moments(self, added: np.ndarray, leaves: np.ndarray, gains: np.ndarray, replaced: np.ndarray) -> None:
        """The visited part of Z and the unvisited mass, as they were before each of these draws."""
        first = np.zeros(len(leaves), dtype=bool)
        first[np.unique(leaves, return_index=True)[1]] = True
        prior = np.where(first & (self.nodes["seen"][leaves] == 0), np.exp(self.nodes["logprob"][leaves]), 0.0)
        part = prior * np.exp(gains - self.shift)
        mass = self.mass + np.cumsum(part) - part
        unseen = np.maximum(self.unseen - (np.cumsum(prior) - prior), 0.0)
        with np.errstate(divide="ignore"):
            self.draws["mass"][added] = np.where(replaced, -math.inf, np.log(mass) + self.shift)
        self.draws["unseen"][added] = np.where(replaced, 1.0, unseen)

    def _add_up(self, leaves: np.ndarray, gains: np.ndarray, logweights: np.ndarray) -> None:
        weights = np.exp(np.where(np.isnan(logweights), -math.inf, logweights))
        weighted = weights * np.exp(gains - self.shift)
        squared = weighted * np.exp(gains - self.shift)
        rewards = np.where(np.isneginf(gains), 0.0, self.nodes["reward"][leaves])
        at = leaves
        while len(at):
            np.add.at(self.nodes["visits"], at, 1)
            np.add.at(self.nodes["total"], at, rewards)
            np.add.at(self.nodes["weight"], at, weights)
            np.add.at(self.nodes["weighted"], at, weighted)
            np.add.at(self.nodes["squared"], at, squared)
            parents = self.nodes["parent"][at]
            inside = parents >= 0
            at, rewards, weights = parents[inside], rewards[inside], weights[inside]
            weighted, squared = weighted[inside], squared[inside]

    def _visit(self, leaves: np.ndarray) -> None:
        """New leaves become part of the exact mass; the visited share of each node above grows by theirs."""
        rewards, logprobs = self.nodes["reward"][leaves], self.nodes["logprob"][leaves]
        self.mass += float(np.exp(logprobs + self.gains(rewards) - self.shift).sum())
        self.mean += float((np.exp(logprobs) * np.where(np.isneginf(rewards), 0, rewards)).sum())
        depths = self.nodes["depth"][leaves]
        at, grown = np.empty(0, dtype=np.int64), np.empty(0)
        for depth in range(int(depths.max(initial=0)), -1, -1):
            here = leaves[depths == depth]
            at, grown = np.append(at, here), np.append(grown, np.ones(len(here)))
            at, which = np.unique(at, return_inverse=True)
            grown = np.minimum(np.bincount(which, grown, len(at)), 1 - self.nodes["seen"][at])
            seen = self.nodes["seen"][at] + grown
            full = seen > 1 - DONE
            nearly = np.flatnonzero(~full & (seen > 1 - ROUNDING))
            full[nearly] = [self.exhausted(node) for node in at[nearly].tolist()]
            grown[full] = 1 - self.nodes["seen"][at][full]
            self.nodes["seen"][at] = np.where(full, 1.0, seen)
            grown = grown * np.exp(self.nodes["prior"][at])
            at = self.nodes["parent"][at]

    def _raise_shift(self, gain: float) -> None:
        """Sums are held relative to the largest exp(lam r) so far."""
        if self.mass == 0 and gain > -math.inf:
            self.shift = gain
        elif gain > self.shift:
            scale = math.exp(self.shift - gain)
            self.mass *= scale
            self.nodes["weighted"][:] *= scale
            self.nodes["squared"][:] *= scale * scale
            self.nodes["soft"][:] *= scale
            self.shift = gain

    def advance(self, tokens: Sequence[int]) -> Tree:
        """Commit these tokens: the subtree below them stays, with all its sums; the rest is released."""
        from linnet.search.pruning import advance

        advance(self, tokens)
        return self

    def finished(self, leaves: np.ndarray, numbers: np.ndarray) -> list[int]:
        """These leaves, scored where they are new; below closed nodes texts are drawn from p first."""
        drawn = np.array(leaves, dtype=np.int64)
        ends = drawn.copy()
        while len(closed := np.flatnonzero(self.nodes["kind"][ends] == CLOSED)):
            ends[closed] = roll(self, ends[closed], numbers[closed])
        new = np.unique(ends[np.isnan(self.nodes["reward"][ends])])
        below = np.isin(new, ends[self.nodes["kind"][drawn] == CLOSED])
        self.queue = [Draw(leaf) for leaf in new[~below].tolist()]
        self.rollouts += len(leaves)
        if len(new):
            rewards = self.score(new.tolist())
            self.nodes["reward"][new] = rewards
            self.leaves += new.tolist()
            self._enter()
        return ends.tolist()


def search(
    root: Sequence[int], step: Step, *, method: Method, reward: Reward, budget: Budget, rng: int = 0
) -> Tree:
    """Search after the ids `root`; the same seed `rng` and the same size of a wave give the same tree."""
    return Tree(root, step, method, reward, rng).extend(budget)
