"""What a search refuses, and what it returns when it is interrupted or stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from linnet.errors import BadInput, RunFailed
from linnet.search.budgets import Budget
from linnet.search.methods import METHODS, Beam, BestFirst, MaxEnt, named
from linnet.search.reward import Reward
from linnet.search.steps import TableStep, Target
from linnet.search.tree import Tree, search


def step(limit: int = 4) -> TableStep:
    return TableStep(lambda ids: np.array([0.5, 0.3, 0.2]), Target(limit))


def rewarded(score: Callable[[Sequence[str]], list[float]], **limits: float) -> Reward:
    return Reward(lambda texts, ids, prompt: score(texts), name="mine", **limits)  # type: ignore[arg-type]


def tried(reward: Reward) -> Tree:
    return search((), step(), method=MaxEnt(2.0), reward=reward, budget=Budget(rollouts=8, wave=4))


def test_a_reward_that_gives_no_number_is_named_with_its_text() -> None:
    with pytest.raises(BadInput, match=r"mine gave nan for '[012 ]+'"):
        tried(rewarded(lambda texts: [math.nan] * len(texts)))
    with pytest.raises(BadInput, match="inf"):
        tried(rewarded(lambda texts: [math.inf] * len(texts)))
    with pytest.raises(BadInput, match="one for each"):
        tried(rewarded(lambda texts: [1.0]))
    with pytest.raises(BadInput, match="above its declared limit"):
        tried(rewarded(lambda texts: [2.0] * len(texts), most=1.0))
    with pytest.raises(BadInput, match="below its declared limit"):
        tried(rewarded(lambda texts: [-2.0] * len(texts), least=0.0))
    with pytest.raises(BadInput, match="least is 2"):
        rewarded(lambda texts: [0.0], least=2.0, most=1.0)


def test_a_reward_that_raises_is_reported_with_the_texts_it_was_given() -> None:
    def broken(texts: Sequence[str]) -> list[float]:
        raise ZeroDivisionError("by zero")

    with pytest.raises(RunFailed, match=r"mine raised ZeroDivisionError: by zero; texts: '[012 ]+'.* and 1 more"):
        tried(rewarded(broken))


@pytest.mark.parametrize("lam", [-1.0, math.inf, math.nan])
def test_a_tilt_that_is_none_is_refused(lam: float) -> None:
    with pytest.raises(BadInput, match="lam is"):
        MaxEnt(lam)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollouts": 0}, "0 rollouts"),
        ({"rollouts": -3}, "-3 rollouts"),
        ({"tokens": 0}, "0 tokens"),
        ({"reward_calls": 0}, "0 reward calls"),
        ({"seconds": math.inf}, "inf seconds"),
        ({}, "needs a limit"),
        ({"width": 0.1}, "needs a limit"),
        ({"rollouts": 5, "width": 0.0}, "never ends"),
        ({"rollouts": 5, "wave": 0}, "at least 1"),
    ],
)
def test_budgets_that_hold_nothing_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Budget(**settings)  # type: ignore[arg-type]


def test_a_budget_smaller_than_one_rollout_is_refused_with_what_would_do() -> None:
    with pytest.raises(BadInput, match="3 tokens does not hold one rollout, which may take 4"):
        search(
            (), step(), method=MaxEnt(), reward=rewarded(lambda texts: [0.0] * len(texts)), budget=Budget(tokens=3)
        )


def test_settings_of_methods_are_checked() -> None:
    with pytest.raises(BadInput, match='did you mean "maxent"'):
        named("maxnet")
    with pytest.raises(BadInput, match="no setting"):
        named("mcts", defence=0.5)
    for wrong in ({"defence": 0.0}, {"mode": "both"}, {"shrinkage": 0.0}):
        with pytest.raises(BadInput):
            named("maxent", **wrong)
    with pytest.raises(BadInput):
        Beam(width=0)
    with pytest.raises(BadInput):
        Beam(width=2, groups=3)
    with pytest.raises(BadInput):
        BestFirst(parallel=0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_interrupt_returns_the_tree_so_far(name: str) -> None:
    calls = 0

    def interrupted(texts: Sequence[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return [float(len(set(text))) for text in texts]

    method = named(name, **({"particles": 4} if name == "smc" else {}))
    tree = search((), step(6), method=method, reward=rewarded(interrupted), budget=Budget(rollouts=60, wave=4))
    assert tree.best is not None and tree.leaves
    if calls == 3:
        assert any("interrupted" in note for note in tree.notes)
        again = len(tree.leaves)
        tree.extend(Budget(rollouts=40, wave=4))
        assert len(tree.leaves) >= again


def test_a_search_ends_when_its_interval_is_narrow_enough() -> None:
    reward = rewarded(lambda texts: [float(text.count("0") / 4) for text in texts], most=1.0, least=0.0)
    wide = search((), step(), method=MaxEnt(2.0), reward=reward, budget=Budget(rollouts=81, width=0.4, wave=4))
    narrow = search((), step(), method=MaxEnt(2.0), reward=reward, budget=Budget(rollouts=81, width=0.05, wave=4))
    assert wide.value.width <= 0.4 and narrow.value.width <= 0.05
    assert wide.rollouts < narrow.rollouts < 81


def test_a_search_by_time_ends_and_a_finished_one_goes_no_further() -> None:
    reward = rewarded(lambda texts: [0.0] * len(texts))
    tree = search((), step(), method=MaxEnt(), reward=reward, budget=Budget(seconds=20.0))
    assert len(tree.leaves) == 81
    assert tree.extend(Budget(rollouts=10)).rollouts == 81
    many = search((), step(2), method=named("best_of_n"), reward=reward, budget=Budget(reward_calls=50))
    assert len(many.leaves) == 9  # and no rollouts for ever


def test_rewards_that_were_not_asked_for_and_moves_that_cannot_be_are_refused() -> None:
    tree = Tree((), step(), MaxEnt(), rewarded(lambda texts: [0.0] * len(texts)))
    first = tree.ask(3)
    assert tree.ask(5) == first  # until all are told
    with pytest.raises(BadInput, match="no reward is wanted"):
        tree.tell(0, 1.0)
    with pytest.raises(BadInput, match="awaited"):
        tree.advance([0])
    with pytest.raises(BadInput, match="gave nan"):
        tree.tell(first[0], math.nan)
    for leaf in first:
        tree.tell(leaf, 0.5)
    with pytest.raises(BadInput, match="outside the vocabulary"):
        tree.advance([7])
    with pytest.raises(BadInput, match="has ended"):
        tree.advance([0, 0, 0, 0])
    tree.advance([0, 1])
    assert tree.committed == (0, 1) and tree.limit == 2


def test_excluded_texts_have_no_weight() -> None:
    reward = rewarded(lambda texts: [-math.inf if "0" in text else 0.0 for text in texts], most=0.0)
    tree = search((), step(), method=MaxEnt(1.0), reward=reward, budget=Budget(rollouts=100))
    assert tree.value.log_partition == pytest.approx(4 * math.log(0.5), abs=1e-9)
    assert all("0" not in leaf.text for leaf in tree.samples(20))
