"""One function for all searches."""

from __future__ import annotations

from collections.abc import Sequence

from linnet.search.budgets import Budget
from linnet.search.methods.contract import Method
from linnet.search.reward import Reward
from linnet.search.steps import Step
from linnet.search.tree import Tree


def search(
    root: Sequence[int], step: Step, *, method: Method, reward: Reward, budget: Budget, rng: int = 0
) -> Tree:
    """Search after the ids `root`; the same seed `rng` and the same size of a wave give the same tree."""
    return Tree(root, step, method, reward, rng).extend(budget)
