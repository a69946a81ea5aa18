"""Each method of search against what it says it does, on models whose answers are known."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search_tables import Enumerable, laws
from linnet.search.budgets import Budget
from linnet.search.methods import DTS, MCTS, METHODS, SMC, Beam, BestFirst, Gumbel, MaxEnt, Method, named
from linnet.search.methods.bandits import considered_visits
from linnet.search.methods.particles import systematic
from linnet.search.reporting import statistics
from linnet.search.reward import Reward
from linnet.search.steps import TableStep, Target
from linnet.search.tree import Tree, search


def small(seed: int = 0, concentration: float = 0.7, length: int = 4) -> Enumerable:
    rng = np.random.default_rng([seed, 11])
    return Enumerable(3, length, 3.0, laws(rng, 3, length, concentration), rng.random(3**length))


def run(method: Method, model: Enumerable, budget: Budget, seed: int = 0, width: int = 256) -> Tree:
    step = model.step
    step.width = width
    method = dataclasses.replace(method, lam=model.lam)
    return search((), step, method=method, reward=model.reward, budget=budget, rng=seed)


def order(tree: Tree) -> list[int]:
    """The numbers of the leaves in the order in which they were drawn."""
    return [
        sum(token * 3**at for at, token in enumerate(reversed(tree.path(int(leaf)))))
        for leaf in tree.draws["leaf"]
    ]


@given(
    seed=st.integers(0, 99), parallel=st.integers(1, 5), width=st.sampled_from([1, 2, 3]), wave=st.integers(1, 20)
)
@settings(max_examples=20, deadline=None)
def test_best_first_gives_leaves_in_the_order_of_their_probability(
    seed: int, parallel: int, width: int, wave: int
) -> None:
    model = small(seed)
    tree = run(BestFirst(parallel=parallel), model, Budget(rollouts=1000, wave=wave), width=width)
    np.testing.assert_array_equal(order(tree), np.argsort(-model.prior, kind="stable"))
    assert tree.value.low == pytest.approx(model.value, abs=1e-6)


@pytest.mark.parametrize("tokens", [None, 400])
def test_best_first_gives_its_leaves_one_by_one_too(tokens: int | None) -> None:
    model = small(5, concentration=5.0, length=5)
    tree = Tree((), model.step, BestFirst(), model.reward, 0)
    for _ in range(20):
        tree.extend(Budget(rollouts=1, wave=1, tokens=tokens))
    assert order(tree) == np.argsort(-model.prior, kind="stable")[:20].tolist()


def test_best_first_computes_only_the_nodes_that_are_likelier_than_its_last_leaf() -> None:
    model = small()
    tree = run(BestFirst(), model, Budget(rollouts=10))
    last = tree.nodes["logprob"][tree.leaves].min()
    expanded = tree.nodes["row"] >= 0
    assert (tree.nodes["logprob"][expanded] >= last).all()
    assert expanded.sum() == tree.step.forward_tokens + 1


def test_greedy_takes_the_likeliest_token_at_each_step() -> None:
    model = small()
    ids: tuple[int, ...] = ()
    for law in model.laws:
        ids = (*ids, int(law[model.number(ids)].argmax()))
    tree = run(METHODS["greedy"], model, Budget(rollouts=5))
    assert tree.best is not None and tree.best.ids == ids and tree.rollouts == 1


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_a_beam_is_the_obvious_one(width: int) -> None:
    model = small(3)
    beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for law in model.laws:
        grown = [
            (score + math.log(law[model.number(ids), token]), (*ids, token))
            for score, ids in beam
            for token in range(3)
        ]
        beam = sorted(grown, key=lambda one: -one[0])[:width]
    tree = run(Beam(width=width), model, Budget(rollouts=100))
    assert {tree.path(leaf) for leaf in tree.leaves} == {ids for _, ids in beam}


def test_a_diverse_beam_without_a_penalty_has_equal_groups_and_with_one_different_ones() -> None:
    model = small(3)
    plain = run(Beam(width=2), model, Budget(rollouts=100))
    same = run(Beam(width=4, groups=2, diversity=0.0), model, Budget(rollouts=100))
    other = run(Beam(width=4, groups=2, diversity=5.0), model, Budget(rollouts=100))
    assert {same.path(leaf) for leaf in same.leaves} == {plain.path(leaf) for leaf in plain.leaves}
    assert len(other.leaves) == 4


def test_draws_without_replacement_are_never_repeated_and_find_more_at_equal_draws() -> None:
    model = small(1, concentration=0.3)
    found: dict[str, list[float]] = {"best_of_n": [], "without_replacement": []}
    for seed, name in itertools.product(range(60), found):
        tree = run(named(name), model, Budget(rollouts=12, wave=4), seed)
        found[name].append(1 - tree.unseen)
        if name == "without_replacement":
            assert len(set(order(tree))) == 12
    gain = np.array(found["without_replacement"]) - np.array(found["best_of_n"])
    assert gain.mean() > 4 * gain.std() / math.sqrt(60)


def test_the_law_of_two_draws_without_replacement_is_the_sequential_one() -> None:
    law = np.array([0.6, 0.3, 0.1])
    model = Enumerable(3, 1, 1.0, (law[None],), np.zeros(3))
    counts = np.zeros((3, 3))
    for seed in range(600):
        first, second = order(run(named("without_replacement"), model, Budget(rollouts=2, wave=2), seed))
        counts[first, second] += 1
    expected = law[:, None] * law / (1 - law[:, None])
    np.fill_diagonal(expected, 0)
    assert np.abs(counts / 600 - expected).max() < 4 * math.sqrt(0.25 / 600)


@pytest.mark.parametrize("name", ["best_of_n", "without_replacement", "smc", "maxent", "dts"])
def test_values_come_near_the_exact_one(name: str) -> None:
    model = small(2)
    values = [run(named(name), model, Budget(rollouts=48, wave=8), seed).value.value for seed in range(12)]
    assert np.mean([value for value in values if value is not None]) == pytest.approx(model.value, abs=0.03)


def test_without_tilt_the_value_of_independent_draws_is_their_mean() -> None:
    """A draw that is repeated counts again: those from p say nothing of the unvisited texts alone."""
    model = dataclasses.replace(small(2), lam=0.0)
    tree = run(named("best_of_n"), model, Budget(rollouts=20))
    drawn = tree.nodes["reward"][tree.draws["leaf"]]
    assert len(tree.leaves) < 20 and tree.value.value == pytest.approx(drawn.mean())


def test_texts_of_weight_zero_leave_the_mean_reward_a_number() -> None:
    model = dataclasses.replace(small(2), lam=0.0)
    step = TableStep(model.step.law, Target(4, cut="excluded"), ends=[0])
    for name in ("best_of_n", "without_replacement", "maxent"):
        tree = search((), step, method=named(name, lam=0.0), reward=model.reward, budget=Budget(rollouts=30))
        assert tree.value.value is not None and tree.value.low <= tree.value.value <= tree.value.high


def test_the_estimate_of_smc_is_unbiased_with_limits_of_prefixes() -> None:
    model = small(4)
    limits = [model.rewards.reshape(3**depth, -1).max(1) for depth in range(5)]
    reward = dataclasses.replace(model.reward, prefix=lambda ids: limits[len(ids)][model.number(ids)])
    found = []
    for seed in range(150):
        method = SMC(lam=model.lam, particles=8, moves=0)
        tree = search((), model.step, method=method, reward=reward, budget=Budget(rollouts=8), rng=seed)
        found.append(math.exp(tree.value.log_partition or 0))
    exact = math.exp(model.lam * model.value)
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(150)
    assert np.std(found) < 0.5 * exact


def test_moves_of_smc_leave_the_target_as_it_is() -> None:
    model = small(5, length=3)
    counts = np.zeros(27)
    for seed in range(60):
        tree = run(SMC(particles=32, moves=3), model, Budget(rollouts=128), seed)
        assert tree.value.value is not None and tree.memory["run"]["moves"] == 3
        for leaf in tree.memory["run"]["leaves"]:
            counts[model.number(tree.path(leaf))] += 1
    assert (
        np.abs(counts / counts.sum() - model.target).sum() / 2
        < 0.06
        < np.abs(model.prior - model.target).sum() / 4
    )


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0, 0.999))
def test_systematic_resampling_keeps_each_share_up_to_one(logweights: list[float], uniform: float) -> None:
    weights = np.array(logweights)
    counts = np.bincount(systematic(weights, uniform), minlength=len(weights))
    shares = np.exp(weights) / np.exp(weights).sum() * len(weights)
    assert counts.sum() == len(weights) and (np.abs(counts - shares) < 1 + 1e-9).all()


def test_puct_selects_as_its_formula_says() -> None:
    model = small(6)
    tree = run(MCTS(c=1.5), model, Budget(rollouts=1, wave=1))
    for _ in range(25):
        scores = np.full(3, -math.inf)
        low, high = min(tree.nodes["reward"][tree.leaves]), max(tree.nodes["reward"][tree.leaves])
        scale = (high - low) or 1.0
        for token in range(3):
            child = tree.index.get(token)
            visits = 0 if child is None else int(tree.nodes["visits"][child])
            total, node = (
                (float(tree.nodes["total"][child]), visits)
                if visits
                else (float(tree.nodes["total"][0]), tree.rollouts)
            )
            if child is not None and tree.nodes["seen"][child] == 1:
                continue
            bonus = 1.5 * model.laws[0][0, token] * math.sqrt(tree.rollouts + 1) / (1 + visits)
            scores[token] = (total / node - low) / scale + bonus
        tree.extend(Budget(rollouts=1, wave=1))
        assert tree.path(int(tree.draws["leaf"][-1]))[0] == scores.argmax()


def test_uct_tries_each_of_the_likeliest_children_first() -> None:
    model = small(6)
    tree = run(named("uct", width=2), model, Budget(rollouts=2, wave=1))
    first = [tree.path(int(leaf))[0] for leaf in tree.draws["leaf"]]
    assert first == np.argsort(-model.laws[0][0])[:2].tolist()
    assert 3 - sum(np.unique(first)) in range(3)
    tree.extend(Budget(rollouts=10, wave=4))
    assert {tree.path(int(leaf))[0] for leaf in tree.draws["leaf"]} == set(first)


@given(arms=st.integers(1, 40), rollouts=st.integers(1, 400))
def test_sequential_halving_shares_the_budget(arms: int, rollouts: int) -> None:
    turns = considered_visits(arms, rollouts)
    assert len(turns) == rollouts
    visited = [turns.count(count) for count in range(max(turns) + 1)]
    assert visited == sorted(visited, reverse=True) and visited[0] <= arms


def test_sequential_halving_gives_half_of_the_arms_the_same_share_again() -> None:
    """16 arms and 64 rollouts: four phases of about 16 rollouts, with 16, 8, 4 and 2 arms."""
    turns = considered_visits(16, 64)
    visited = [turns.count(count) for count in range(max(turns) + 1)]
    assert visited == [16, 8, 8, 4, 4, 4, 4, *[2] * 8]


def test_limits_from_the_visited_part_alone_use_both_limits_of_the_reward() -> None:
    """Weights of best-first are unknown, so nothing else bounds the value."""
    model = small(2)
    tree = run(BestFirst(), model, Budget(rollouts=7, wave=1))
    known = model.prior[order(tree)]
    mass = (known * np.exp(model.lam * model.rewards[order(tree)])).sum()
    rest = 1 - known.sum()
    least, most = tree.reward.least, tree.reward.most
    assert least is not None and most is not None and rest > 0.05
    assert tree.value.log_low == pytest.approx(math.log(mass + rest * math.exp(model.lam * least)), abs=1e-9)
    assert tree.value.log_high == pytest.approx(math.log(mass + rest * math.exp(model.lam * most)), abs=1e-9)


def test_gumbel_with_one_rollout_a_child_draws_first_tokens_without_replacement() -> None:
    model = small(7)
    counts = np.zeros(3)
    for seed in range(400):
        tree = run(Gumbel(considered=3), model, Budget(rollouts=3, wave=3), seed)
        first = [tree.path(int(leaf))[0] for leaf in tree.draws["leaf"]]
        assert sorted(first) == [0, 1, 2]
        counts[first[0]] += 1
    assert np.abs(counts / 400 - model.laws[0][0]).max() < 4 * math.sqrt(0.25 / 400)


def test_dts_backs_up_the_mean_over_its_drawn_children() -> None:
    model = small(8)
    tree = run(DTS(), model, Budget(rollouts=60, wave=4))

    def soft(node: int) -> float:
        if node in tree.leaves:
            return math.exp(model.lam * float(tree.nodes["reward"][node]) - tree.shift)
        drawn = [child for child in tree.children[node] if tree.nodes["copies"][child]]
        copies = [int(tree.nodes["copies"][child]) for child in drawn]
        return float(np.average([soft(child) for child in drawn], weights=copies))

    assert tree.nodes["soft"][0] == pytest.approx(soft(0), rel=1e-9)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_its_budget_and_reports_what_it_scored(name: str) -> None:
    model = small(9)
    method = named(name, **({"particles": 4} if name == "smc" else {}))
    for budget in (
        Budget(rollouts=23, wave=5),
        Budget(tokens=30, wave=5),
        Budget(reward_calls=9, wave=5),
        Budget(rollouts=400, wave=32),
    ):
        tree = run(method, model, budget)
        assert tree.step.forward_tokens <= (budget.tokens or 10**9)
        assert tree.reward_calls == len(tree.leaves) <= (budget.reward_calls or 10**9)
        assert tree.rollouts <= (budget.rollouts or 10**9)
        assert tree.best is not None and tree.best.reward == max(tree.nodes["reward"][tree.leaves])
        for leaf in (tree.best, *tree.samples(3)):
            assert leaf.reward == model.rewards[model.number(leaf.ids)]
            assert leaf.logprob == pytest.approx(math.log(model.prior[model.number(leaf.ids)]))
        assert tree.value.low - 1e-9 <= model.value <= tree.value.high + 1e-9


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_same_seed_gives_the_same_tree_on_any_split_of_a_batch(name: str) -> None:
    model = small(10)
    drawn = []
    for widest in (1, 1000):
        step = model.step
        step.widest = widest
        method = named(name, lam=2.0, **({"particles": 4} if name == "smc" else {}))
        drawn.append(
            order(search((), step, method=method, reward=model.reward, budget=Budget(rollouts=24, wave=8)))
        )
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["best_of_n", "without_replacement", "maxent", "dts", "mcts", "best_first"])
def test_the_best_text_never_falls_with_the_budget_and_a_visited_text_costs_nothing(name: str) -> None:
    model = small(11)
    tree = run(named(name), model, Budget(rollouts=4, wave=4))
    best = -math.inf
    for _ in range(12):
        assert tree.best is not None and tree.best.reward >= best
        best = tree.best.reward
        tree.extend(Budget(rollouts=20, wave=10))
    assert tree.step.forward_tokens <= sum(3**depth for depth in range(1, 4))
    assert tree.reward_calls <= 81


@pytest.mark.parametrize("name", sorted(METHODS))
def test_models_with_an_end_token_and_a_limit(name: str) -> None:
    rng = np.random.default_rng(5)
    table = rng.dirichlet(np.ones(4), 4)
    step = TableStep(lambda ids: table[ids[-1] if ids else 0], Target(6), ends=[3], width=2)
    reward = Reward(lambda texts, ids, prompt: [float(len(one)) for one in ids], most=6.0, least=0.0)
    method = named(name, **({"particles": 4} if name == "smc" else {}))
    tree = search((1, 2), step, method=method, reward=reward, budget=Budget(rollouts=40, wave=8))
    for leaf in tree.leaves:
        found = tree.leaf(leaf)
        assert 3 not in found.ids and found.reward == len(found.ids) <= 6
        ids = found.ids + ((3,) if len(found.ids) < 6 else ())
        logprob = sum(math.log(table[before, after]) for before, after in itertools.pairwise((2, *ids)))
        assert found.logprob == pytest.approx(logprob) or found.ids + (3,) == tree.path(leaf)


def test_statistics_are_those_of_the_tree() -> None:
    model = small(12)
    tree = run(MaxEnt(chosen=0.0), model, Budget(rollouts=30, wave=6))
    found = statistics(tree)
    texts = {tree.path(leaf) for leaf in tree.leaves}
    prefixes = {ids[:length] for ids in texts for length in range(5)}
    assert (found.texts, found.nodes, found.depth) == (30, len(prefixes), 4)
    inner = [sum(other[:-1] == ids for other in prefixes if other) for ids in prefixes if len(ids) < 4]
    assert found.branching == pytest.approx(np.mean(inner))
    pairs = [ids[at : at + 2] for ids in texts for at in range(3)]
    assert found.distinct[1] == pytest.approx(len(set(pairs)) / len(pairs))
    mean = np.mean([math.log(model.prior[model.number(ids)]) for ids in texts]) / 4
    assert found.perplexity == pytest.approx(math.exp(-mean))
    assert found.mean_reward == pytest.approx(np.mean([model.rewards[model.number(ids)] for ids in texts]))


def test_mode_best_is_best_first_while_all_rewards_are_equal() -> None:
    model = dataclasses.replace(small(13), rewards=np.zeros(3**4))
    ours = run(MaxEnt(mode="best"), model, Budget(rollouts=40, wave=4))
    assert order(ours) == order(run(BestFirst(), model, Budget(rollouts=40, wave=4)))


def test_mode_best_draws_every_text_where_none_may_be_chosen() -> None:
    model = dataclasses.replace(small(3), rewards=np.zeros(3**4))
    tree = run(MaxEnt(mode="best", chosen=0.0), model, Budget(rollouts=20, wave=4))
    assert tree.rollouts == 20 and np.isfinite(tree.draws["logweight"]).all()


@pytest.mark.parametrize("tokens", [12, 30, 200])
def test_mode_best_wastes_no_tokens_of_a_small_budget(tokens: int) -> None:
    """One node at a time where few tokens are left: it finds what best-first finds."""
    model = dataclasses.replace(small(13, length=6), rewards=np.zeros(3**6))
    ours, theirs = (
        run(method, model, Budget(tokens=tokens, wave=1)) for method in (MaxEnt(mode="best"), BestFirst())
    )
    shared = min(len(ours.leaves), len(theirs.leaves))
    assert order(ours)[:shared] == order(theirs)[:shared] and len(ours.leaves) >= 0.8 * len(theirs.leaves) > 0
    assert ours.step.forward_tokens <= tokens


@pytest.mark.parametrize("vocabulary", [1 << 16, 70_000])
def test_ids_of_any_size_are_kept(vocabulary: int) -> None:
    law = np.full(vocabulary, 1e-9)
    law[[3, vocabulary - 1]] = 0.4, 0.6
    step = TableStep(lambda ids: law / law.sum(), Target(2))
    reward = Reward(lambda texts, ids, prompt: [0.0] * len(texts))
    tree = search((), step, method=BestFirst(), reward=reward, budget=Budget(rollouts=4))
    last = vocabulary - 1
    paths = [tree.path(leaf) for leaf in tree.leaves]
    assert paths[0] == (last, last) and sorted(paths[1:3]) == [(3, last), (last, 3)] and paths[3] == (3, 3)


def test_best_first_ends_where_no_text_does() -> None:
    law = np.append(np.full(7, (1 - 1e-6) / 7), 1e-6)
    step = TableStep(lambda ids: law, Target(12), ends=[7])
    reward = Reward(lambda texts, ids, prompt: [0.0] * len(texts))
    tree = search((), step, method=BestFirst(parallel=4), reward=reward, budget=Budget(rollouts=5))
    assert step.forward_tokens <= 64 * tree.limit + 4
    assert any("before a further text ended" in note for note in tree.notes)
