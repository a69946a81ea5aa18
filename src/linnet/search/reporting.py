"""From a tree to its record: the best text, samples, the value with its interval, what the tree looks like."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from linnet.search.records import SearchedText, SearchRecord, SearchStatistics
from linnet.search.statistics import statistics

if TYPE_CHECKING:
    from linnet.search.tree import Leaf, Tree


def record_of(tree: Tree, method: str, reward: str, samples: int) -> SearchRecord:
    """The record of a search. Samples may cost tokens and rewards of their own, which are counted."""
    chosen = tree.samples(samples) if tree.leaves else []
    value, best = tree.value, tree.best
    error = value.width / 2
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
        value_error=finite(error),
        low=finite(value.low),
        high=finite(value.high),
        log_partition=value.log_partition,
        unseen=value.unseen,
        samples=tuple(map(text_of, chosen)),
        statistics=described(tree),
        notes=tuple(tree.notes),
    )


def text_of(leaf: Leaf) -> SearchedText:
    return SearchedText(text=leaf.text, ids=leaf.ids, reward=leaf.reward, logprob=leaf.logprob)


def finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def described(tree: Tree) -> SearchStatistics:
    """The statistics of a tree, without what its record has anyway; what there is not is None."""
    known = SearchStatistics.model_fields
    found = {name: value for name, value in asdict(statistics(tree)).items() if name in known}
    distinct = tuple(map(finite, found.pop("distinct")))
    numbers = {name: finite(value) if isinstance(value, float) else value for name, value in found.items()}
    return SearchStatistics(distinct=distinct, **numbers)
