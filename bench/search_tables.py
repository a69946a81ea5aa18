"""Table models whose searches have exact answers, by enumeration or by dynamic programming.

An enumerable model has V^T leaves: laws are drawn at random for each prefix, and rewards for each leaf. A chain
has 10^12 leaves: the law of a token depends on the token before, and the reward is a function of a small running
state, so that Z below each prefix comes from dynamic programming.
Legend: V = vocabulary, T = length, S = states of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from linnet.search.methods.maxent import MaxEnt, options, root_mean
from linnet.search.reward import Reward
from linnet.search.steps import TableStep, Target
from linnet.search.tree import Tree


@dataclass(frozen=True)
class Enumerable:
    """A law and a reward on all sequences of T tokens out of V; leaves are numbered as numbers of T digits."""

    vocabulary: int
    length: int
    lam: float
    laws: tuple[np.ndarray, ...]  # of depth d: [V^d, V]
    rewards: np.ndarray  # [V^T]

    @property
    def step(self) -> TableStep:
        return TableStep(lambda ids: self.laws[len(ids)][self.number(ids)], Target(self.length))

    @property
    def reward(self) -> Reward:
        def score(texts: Sequence[str], ids: Sequence[tuple[int, ...]], prompt: str) -> np.ndarray:
            return self.rewards[[self.number(one) for one in ids]]

        return Reward(score, most=float(self.rewards.max()), least=float(self.rewards.min()))

    def number(self, ids: Sequence[int]) -> int:
        number = 0
        for token in ids:
            number = number * self.vocabulary + token
        return number

    @property
    def prior(self) -> np.ndarray:
        """p of each leaf."""
        share = np.ones(1)
        for law in self.laws:
            share = (share[:, None] * law).ravel()
        return share

    @property
    def target(self) -> np.ndarray:
        """p exp(lam r) / Z of each leaf."""
        weight = self.prior * np.exp(self.lam * self.rewards)
        return weight / weight.sum()

    @property
    def value(self) -> float:
        return float(np.log((self.prior * np.exp(self.lam * self.rewards)).sum()) / self.lam)


def laws(rng: np.random.Generator, vocabulary: int, length: int, concentration: float) -> tuple[np.ndarray, ...]:
    """Random laws for all prefixes; a small concentration makes them peaked."""
    alpha = np.full(vocabulary, concentration)
    return tuple(rng.dirichlet(alpha, vocabulary**depth) for depth in range(length))


def easy(seed: int = 0) -> Enumerable:
    """243 leaves; the reward mixes the count of a token and noise. KL(target || p) is .16."""
    rng = np.random.default_rng([seed, 1])
    digits = np.indices((3,) * 5).reshape(5, -1)
    rewards = 0.4 * (digits == 0).mean(0) + 0.6 * rng.random(3**5)
    return Enumerable(3, 5, 4.0, laws(rng, 3, 5, 1.0), rewards)


def hard(seed: int = 8, share: float = 0.1) -> Enumerable:
    """4,096 leaves, a share of which has reward 1. KL(target || p) is 2.1, the mean reward under p .10."""
    rng = np.random.default_rng([seed, 2])
    return Enumerable(4, 6, 6.0, laws(rng, 4, 6, 1.0), (rng.random(4**6) < share).astype(float))


def peaked(seed: int = 15) -> Enumerable:
    """7,776 leaves with a law of low entropy, as a trained small model has. KL(target || p) is 1.4."""
    rng = np.random.default_rng([seed, 3])
    return Enumerable(6, 5, 6.0, laws(rng, 6, 5, 0.05), (rng.random(6**5) < 0.1).astype(float))


def next_law(tree: Tree, model: Enumerable) -> np.ndarray:
    """The probability of each leaf [V^T] as the next final draw of a maxent search in mode `sample`."""
    method = tree.method
    assert isinstance(method, MaxEnt)
    found = np.zeros(len(model.rewards))
    visited, shares = method.visited(tree)
    rest = tree.unseen * root_mean(tree)
    if rest > 0:
        below = np.zeros_like(found)
        _fill(tree, model, Spread(0, root_mean(tree), 1.0), below)
        found += rest * below
    np.add.at(found, [model.number(tree.path(leaf)) for leaf in visited.tolist()], shares)
    return found / found.sum()


@dataclass(frozen=True)
class Spread:
    """A share of the unvisited mass that comes to a node whose m is `mean`."""

    node: int
    mean: float
    share: float


def _fill(tree: Tree, model: Enumerable, spread: Spread, below: np.ndarray) -> None:
    """Spread the share of a visited node over the unvisited leaves below it, by the guided law q."""
    method, path = tree.method, tree.path(spread.node)
    assert isinstance(method, MaxEnt)
    found = options(tree, spread.node, spread.mean, method.shrinkage_at(tree, len(path) + 1))
    shares = found.prior * found.unseen * found.mean
    shares *= spread.share / shares.sum()
    for token, share, mean in zip(found.tokens.tolist(), shares.tolist(), found.mean.tolist(), strict=True):
        if token < 0 or share == 0:
            continue
        child = tree.index.get(spread.node * model.vocabulary + token)
        if child is not None and tree.nodes["kind"][child] == 0 and tree.nodes["visits"][child] > 0:
            _fill(tree, model, Spread(child, mean, share), below)
        else:
            width = model.vocabulary ** (model.length - len(path) - 1)
            first = model.number((*path, token)) * width
            below[first : first + width] += share * _prior_below(model, (*path, token))


def _prior_below(model: Enumerable, prefix: Sequence[int]) -> np.ndarray:
    """p of each leaf below a prefix, given the prefix."""
    share = np.ones(1)
    for depth in range(len(prefix), model.length):
        width = model.vocabulary ** (depth - len(prefix))
        first = model.number(prefix) * width
        share = (share[:, None] * model.laws[depth][first : first + width]).ravel()
    return share


@dataclass(frozen=True)
class Chain:
    """A law of each token given the one before, and a reward of a state that the tokens move."""

    vocabulary: int
    length: int
    lam: float
    first: np.ndarray  # [V]
    following: np.ndarray  # [V, V]
    move: Callable[[int, int, int], int]  # (depth, state, token) -> state
    final: np.ndarray  # rewards [S]

    @property
    def step(self) -> TableStep:
        return TableStep(lambda ids: self.following[ids[-1]] if ids else self.first, Target(self.length))

    @property
    def reward(self) -> Reward:
        def score(texts: Sequence[str], ids: Sequence[tuple[int, ...]], prompt: str) -> list[float]:
            return [float(self.final[self.state(one)]) for one in ids]

        return Reward(score, most=float(self.final.max()), least=float(self.final.min()))

    def state(self, ids: Sequence[int]) -> int:
        state = 0
        for depth, token in enumerate(ids):
            state = self.move(depth, state, token)
        return state

    def gains(self) -> list[np.ndarray]:
        """E[exp(lam r)] after each depth d > 0, by token and state: [V, S]."""
        below = [np.broadcast_to(np.exp(self.lam * self.final), (self.vocabulary, len(self.final)))]
        for depth in range(self.length - 1, 0, -1):
            moved = np.array(
                [
                    [self.move(depth, state, token) for token in range(self.vocabulary)]
                    for state in range(len(self.final))
                ]
            )
            moved = np.minimum(moved, len(self.final) - 1)  # states that no text reaches at this depth
            reached = below[0][np.arange(self.vocabulary), moved]  # [S, V]
            below.insert(0, self.following @ reached.T)
        return below

    def first_token(self) -> tuple[float, np.ndarray]:
        """The exact value, and the law of the first token under the target."""
        moved = [self.move(0, 0, token) for token in range(self.vocabulary)]
        weight = self.first * self.gains()[0][np.arange(self.vocabulary), moved]
        return float(np.log(weight.sum()) / self.lam), weight / weight.sum()


def chain(kind: str, seed: int = 0) -> Chain:
    """32^8 leaves: `dense` counts good tokens, `end` is a parity, `early` is decided by the first three tokens."""
    rng = np.random.default_rng([seed, 4])
    alpha = np.full(32, 0.5)
    first, following = rng.dirichlet(alpha), rng.dirichlet(alpha, 32)
    good = rng.random(32) < 0.25
    if kind == "dense":
        return Chain(32, 8, 12.0, first, following, lambda d, s, a: s + int(good[a]), np.arange(9) / 8)
    if kind == "end":
        odd = rng.random(32) < 0.5
        return Chain(32, 8, 6.0, first, following, lambda d, s, a: s ^ int(odd[a]), np.array([0.0, 1.0]))
    return Chain(
        32, 8, 6.0, first, following, lambda d, s, a: s + int(good[a]) if d < 3 else s, np.array([0, 0, 0.3, 1.0])
    )
