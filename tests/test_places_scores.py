"""Counting rules and scores against loops and known numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.places_known import bound
from linnet.domains.places.counters import (
    BASELINES,
    Counter,
    LastPlace,
    Markov,
    MostFrequent,
    candidates,
    known_visits,
)
from linnet.domains.places.generated import Process, generate
from linnet.domains.places.samples import CHECK_INS, PUBLISHED, Recipe, Samples, divide, make_samples, ranges
from linnet.domains.places.scores import (
    Ranked,
    Ranking,
    Resampled,
    measures,
    paired,
    rank_dense,
    rank_truth,
    score_list,
    vocabularies,
    weighted_f1,
)
from linnet.domains.places.visits import Visits, legacy_ids
from linnet.intervals import wilson
from places_tables import random_visits


def world(
    seed: int, full: bool = False, recipe: Recipe = PUBLISHED
) -> tuple[Visits, Samples, np.ndarray, np.ndarray]:
    """Visits, test and validation samples, labels, legacy ids by place."""
    visits = random_visits(seed)
    part = divide(visits, recipe)
    samples = make_samples(visits, part, recipe)
    samples = samples.choose(np.flatnonzero(samples.part > 0))
    samples = samples.with_full_past(visits) if full else samples
    return visits, samples, visits.place.astype(np.int64), legacy_ids(visits, part)


def test_intervals_of_shares_stay_between_0_and_1() -> None:
    """One user with three samples, two of them right: an interval of a normal distribution would reach 1.2."""
    rank = np.array([1.0, 1.0, 9.0])
    table = Ranked(rank, np.zeros(3, np.int64), np.zeros(3, np.int64), np.zeros(3, bool))
    groups = {"history=1-4": np.array([False, True, True])}
    found = score_list({"open": table}, Resampled.draw(np.zeros(3, np.int64)), {}, groups)
    assert all(0 <= score.low <= score.value <= score.high <= 1 for score in found)
    assert {score.high for score in found if score.name in ("acc@1", "acc@1.history=1-4")} == {1.0}


@pytest.mark.parametrize("users", [1, 4])
def test_no_interval_is_a_point(users: int) -> None:
    """Everybody right, or wrong: Wilson's interval of so many users, or samples of one."""
    rank, user = np.array([1.0, 99.0] * 8), np.arange(16) // 2 % users
    table = Ranked(rank, np.zeros(16, np.int64), np.arange(16) % 2, np.zeros(16, bool))
    groups = {"right": rank == 1, "wrong": rank > 1}
    found = {score.name: score for score in score_list({"open": table}, Resampled.draw(user), {}, groups)}
    units = users if users > 1 else 8
    assert (found["acc@1.right"].low, found["acc@1.wrong"].high) == (wilson(units, units)[0], wilson(0, units)[1])
    if users == 1:
        assert all(score.low < score.value < score.high for name, score in found.items() if "acc@1." not in name)


def as_dicts(ranking: Ranking) -> list[dict[int, float]]:
    return [
        dict(zip(ranking.label[a:b].tolist(), ranking.score[a:b].tolist(), strict=True))
        for a, b in zip(ranking.starts, ranking.starts[1:], strict=False)
    ]


def counter_by_loop(label: np.ndarray, past: range, history: list[int]) -> dict[int, float]:
    """The rule, visit by visit; a move within the past and within the history counts once."""
    score = {int(label[row]): 0.0 for row in [*past, *history]}
    moves = {(a, b) for rows in (list(past), history) for a, b in zip(rows, rows[1:], strict=False)}
    for before, after in moves:
        score[int(label[after])] += label[before] == label[history[-1]]
    for row in past:
        score[int(label[row])] += 0.1 / len(past)
    for age, row in enumerate(reversed(history)):
        score[int(label[row])] += 0.05 * 0.9**age
    return score


@given(st.integers(0, 10_000), st.sampled_from(["same", "full", "check-ins"]))
def test_the_counter_is_its_loop(seed: int, kind: str) -> None:
    visits, samples, label, _ = world(seed, kind == "full", CHECK_INS if kind == "check-ins" else PUBLISHED)
    found = as_dicts(Counter().rank(visits, samples, label))
    for index, ours in enumerate(found):
        past = range(samples.past_from[index], samples.past_to[index])
        history = samples.rows[samples.starts[index] : samples.starts[index + 1]].tolist()
        expected = counter_by_loop(label, past, history)
        assert ours.keys() == expected.keys()
        np.testing.assert_allclose([ours[k] for k in expected], list(expected.values()), atol=1e-12)


@given(st.integers(0, 10_000))
def test_simple_rules_are_their_loops(seed: int) -> None:
    visits, samples, label, _ = world(seed)
    last, latest, first = (
        as_dicts(rule.rank(visits, samples, label))
        for rule in (LastPlace(), MostFrequent(), MostFrequent("first"))
    )
    for index in range(len(samples)):
        history = label[samples.rows[samples.starts[index] : samples.starts[index + 1]]].tolist()
        by_recency = list(dict.fromkeys(reversed(history)))
        assert sorted(last[index], key=lambda p: -last[index][p]) == by_recency  # noqa: B023
        by_count = sorted(by_recency, key=lambda p: -history.count(p))  # noqa: B023
        assert sorted(latest[index], key=lambda p: -latest[index][p]) == by_count  # noqa: B023
        by_first = sorted(dict.fromkeys(history), key=lambda p: -history.count(p))  # noqa: B023
        assert sorted(first[index], key=lambda p: -first[index][p]) == by_first  # noqa: B023


@given(st.integers(0, 10_000), st.integers(1, 2))
def test_markov_follows_its_contexts(seed: int, order: int) -> None:
    visits, samples, label, _ = world(seed, full=True)
    found = as_dicts(Markov(order).rank(visits, samples, label))
    for index in range(len(samples)):
        past = label[samples.past_from[index] : samples.past_to[index]].tolist()
        context = past[-order:]
        counts = {p: sum(past[i : i + order] == context and past[i + order] == p for i in range(len(past) - order))
                  for p in set(past)}  # fmt: skip
        top = max(counts.values())
        if list(counts.values()).count(top) == 1:
            assert max(found[index], key=found[index].get) == max(counts, key=counts.get)  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.integers(1, 2))
def test_markov_counts_no_move_across_visits_that_are_not_known(seed: int, order: int) -> None:
    """Between the train part and the history of a later part lie visits that a sample may not know."""
    visits, samples, label, _ = world(seed)
    for index, ours in enumerate(as_dicts(Markov(order).rank(visits, samples, label))):
        history = samples.rows[samples.starts[index] : samples.starts[index + 1]].tolist()
        rows = sorted({*range(samples.past_from[index], samples.past_to[index]), *history})
        counts = {int(label[row]): [0] * (order + 1) for row in rows}
        for row in rows:
            counts[int(label[row])][order] += 1  # visits, which decide last
            for depth in range(1, order + 1):
                before = range(row - depth, row)
                same = label[list(before)].tolist() == label[history[-depth:]].tolist()
                counts[int(label[row])][order - depth] += same and set(before) <= set(rows)
        assert sorted(ours, key=lambda p: (ours[p], p)) == sorted(counts, key=lambda p: (counts[p], p))


@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(sorted(BASELINES)))
def test_a_sample_of_few_visits_is_ranked_alone_as_among_others(seed: int, kept: int, name: str) -> None:
    visits, samples, label, _ = world(seed)
    lengths = np.minimum(samples.lengths, kept)
    rows, _ = ranges(samples.starts[1:] - lengths, samples.starts[1:])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nothing = np.zeros(len(samples), np.int64)
    short = Samples(samples.target, starts, samples.rows[rows], nothing, nothing, samples.part)
    together = as_dicts(BASELINES[name].rank(visits, short, label))
    for index in range(len(samples)):
        (alone,) = as_dicts(BASELINES[name].rank(visits, short.choose(np.array([index])), label))
        assert alone == pytest.approx(together[index])


@given(st.integers(0, 10_000))
def test_known_visits_are_past_and_history_once(seed: int) -> None:
    visits, samples, label, _ = world(seed)
    known = known_visits(samples)
    found = candidates(samples, known, label)
    for index in range(len(samples)):
        history = samples.rows[samples.starts[index] : samples.starts[index + 1]].tolist()
        past = range(samples.past_from[index], samples.past_to[index])
        mine = known.owner == index
        assert known.row[mine].tolist() == sorted({*history, *past})
        assert known.row[mine][known.inside[mine]].tolist() == history
        labels = found.label[found.starts[index] : found.starts[index + 1]]
        assert labels.tolist() == sorted(set(label[known.row[mine]].tolist()))
    assert (found.label[found.slot] == label[known.row]).all()


@given(st.integers(0, 10_000))
def test_sparse_and_dense_ranks_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (20, 9)).astype(float)  # many ties
    listed = rng.random(scores.shape) < 0.6
    scores = np.where(listed, scores, -1.0)
    truth = rng.integers(-1, 9, 20)
    sparse = Ranking(np.concatenate([[0], np.cumsum(listed.sum(1))]), np.nonzero(listed)[1], scores[listed], 9)
    dense, ours = rank_dense(scores, truth), rank_truth(sparse, truth)
    np.testing.assert_array_equal(dense.rank, ours.rank)
    for row in range(20):
        if truth[row] < 0:
            assert np.isinf(dense.rank[row])
            continue
        order = sorted(-scores[row])
        tied = [place + 1 for place, value in enumerate(order) if value == -scores[row, truth[row]]]
        assert dense.rank[row] == np.mean(tied), "the mean of the places that a tie spans"


def test_an_undecided_tie_is_no_hit() -> None:
    tie = Ranking(np.array([0, 2]), np.array([3, 5]), np.array([1.0, 1.0]), 10)
    assert rank_truth(tie, np.array([5])).rank.tolist() == [1.5]
    assert measures(rank_truth(tie, np.array([5])))["acc@1"].tolist() == [0.0]


def test_weighted_f1_of_a_small_table() -> None:
    # truth a a b b c, said a b b b a: F1(a) = 1/2, F1(b) = 4/5, F1(c) = 0
    truth, said = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    ranked = Ranked(np.where(truth == said, 1.0, 2.0), said, truth, np.zeros(5, bool))
    assert weighted_f1(ranked) == pytest.approx((2 * 0.5 + 2 * 0.8) / 5)


def test_three_vocabularies_of_one_ranking() -> None:
    # places 0, 1 are known (ids 2, 3), places 2, 3 are not (id 1)
    legacy = np.array([2, 3, 1, 1])
    ranking = Ranking(np.array([0, 3, 6]), np.array([0, 2, 3] * 2), np.array([0.4, 0.35, 0.25] * 2), 4)
    found = vocabularies(ranking, np.array([2, 0]), legacy)
    assert found["open"].rank.tolist() == [2, 1]
    assert found["legacy"].rank.tolist() == [1, 2], "the unseen places together have 0.6"
    assert found["strict"].rank.tolist() == [np.inf, 1]
    only = vocabularies(None, np.array([2, 0]), legacy, ranking.merged(legacy, 4))
    assert "open" not in only and only["strict"].rank.tolist() == [np.inf, 2]


@given(st.integers(0, 10_000))
def test_a_cell_is_never_ranked_behind_its_place(seed: int) -> None:
    visits, samples, label, _ = world(seed)
    ranking = Counter().rank(visits, samples, label)
    _, cell = np.unique(visits.cells[11], return_inverse=True)
    truth = visits.place[samples.target]
    place, parent = rank_truth(ranking, truth), rank_truth(ranking.merged(cell, 9), cell[truth])
    assert measures(parent)["acc@10"].sum() >= measures(place)["acc@10"].sum()


def test_scores_come_with_intervals_baselines_and_groups() -> None:
    visits, samples, label, legacy = world(3)
    truth = visits.place[samples.target].astype(np.int64)
    tables = {
        name: vocabularies(rule.rank(visits, samples, label), truth, legacy,
                           rule.rank(visits, samples, legacy[visits.place].astype(np.int64)))
        for name, rule in BASELINES.items()
    }  # fmt: skip
    user = visits.user[samples.target]
    ours = tables.pop("counter")
    scores = {
        s.name: s for s in score_list(ours, Resampled.draw(user), tables, {"return": np.ones(len(user), bool)})
    }
    assert {
        "acc@1",
        "acc@5",
        "acc@10",
        "mrr",
        "ndcg@10",
        "f1",
        "legacy.acc@1",
        "strict.acc@1",
        "user.acc@1",
    } <= set(scores)
    assert scores["acc@1.return"].value == scores["acc@1"].value
    assert scores["strict.acc@1"].value <= scores["acc@1"].value <= scores["acc@5"].value
    for score in scores.values():
        assert score.low <= score.value + 0.02 and score.value - 0.02 <= score.high
        assert score.n in (len(user), len(np.unique(user)))
    best = max(measures(table["open"])["acc@1"].mean() for table in tables.values())
    assert scores["acc@1"].baseline.value == pytest.approx(best)


def test_intervals_are_those_of_users_not_of_samples() -> None:
    user = np.repeat(np.arange(8), 200)
    value = np.repeat(np.arange(8) % 2, 200).astype(float)  # every user is always right or always wrong
    low, high = Resampled.draw(user).interval(value)
    assert high - low > 0.5
    same = paired(value, value, Resampled.draw(user))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = paired(np.ones(1600), np.zeros(1600), Resampled.draw(user))
    assert better.low == 1 and better.p == 2 * 0.5**8  # the signs of eight users
    many = np.arange(1600) // 16
    assert paired(np.ones(1600), np.zeros(1600), Resampled.draw(many)).p <= 0.001
    assert Resampled.draw(np.zeros(100, int)).interval(np.tile([0.0, 1.0], 50)) == pytest.approx((0.402, 0.598))


def test_the_form_of_a_drawn_process_lies_between_counting_and_its_ceiling() -> None:
    process = Process(users=60, visits=80, seed=3)
    made = generate(process)
    test = np.arange(80) >= 72
    ceiling = made.best.reshape(60, 80)[:, test].mean()
    venue = made.venue.reshape(60, 80)
    favourite = [np.bincount(row[:64]).argmax() for row in venue]
    counting = (venue[:, test] == np.array(favourite)[:, None]).mean()
    assert counting < bound(made, process, given=True, steps=150) < ceiling + 0.06  # 480 samples: three errors
