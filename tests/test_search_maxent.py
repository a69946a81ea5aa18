"""Maximum-entropy search against enumeration: values, laws and estimates on models whose answers are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search_mutants import MUTANTS, ROOT
from bench.search_tables import Enumerable, laws, next_law
from linnet.search.budgets import Budget
from linnet.search.methods.maxent import MaxEnt, options, root_mean
from linnet.search.reward import LOGPROB, Reward
from linnet.search.steps import TableStep, Target
from linnet.search.tree import Tree, search

ALL = Budget(rollouts=100_000, wave=16)


def small(seed: int = 0, concentration: float = 1.0) -> Enumerable:
    rng = np.random.default_rng([seed, 9])
    return Enumerable(3, 4, 3.0, laws(rng, 3, 4, concentration), rng.random(3**4))


def searched(model: Enumerable, budget: Budget, **changes: object) -> Tree:
    method = MaxEnt(**{"lam": model.lam, **changes})  # type: ignore[arg-type]
    return search((), model.step, method=method, reward=model.reward, budget=budget, rng=5)


@given(seed=st.integers(0, 50), concentration=st.sampled_from([0.1, 1.0]), wave=st.sampled_from([1, 7, 64]))
@settings(max_examples=12, deadline=None)
def test_when_all_leaves_are_visited_value_and_law_are_exact(seed: int, concentration: float, wave: int) -> None:
    model = small(seed, concentration)
    tree = searched(model, Budget(rollouts=10_000, wave=wave))
    found = tree.value
    assert found.value == pytest.approx(model.value, abs=1e-6)
    assert found.low == pytest.approx(model.value, abs=1e-6) and found.high == pytest.approx(model.value, abs=1e-6)
    np.testing.assert_allclose(next_law(tree, model), model.target, atol=1e-6)
    assert tree.rollouts == len(set(tree.leaves)) <= 3**4
    assert tree.best is not None and tree.best.reward == model.rewards[model.number(tree.best.ids)]


def test_before_the_first_draw_what_is_unseen_counts_like_what_is_seen() -> None:
    model = small()
    tree = searched(model, Budget(rollouts=8, wave=8), chosen=1.0)
    visited = [model.number(tree.generated(leaf)) for leaf in tree.leaves]
    gains = np.exp(model.lam * model.rewards[visited])
    assert len(visited) == 8 and np.isnan(tree.draws["logweight"]).all()
    mean = (model.prior[visited] * gains).sum() / model.prior[visited].sum()
    assert tree.value.value == pytest.approx(math.log(mean) / model.lam)


def test_without_tilt_the_law_is_the_prior() -> None:
    model = small()
    untilted = dataclasses.replace(model, lam=0.0)
    for rollouts in (5, 40, 1000):
        tree = searched(untilted, Budget(rollouts=rollouts, wave=4))
        np.testing.assert_allclose(next_law(tree, untilted), model.prior, atol=1e-9)
    assert tree.value.value == pytest.approx((model.prior * model.rewards).sum(), abs=1e-6)


def test_a_constant_reward_is_the_value() -> None:
    model = dataclasses.replace(small(), rewards=np.full(3**4, 0.7))
    tree = searched(model, Budget(rollouts=10))
    assert tree.value.value == pytest.approx(0.7, abs=1e-9)
    np.testing.assert_allclose(next_law(tree, model), model.prior, atol=1e-9)


@pytest.mark.parametrize("shift", [-30.0, -2.0, 5.0, 200.0])
def test_a_constant_that_is_added_shifts_the_value_and_leaves_the_law(shift: float) -> None:
    model = small()
    moved = dataclasses.replace(model, rewards=model.rewards + shift)
    one, other = searched(model, Budget(rollouts=24)), searched(moved, Budget(rollouts=24))
    assert other.value.value == pytest.approx((one.value.value or 0) + shift, abs=1e-9)
    assert other.value.low == pytest.approx(one.value.low + shift, abs=1e-6)
    np.testing.assert_allclose(next_law(other, moved), next_law(one, model), atol=1e-9)


def test_lam_times_reward_is_all_that_counts() -> None:
    model = small()
    scaled = dataclasses.replace(model, rewards=2 * model.rewards, lam=model.lam / 2)
    one, other = searched(model, Budget(rollouts=24)), searched(scaled, Budget(rollouts=24))
    np.testing.assert_allclose(next_law(other, scaled), next_law(one, model), atol=1e-12)


@pytest.mark.parametrize("alpha", [1.5, 4.0])
def test_the_power_target_is_one_line(alpha: float) -> None:
    model = small(concentration=0.4)
    tree = search((), model.step, method=MaxEnt(lam=alpha - 1), reward=LOGPROB, budget=ALL)
    expected = model.prior**alpha / (model.prior**alpha).sum()
    np.testing.assert_allclose(next_law(tree, model), expected, atol=1e-6)
    assert tree.value.log_partition == pytest.approx(math.log((model.prior**alpha).sum()), abs=1e-6)
    assert tree.reward_calls == 0


def test_the_partition_estimate_is_unbiased_in_waves_of_any_size() -> None:
    model = small()
    exact = math.exp(model.lam * model.value)
    for wave, rollouts, runs in ((1, 5, 120), (5, 5, 300), (4, 16, 100)):
        found = []
        for seed in range(runs):
            tree = search(
                (),
                model.step,
                method=MaxEnt(model.lam, chosen=0.0),
                reward=model.reward,
                budget=Budget(rollouts=rollouts, wave=wave),
                rng=seed,
            )
            found.append(math.exp(tree.value.unbiased or 0))
        error = np.std(found) / math.sqrt(runs)
        assert abs(np.mean(found) - exact) < 4 * error, (wave, rollouts, np.mean(found), exact, error)


def test_a_good_leaf_behind_a_branch_that_began_poorly_is_not_starved() -> None:
    rng = np.random.default_rng(3)
    model = Enumerable(4, 5, 8.0, laws(rng, 4, 5, 5.0), np.zeros(4**5))
    model.rewards[model.number((2, 1, 3, 0, 2))] = 1  # one leaf of 1,024; most rollouts below token 2 give 0
    model.rewards[: 4**4 // 2] = 0.5  # and another branch pays at once
    found = [searched(model, Budget(rollouts=700, wave=16), mode="sample").best for _ in range(1)]
    share = [tree.nodes["visits"][tree.index[2]] for tree in [searched(model, Budget(rollouts=200, wave=8))]]
    assert found[0] is not None and found[0].reward == 1
    assert share[0] >= 0.5 * 200 * model.laws[0][0, 2] * 0.8  # eps of all rollouts follow the prior


def test_a_prefix_limit_leaves_every_number_unchanged() -> None:
    model = small()
    rewards = np.where(np.arange(81) // 9 % 2 == 0, model.rewards, 0.0)  # zero below every second pair of tokens
    model = dataclasses.replace(model, rewards=rewards)
    limited = dataclasses.replace(
        model.reward, prefix=lambda ids: 0.0 if len(ids) >= 2 and model.number(ids[:2]) % 2 else 1.0
    )
    tree = search((), model.step, method=MaxEnt(model.lam), reward=limited, budget=ALL)
    assert tree.value.value == pytest.approx(model.value, abs=1e-6)
    assert (
        tree.reward_calls == 45 and tree.step.forward_tokens < 13 + 27
    )  # nothing below what is closed is computed
    counts = np.zeros(81)
    for leaf in tree.samples(3000):
        counts[model.number(leaf.ids)] += 1
        assert leaf.reward == model.rewards[model.number(leaf.ids)]
    assert np.abs(counts / 3000 - model.target).sum() / 2 < 0.12


@pytest.mark.parametrize("cut", ["leaf", "excluded"])
def test_a_cut_at_the_limit_is_what_the_target_declares(cut: str) -> None:
    end = 2
    law = np.array([0.3, 0.2, 0.5])
    step = TableStep(lambda ids: law, Target(3, cut=cut), ends=[end])  # type: ignore[arg-type]
    reward = Reward(lambda texts, ids, prompt: [len(one) / 3 for one in ids], most=1.0, least=0.0)
    tree = search((), step, method=MaxEnt(lam=2.0), reward=reward, budget=ALL)
    stay = 0.5
    ended = sum(stay**n * 0.5 * math.exp(2 * n / 3) for n in range(3))
    cuts = stay**3 * math.exp(2.0) if cut == "leaf" else 0.0
    assert tree.value.log_partition == pytest.approx(math.log(ended + cuts), abs=1e-6)
    assert all(len(tree.leaf(leaf).ids) < 3 for leaf in tree.leaves) == (cut == "excluded")


def test_advancing_keeps_the_subtree_with_all_its_numbers() -> None:
    model = small()
    tree = searched(model, Budget(rollouts=40, wave=4))
    token = int(tree.nodes["token"][max(tree.children[0], key=lambda node: tree.nodes["visits"][node])])
    node = tree.index[token]
    before = {name: float(tree.nodes[name][node]) for name in ("visits", "weight", "weighted", "seen", "total")}
    handles = len(tree.step.nodes)  # type: ignore[attr-defined]
    tree.advance([token])
    assert before == {name: float(tree.nodes[name][0]) for name in before}
    assert len(tree.step.nodes) < handles  # type: ignore[attr-defined]
    below = model.target[token * 27 : (token + 1) * 27]
    tree.extend(ALL)
    gains = model.prior * np.exp(model.lam * model.rewards)
    share = gains[token * 27 : (token + 1) * 27].sum() / model.laws[0][0, token]
    assert tree.value.log_partition == pytest.approx(math.log(share), abs=1e-6)
    whole = searched(model, ALL)
    visited, shares = whole.method.visited(whole)  # type: ignore[attr-defined]
    inside = [whole.path(leaf)[0] == token for leaf in visited.tolist()]
    assert shares[inside].sum() / shares.sum() == pytest.approx(below.sum(), abs=1e-9)


def test_the_same_seed_gives_the_same_tree_on_any_split_of_a_batch() -> None:
    model = small()
    trees = []
    for widest in (1, 3, 1000):
        step = model.step
        step.widest = widest
        trees.append(
            search((), step, method=MaxEnt(3.0), reward=model.reward, budget=Budget(rollouts=32, wave=8), rng=1)
        )
    for tree in trees[1:]:
        paths = [[one.path(leaf) for leaf in one.draws["leaf"].tolist()] for one in (tree, trees[0])]
        assert paths[0] == paths[1]
        np.testing.assert_allclose(tree.draws["logweight"], trees[0].draws["logweight"], rtol=1e-12)


def test_few_kept_children_change_cost_and_not_the_answers() -> None:
    model = small()
    whole = searched(model, ALL)
    for width in (1, 2):
        step = model.step
        step.width = width
        tree = search((), step, method=MaxEnt(model.lam), reward=model.reward, budget=ALL, rng=5)
        assert tree.value.value == pytest.approx(model.value, abs=1e-6)
        assert len(set(tree.leaves)) == 81
        assert tree.step.forward_tokens > whole.step.forward_tokens


def test_ask_and_tell_give_the_tree_that_extend_gives() -> None:
    model = small()
    budget = Budget(rollouts=20, wave=5)
    whole = searched(model, budget)
    tree = Tree((), model.step, MaxEnt(model.lam), model.reward, 5)
    for _ in range(4):
        for leaf in reversed(tree.ask(5)):
            tree.tell(leaf, float(model.rewards[model.number(tree.path(leaf))]))
    np.testing.assert_array_equal(tree.draws["leaf"], whole.draws["leaf"])
    np.testing.assert_allclose(tree.draws["mass"], whole.draws["mass"])
    np.testing.assert_allclose(tree.nodes["weighted"], whole.nodes["weighted"])


def test_the_mistakes_of_the_mutants_can_still_be_made() -> None:
    for mutant in MUTANTS.values():
        assert (ROOT / "src" / "linnet" / "search" / mutant.file).read_text().count(mutant.right) == 1, mutant


Pair = tuple[float, float]


def proposals(tree: Tree, node: int, mean: float, given: Pair = (1.0, 1.0)) -> dict[tuple[int, ...], Pair]:
    """What the two proposals b and q give to each unvisited leaf, by enumeration of the tree as it is."""
    if tree.nodes["kind"][node] != 0:
        return {} if tree.nodes["visits"][node] else {tree.path(node): given}
    if tree.nodes["seen"][node] == 1:
        return {}
    found = {}
    tree.expand([node])
    children = tree.follow(np.full(3, node), np.arange(3))
    if tree.nodes["visits"][node]:
        known = options(tree, node, mean, 1.0)
        order = np.argsort(known.tokens[:3])
        left = (known.prior * known.unseen)[:3][order]
        means = known.mean[:3][order]
        b, q = left / left.sum(), left * means / (left * means).sum()
    else:
        b = q = np.exp(tree.rows["logprobs"][tree.nodes["row"][node]])[
            np.argsort(tree.rows["ids"][tree.nodes["row"][node]])
        ]
        means = np.full(3, mean)
    for at, child in enumerate(children.tolist()):
        found.update(proposals(tree, child, float(means[at]), (given[0] * b[at], given[1] * q[at])))
    return found


@pytest.mark.parametrize("defence", [0.5, 0.2])
def test_weights_are_those_of_the_mixture_without_what_the_wave_has(defence: float) -> None:
    model = small(3)
    method = MaxEnt(8.0, defence=defence, shrinkage=1.0, chosen=0.0)
    tree = Tree((), model.step, method, model.reward, 3)
    for _ in range(8):
        known = proposals(tree, 0, root_mean(tree))
        mixture = {path: defence * b + (1 - defence) * q for path, (b, q) in known.items()}
        assert sum(mixture.values()) == pytest.approx(1, abs=1e-9)
        unseen, taken, before = tree.unseen, 0.0, tree.draws.count
        tree.extend(Budget(rollouts=5, wave=5))
        for at in range(before, tree.draws.count):
            path = tree.path(int(tree.draws["leaf"][at]))
            prior = float(model.prior[model.number(path)])
            weight = prior / unseen / (mixture[path] / (1 - taken))
            assert tree.draws["logweight"][at] == pytest.approx(math.log(weight), abs=1e-9)
            assert tree.draws["unseen"][at] == pytest.approx(unseen, abs=1e-12)
            assert weight <= math.exp(tree.draws["logmost"][at]) * (1 + 1e-9)
            unseen, taken = unseen - prior, taken + mixture[path]


def test_sums_of_every_node_are_those_of_the_rollouts_through_it() -> None:
    """Rewards that grow raise the shift again and again, and all that was summed before is rescaled."""
    model = small(4)
    tree = Tree((), model.step, MaxEnt(9.0, chosen=0.0), model.reward, 1)
    shifts = set()
    for wave in (1, 2, 3, 5, 8):
        tree.extend(Budget(rollouts=wave, wave=wave))
        shifts.add(tree.shift)
        sums = np.zeros((3, tree.nodes.count))
        columns = (tree.draws[name] for name in ("leaf", "logweight", "loggain"))
        for leaf, weight, gain in zip(*columns, strict=True):
            node, part = int(leaf), math.exp(gain - tree.shift)
            while node >= 0:
                sums[:, node] += math.exp(weight) * np.array([1, part, part * part])
                node = int(tree.nodes["parent"][node])
        for row, name in zip(sums, ("weight", "weighted", "squared"), strict=True):
            np.testing.assert_allclose(tree.nodes[name], row, rtol=1e-9, atol=1e-300)
    assert len(shifts) > 2


def test_a_share_of_the_rollouts_follows_the_prior_over_what_is_unvisited() -> None:
    """The tenth draw of a tree, over and over: each leaf comes as often as the mixture says."""
    model = small(3)
    tree = Tree((), model.step, MaxEnt(8.0, defence=0.5, shrinkage=1.0, chosen=0.0), model.reward, 3)
    tree.extend(Budget(rollouts=9, wave=9))
    known = proposals(tree, 0, root_mean(tree))
    draws, found = 3000, dict.fromkeys(known, 0)
    for seed in range(draws):
        tree.seed = seed
        (draw,) = tree.method.wave(tree, 1)
        found[tree.path(draw.leaf)] += 1
    counts = np.array([found[path] for path in known])
    shares = np.array([0.5 * b + 0.5 * q for b, q in known.values()])
    chi = ((counts - draws * shares) ** 2 / (draws * shares)).sum()
    free = len(known) - 1
    assert abs(chi - free) < 4 * math.sqrt(2 * free)
