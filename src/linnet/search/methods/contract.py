"""What a method of search is: a frozen object that proposes leaves of a tree."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from linnet.errors import BadInput

if TYPE_CHECKING:
    from linnet.search.tree import Tree


class Draw(NamedTuple):
    """One leaf that a method proposes, and what it knows of the proposal.

    Draws of a wave are in order. Let u be the prior mass that was unvisited before this one. If the leaf was drawn
    among the unvisited ones with probability q, its importance weight w is p / (u q); `most` is the largest w that
    was possible. A draw from p itself, visited or not, is `replaced`: its w is p / q. Where q is unknown, as for
    a leaf that was chosen and not drawn, `logweight` is nan and the estimates leave it out.
    """

    leaf: int
    logweight: float = math.nan
    logmost: float = 0.0
    replaced: bool = False


@dataclass(frozen=True)
class Method(ABC):
    """`lam` is the inverse temperature of the target p(x) exp(lam r(x)) / Z, whose value each method reports."""

    lam: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise BadInput(f"lam is {self.lam}; it must be 0 (the reward is not used) or more, and finite")

    @abstractmethod
    def wave(self, tree: Tree, k: int) -> list[Draw]:
        """At most k leaves, all chosen from the tree as it is; none, when the method has no more to propose."""

    def entered(self, tree: Tree, leaves: np.ndarray) -> None:
        """Rewards of these leaves have been entered: what the method keeps beside the tree's sums can follow."""
        return

    def log_partition(self, tree: Tree) -> float | None:
        """The method's estimate of log Z; None where it has none beside the bounds."""
        return None

    def samples(self, tree: Tree, count: int) -> list[int]:
        """Leaves as the final choice: here the best of all that were scored."""
        reward, logprob = tree.nodes["reward"][tree.leaves], tree.nodes["logprob"][tree.leaves]
        return [tree.leaves[at] for at in np.lexsort((-logprob, -reward))[:count]]
