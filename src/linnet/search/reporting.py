"""From a tree to its record: the best text, samples, the value with its interval, what the tree looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from linnet.search.records import SearchedText, SearchRecord, SearchStatistics

if TYPE_CHECKING:
    from linnet.search.tree import Leaf, Tree


def record_of(tree: Tree, method: str, reward: str, samples: int) -> SearchRecord:
    """The record of a search. Samples may cost tokens and rewards of their own, which are counted."""
    chosen = tree.samples(samples) if tree.leaves else []
    value, best = tree.value, tree.best
    return SearchRecord(
        prompt=tree.step.prompt,
        method=method,
        settings=asdict(tree.method),
        reward=reward,
        target=asdict(tree.step.target),
        seed=tree.seed,
        rollouts=tree.rollouts,
        forward_tokens=tree.step.forward_tokens,
        prompt_tokens=tree.step.prompt_tokens,
        reward_calls=tree.reward_calls,
        seconds=tree.seconds,
        best=None if best is None else text_of(best),
        value=value.value,
        value_error=finite(value.width / 2),
        low=finite(value.low),
        high=finite(value.high),
        log_partition=value.log_partition,
        unseen=value.unseen,
        samples=tuple(map(text_of, chosen)),
        statistics=statistics(tree),
        notes=tuple(tree.notes),
    )


def text_of(leaf: Leaf) -> SearchedText:
    return SearchedText(text=leaf.text, ids=leaf.ids, reward=leaf.reward, logprob=leaf.logprob)


def finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def statistics(tree: Tree) -> SearchStatistics:
    """What a tree looks like, and the texts that it has scored."""
    leaves = np.array(tree.leaves, dtype=np.int64)
    ids = [tree.generated(leaf) for leaf in tree.leaves]
    rewards, depths = tree.nodes["reward"][leaves], tree.nodes["depth"][leaves]
    some = len(leaves) > 0
    inner = [len(children) for children in tree.children.values()]
    return SearchStatistics(
        texts=len(leaves),
        nodes=tree.nodes.count,
        depth=int(tree.nodes["depth"].max()),
        branching=float(np.mean(inner)) if inner else 0.0,
        distinct=tuple(distinct(ids, n) for n in (1, 2, 3)),
        length=float(np.mean([len(tree.step.text(one)) for one in ids])) if some else None,
        perplexity=finite(math.exp(-tree.nodes["logprob"][leaves].sum() / depths.sum())) if some else None,
        best_reward=finite(float(rewards.max())) if some else None,
        mean_reward=finite(float(rewards.mean())) if some else None,
        bytes=tree.nodes.bytes + tree.rows.bytes,
    )


def distinct(ids: Sequence[Sequence[int]], n: int) -> float | None:
    """Different n-grams over all n-grams."""
    grams = [tuple(one[at : at + n]) for one in ids for at in range(len(one) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
