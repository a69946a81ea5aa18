"""How many rollouts the next wave has, so that it ends within the budget."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from linnet.errors import BadInput, counted
from linnet.search.budgets import Budget

if TYPE_CHECKING:
    from linnet.search.tree import Tree

IDLE = 50  # waves without a new leaf after which a search without a limit of rollouts ends


class Spending:
    """What is left of a budget. Each rollout may cost a token at each depth, and one call of the reward."""

    def __init__(self, tree: Tree, budget: Budget) -> None:
        self.tree, self.budget = tree, budget
        self.began = time.perf_counter()
        self.rollouts, self.calls, self.tokens = tree.rollouts, tree.reward_calls, tree.step.forward_tokens
        self.visited, self.quiet = len(tree.leaves), 0
        if budget.tokens is not None and budget.tokens < tree.limit:
            raise BadInput(
                f"a budget of {counted(budget.tokens, 'token')} does not hold one rollout, which may take "
                f"{tree.limit}; give more tokens, or a smaller limit (max_tokens)"
            )
        tree.planned = tree.rollouts + self._most()
        tree.allowance = math.inf if budget.tokens is None else self.tokens + budget.tokens

    def wave(self) -> int:
        """The rollouts of the next wave; 0: the search ends."""
        spent, budget = time.perf_counter() - self.began, self.budget
        if budget.seconds is not None and spent >= budget.seconds:
            return 0
        if budget.width is not None and self.tree.value.width <= budget.width:
            return 0
        return max(0, min(self._most(), budget.wave))

    def idle(self) -> bool:
        """Whether nothing new has come for so long that nothing will."""
        self.quiet = 0 if len(self.tree.leaves) > self.visited else self.quiet + 1
        self.visited = len(self.tree.leaves)
        return self.quiet >= IDLE and self.budget.rollouts is None

    def interrupted(self) -> None:
        self.tree.notes.append(f"interrupted after {counted(self.tree.rollouts, 'rollout')}")

    def _most(self) -> int:
        """Rollouts that are sure to end within what is left."""
        tree, budget, left = self.tree, self.budget, [1 << 30]
        if budget.rollouts is not None:
            left.append(self.rollouts + budget.rollouts - tree.rollouts)
        if budget.reward_calls is not None:
            left.append(self.calls + budget.reward_calls - tree.reward_calls)
        if budget.tokens is not None:
            left.append((self.tokens + budget.tokens - tree.step.forward_tokens) // tree.limit)
        if budget.seconds is not None and tree.rollouts > self.rollouts:
            spent = time.perf_counter() - self.began
            left.append(max(1, int((budget.seconds - spent) * (tree.rollouts - self.rollouts) / spent)))
        return min(left)
