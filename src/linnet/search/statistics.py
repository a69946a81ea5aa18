"""What a tree looks like, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from linnet.search.tree import Tree


@dataclass(frozen=True)
class Statistics:
    """Of all texts that were scored: `distinct` is the share of different n-grams for n = 1, 2, 3, `length` the
    mean number of characters, `perplexity` that of the searched model itself, a token.
    """

    rollouts: int
    texts: int
    nodes: int
    depth: int
    branching: float  # children of an inner node that has any
    distinct: tuple[float, float, float]
    length: float
    perplexity: float
    best_reward: float
    mean_reward: float
    unseen: float
    prompt_tokens: int
    forward_tokens: int
    reward_calls: int
    seconds: float
    bytes: int  # of nodes and rows


def statistics(tree: Tree) -> Statistics:
    """The statistics of a tree that has scored at least one text; means over no texts are nan."""
    leaves = np.array(tree.leaves, dtype=np.int64)
    ids = [tree.generated(leaf) for leaf in tree.leaves]
    rewards, depths = tree.nodes["reward"][leaves], tree.nodes["depth"][leaves]
    some = len(leaves) > 0
    inner = [len(children) for children in tree.children.values()]
    return Statistics(
        rollouts=tree.rollouts,
        texts=len(leaves),
        nodes=tree.nodes.count,
        depth=int(tree.nodes["depth"].max()),
        branching=float(np.mean(inner)) if inner else 0.0,
        distinct=(distinct(ids, 1), distinct(ids, 2), distinct(ids, 3)),
        length=float(np.mean([len(tree.step.text(one)) for one in ids])) if some else math.nan,
        perplexity=math.exp(-tree.nodes["logprob"][leaves].sum() / depths.sum()) if some else math.nan,
        best_reward=float(rewards.max()) if some else math.nan,
        mean_reward=float(rewards.mean()) if some else math.nan,
        unseen=tree.unseen,
        prompt_tokens=tree.step.prompt_tokens,
        forward_tokens=tree.step.forward_tokens,
        reward_calls=tree.reward_calls,
        seconds=tree.seconds,
        bytes=tree.nodes.bytes + tree.rows.bytes,
    )


def distinct(ids: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams; nan without any."""
    grams = [tuple(one[at : at + n]) for one in ids for at in range(len(one) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
