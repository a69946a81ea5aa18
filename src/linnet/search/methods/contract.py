"""What a method of search is: a frozen object that proposes leaves of a tree."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from linnet.errors import BadInput

if TYPE_CHECKING:
    from linnet.search.tree import Draw, Tree


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
