"""Sequential Monte Carlo: particles that are resampled on the way, and moved at the end.

Potentials on the way come from the reward's limits of prefixes where it offers them, and with `every` from the
reward of the text so far, at a call each. Then the particles have the weights exp(lam r) over the last
potential, are resampled, and `moves` times each proposes another ending from a cut drawn at random, accepted by
Metropolis and Hastings. Each run gives an unbiased estimate of Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import BadInput
from linnet.search.methods.contract import Draw, Method
from linnet.search.nodes import INNER, roll

if TYPE_CHECKING:
    from linnet.search.tree import Tree


@dataclass(frozen=True)
class SMC(Method):
    """Runs of `particles` each, as many as the budget holds; a run is resampled below a share `ess` of its
    size.
    """

    particles: int = 32
    every: int = 0
    ess: float = 0.5
    moves: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.particles < 2 or self.every < 0 or self.moves < 0:
            raise BadInput("SMC needs at least 2 particles, and `every` and `moves` of 0 or more")

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        run = tree.memory.setdefault("run", {})
        self._settle(tree, run)
        if run and run["moves"] < self.moves:
            run["proposals"] = self._propose(tree, run["leaves"])
            return [Draw(leaf) for leaf in run["proposals"]]
        if run:
            tree.memory.setdefault("runs", []).append(dict(run))
            run.clear()
        left = (tree.planned - tree.rollouts) // (1 + self.moves)
        count = min(self.particles, left) if left >= 2 else k
        leaves, logweights, logscale = self._filter(tree, count)
        run.update(leaves=leaves, logweights=logweights, logscale=logscale, moves=-1, proposals=[])
        plain = not self.every and tree.reward.prefix is None
        return [Draw(leaf, 0.0 if plain else math.nan, 0.0, replaced=True) for leaf in leaves]

    def log_partition(self, tree: Tree) -> float | None:
        runs = self._runs(tree)
        if not runs:
            return None
        found = np.array([run["logz"] for run in runs])
        return float(np.logaddexp.reduce(found) - math.log(len(found)))

    def samples(self, tree: Tree, count: int) -> list[int]:
        runs = self._runs(tree)
        if not runs or not math.isfinite(max(run["logz"] for run in runs)):
            return super().samples(tree, count)
        shares = np.array([run["logz"] for run in runs])
        shares = np.exp(shares - shares.max()) / np.exp(shares - shares.max()).sum()
        numbers = tree.random(count)
        chosen = np.searchsorted(shares.cumsum() / shares.sum(), numbers[:, 0], side="right")
        leaves = [runs[run]["leaves"] for run in np.minimum(chosen, len(runs) - 1)]
        picked = [own[int(number * len(own))] for own, number in zip(leaves, numbers[:, 1], strict=True)]
        return tree.finished(np.array(picked), numbers)

    def _runs(self, tree: Tree) -> list[dict]:
        """Finished runs, and the last one where its rewards are known."""
        run = tree.memory.setdefault("run", {})
        self._settle(tree, run)
        return [*tree.memory.get("runs", []), *([run] if run.get("moves", -1) >= 0 else [])]

    def _settle(self, tree: Tree, run: dict) -> None:
        """What follows from the rewards of the last wave: resampling, or which moves are accepted."""
        if not run or tree.queue:
            return
        if np.isnan(tree.nodes["reward"][run["proposals"] or run["leaves"]]).any():  # the search was interrupted
            run.clear()
        elif run["moves"] < 0:
            gains = tree.gains(tree.nodes["reward"][run["leaves"]])
            weights = np.array(run["logweights"]) + gains
            run["logz"] = float(run["logscale"] + np.logaddexp.reduce(weights) - math.log(len(weights)))
            kept = systematic(weights, float(tree.random(1)[0, -5]))
            run.update(leaves=[run["leaves"][at] for at in kept], moves=0)
        elif run["proposals"]:
            run["leaves"] = self._accept(tree, run["leaves"], run["proposals"])
            run.update(moves=run["moves"] + 1, proposals=[])

    def _filter(self, tree: Tree, count: int) -> tuple[list[int], list[float], float]:
        """Particles at their ends, their log-weights without exp(lam r), and what resampling has divided out."""
        at, numbers = np.zeros(count, dtype=np.int64), tree.random(count)
        potential, weights, scale = np.zeros(count), np.zeros(count), 0.0
        for depth in range(tree.limit):
            going = np.flatnonzero(tree.nodes["kind"][at] == INNER)
            if not len(going):
                break
            at[going] = tree.follow(at[going], tree.draw(at[going], numbers[going, depth]))
            found = self._potentials(tree, at, depth + 1, potential)
            weights, potential = weights + found - potential, found
            if self._degenerate(weights):
                scale += float(np.logaddexp.reduce(weights)) - math.log(count)
                kept = systematic(weights, float(numbers[depth % count, -3]))
                at, potential, weights = at[kept], potential[kept], np.zeros(count)
        return at.tolist(), (weights - potential).tolist(), scale

    def _potentials(self, tree: Tree, at: np.ndarray, depth: int, before: np.ndarray) -> np.ndarray:
        """lam times what is expected of each prefix; of texts that have ended it stays as it was."""
        found = before.copy()
        inner = np.flatnonzero(tree.nodes["kind"][at] == INNER)
        ids = [tree.generated(int(node)) for node in at[inner]]
        if tree.reward.prefix is not None:
            found[inner] = tree.gains(np.array([tree.reward.prefix(one) for one in ids], dtype=np.float64))
        elif self.every and depth % self.every == 0 and len(inner):
            tree.reward_calls += len(inner)
            texts = [tree.step.text(one) for one in ids]
            found[inner] = tree.gains(tree.reward.numbers(texts, ids, tree.step.prompt))
        return np.maximum(found, -700.0)  # a prefix is not given up for good

    def _degenerate(self, weights: np.ndarray) -> bool:
        shares = np.exp(weights - weights.max())
        return bool(shares.sum() ** 2 / (shares**2).sum() < self.ess * len(weights))

    def _propose(self, tree: Tree, leaves: list[int]) -> list[int]:
        """Another ending of each text, from a cut drawn at random."""
        numbers = tree.random(len(leaves))
        starts = []
        for leaf, number in zip(leaves, numbers[:, -2].tolist(), strict=True):
            node = leaf
            for _ in range(int(tree.nodes["depth"][leaf]) - int(number * tree.nodes["depth"][leaf])):
                node = int(tree.nodes["parent"][node])
            starts.append(node)
        return roll(tree, np.array(starts), numbers).tolist()

    def _accept(self, tree: Tree, leaves: list[int], proposals: list[int]) -> list[int]:
        gains = tree.gains(tree.nodes["reward"][proposals]) - tree.gains(tree.nodes["reward"][leaves])
        lengths = tree.nodes["depth"][leaves] / tree.nodes["depth"][proposals]
        with np.errstate(divide="ignore"):
            accepted = np.log(tree.random(len(leaves))[:, -4]) < gains + np.log(lengths)
        return np.where(accepted, proposals, leaves).tolist()


def systematic(logweights: np.ndarray, uniform: float) -> np.ndarray:
    """Indices by systematic resampling: one random number, and each index as often as its share says, up to
    one.
    """
    count = len(logweights)
    if not np.isfinite(logweights.max()):
        return np.arange(count)
    shares = np.exp(logweights - logweights.max())
    running = shares.cumsum() / shares.sum()
    return np.minimum(np.searchsorted(running, (uniform + np.arange(count)) / count, side="right"), count - 1)
