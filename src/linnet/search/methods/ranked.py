"""Methods that rank texts by log p: beam search, diverse beam search, and best-first search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import BadInput
from linnet.search.methods.contract import Draw, Method
from linnet.search.methods.frontier import Frontier
from linnet.search.nodes import INNER

if TYPE_CHECKING:
    from linnet.search.tree import Tree

FEWEST = 64  # rollouts that best-first may cost at least


@dataclass(frozen=True)
class Beam(Method):
    """The likeliest `width` prefixes go on, in one wave; without `width` as many as the budget holds.

    With more than one of `groups` the beam is diverse (Vijayakumar et al., 2016): a group's tokens lose
    `diversity` for each time that a group before it has chosen them at the same step.
    """

    width: int | None = None
    groups: int = 1
    diversity: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise BadInput(f"width is {self.width}; a beam needs at least 1 row")
        if self.groups < 1 or (self.width is not None and self.width < self.groups):
            raise BadInput(f"{self.groups} groups need a beam of at least that width, and at least 1 group")

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        if "beam" in tree.memory:
            return []
        tree.memory["beam"] = True
        width = min(self.width or tree.planned, tree.planned)
        shares = [width // self.groups + (group < width % self.groups) for group in range(self.groups)]
        beams = [[0] for share in shares if share]
        scores = [np.zeros(1) for _ in beams]
        while inner := [node for beam in beams for node in beam if tree.nodes["kind"][node] == INNER]:
            tree.expand(np.unique(inner))
            chosen: dict[int, int] = {}
            for group, share in enumerate(shares[: len(beams)]):
                beams[group], scores[group] = self._next(tree, beams[group], scores[group], share, chosen)
        leaves = dict.fromkeys(node for beam in beams for node in beam)
        return [Draw(leaf) for leaf in leaves if not tree.nodes["visits"][leaf]]

    def _next(
        self, tree: Tree, beam: list[int], scores: np.ndarray, width: int, chosen: dict[int, int]
    ) -> tuple[list[int], np.ndarray]:
        """The best continuations of one group; texts that have ended stay as they are."""
        nodes = np.array(beam)
        inner = tree.nodes["kind"][nodes] == INNER
        rows = tree.nodes["row"][nodes[inner]]
        tokens = tree.rows["ids"][rows]
        found = scores[inner][:, None] + tree.rows["logprobs"][rows].astype(np.float64)
        lost = np.array([chosen.get(token, 0) for token in tokens.ravel().tolist()]).reshape(tokens.shape)
        ranked = np.concatenate(((found - self.diversity * lost).ravel(), scores[~inner]))
        order = np.argsort(-ranked, kind="stable")[:width]
        order = order[np.isfinite(ranked[order])]
        going = order[order < found.size]
        kept = tokens.ravel()[going].astype(np.int64)
        for token in kept.tolist():
            chosen[token] = chosen.get(token, 0) + 1
        children = tree.follow(nodes[inner][going // tokens.shape[1]], kept)
        ended = order[order >= found.size] - found.size
        beam = [*children.tolist(), *nodes[~inner][ended].tolist()]
        return beam, np.concatenate((found.ravel()[going], scores[~inner][ended]))


@dataclass(frozen=True)
class BestFirst(Method):
    """All texts in the order of their probability, the likeliest first.

    `parallel` inner nodes are computed at once; with 1 no node is computed that the order does not need. Where
    many texts are likely, none may end for long: without a budget of tokens, no more is computed than draws of the
    rollouts would cost, or of `FEWEST` rollouts.
    """

    parallel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel < 1:
            raise BadInput(f"parallel is {self.parallel}; at least 1 node must be computed at once")

    def wave(self, tree: Tree, k: int) -> list[Draw]:
        rollouts = max(tree.planned, tree.rollouts + k, FEWEST)
        most = rollouts * tree.limit - tree.rows.count if math.isinf(tree.allowance) else math.inf
        frontier = Frontier(tree)
        leaves = frontier.leaves(k, self.parallel, most=most)
        if not leaves and frontier.heap:
            tree.notes.append("best_first has used the tokens of its rollouts before a further text ended")
        return [Draw(leaf) for leaf in leaves]
