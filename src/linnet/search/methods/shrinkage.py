"""How far the mean of a child is drawn towards that of its parent, estimated from the tree itself.

For each depth, the rewards' gains g = exp(lam r) of rollouts vary within children by s2 and the true means of
children vary about their parents by t2. The best linear estimate of a child's mean counts its parent's as c = s2
/ t2 rollouts. Both variances come from the sums of the tree as in a one-way analysis of variance over all
parents of that depth. Where few children tell, the ratio stays near `FIRST`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from linnet.search.tree import Tree

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
        if kinds < 1 or total - int(here.sum()) < 1 or not within[here].sum() > 0:
            found.append(FIRST)
            continue
        size = spread / kinds  # rollouts of a child
        noise = float(within[here].sum()) / (total - int(here.sum()))
        ratio = float(between[here].sum()) / kinds / noise  # 1 where the children do not differ
        ratio = (kinds * ratio + TRUST * (1 + size / FIRST)) / (kinds + TRUST)
        found.append(float(np.clip(size / max(ratio - 1, 1e-9), LEAST, MOST)))
    return found
