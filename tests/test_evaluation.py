"""Scores depend on the data and the model, and on nothing else.

Legend: windows = pieces of rows that fit into the context.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains import Question
from linnet.evaluation import (
    Nats,
    bootstrap,
    exact_scores,
    likelihood_scores,
    nats,
    unigram,
    wilson,
    windows,
)
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.records import Baseline
from linnet.sequences import Sequences
from small_models import MIXERS, random_model, small_config


def sequences(lengths: list[int], seed: int = 0, vocabulary: int = 13, share: float = 0.8) -> Sequences:
    """Random rows of these lengths; about `share` of the tokens are scored, a row's first never."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    scored = random.random(total) < share
    scored[starts[:-1]] = False
    ids = random.integers(0, vocabulary, total).astype(np.uint16)
    return Sequences(ids, starts, scored, characters=3 * total, utf8_bytes=4 * total)


def row_by_row(model: Model, data: Sequences) -> list[float]:
    """The obvious sum: each row alone, each scored token from all that stands before it."""
    sums = []
    for row in range(len(data)):
        ids = torch.from_numpy(data.row(row))[None]
        with torch.inference_mode():
            shares = model.head(model(ids).hidden).double().log_softmax(-1)
        scored = data.scored[data.starts[row] : data.starts[row + 1]]
        sums.append(-sum(float(shares[0, t - 1, ids[0, t]]) for t in np.flatnonzero(scored)))
    return sums


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=9),
    rows=st.integers(1, 10),
    mixer=st.sampled_from(MIXERS),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_nats_depend_neither_on_rows_per_batch_nor_on_their_order(lengths, rows, mixer, seed, order):
    model, data = random_model(small_config(mixer=mixer), seed), sequences(lengths, seed)
    expected = row_by_row(model, data)
    found = nats(model, data, rows=rows)
    np.testing.assert_allclose(found.sums, expected, rtol=1e-6, atol=1e-5)
    assert found.counts.sum() == data.targets
    shuffled = list(range(len(lengths)))
    order.shuffle(shuffled)
    again = nats(model, data.rows(np.array(shuffled)), rows=256)
    np.testing.assert_allclose(again.mean, found.mean, rtol=1e-6)
    np.testing.assert_allclose(again.sums, found.sums[shuffled], rtol=1e-6, atol=1e-5)


def test_nats_do_not_depend_on_packing():
    """Rows packed into one, kept apart by their documents, lose what they lose alone."""
    model, data = random_model(small_config()), sequences([5, 9, 2, 7])
    inputs = torch.cat([torch.from_numpy(data.row(row)[:-1]) for row in range(4)])[None]
    targets = torch.cat([torch.from_numpy(data.row(row)[1:]) for row in range(4)])[None]
    scored = np.concatenate([data.scored[data.starts[row] + 1 : data.starts[row + 1]] for row in range(4)])
    documents = torch.arange(4).repeat_interleave(torch.from_numpy(data.lengths - 1))[None]
    with torch.inference_mode():
        lost = model.head.nll(model(Inputs(inputs, documents=documents)).hidden, targets)
    packed = float((lost.double() * torch.from_numpy(scored)).sum()) / data.targets
    assert nats(model, data).mean == pytest.approx(packed, rel=1e-6)


def test_scoring_leaves_the_model_as_it_was_and_ignores_dropout():
    model, data = random_model(small_config(dropout=0.5)).train(), sequences([6, 9])
    first = nats(model, data)
    assert model.training
    assert np.array_equal(first.sums, nats(model, data).sums)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    context=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_windows_score_each_token_once_from_at_least_half_a_context(lengths, context, seed):
    data = sequences(lengths, seed)
    place = np.arange(len(data.ids))
    marked = Sequences(data.ids, data.starts, data.scored, 0, 0, {"place": place})
    cut = windows(marked, context)
    assert cut.lengths.max() <= context + 1
    scored = cut.fields["place"][cut.scored]
    assert sorted(scored.tolist()) == np.flatnonzero(data.scored).tolist()
    np.testing.assert_array_equal(cut.ids, data.ids[cut.fields["place"]])
    starts_of_rows = set(data.starts.tolist())
    for first, last in zip(cut.starts[:-1], cut.starts[1:], strict=True):
        places = cut.fields["place"][first:last]
        assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))  # a piece of one row
        for offset in np.flatnonzero(cut.scored[first:last]):
            assert offset > 0  # there is something to predict it from
            assert offset >= context / 2 or int(places[0]) in starts_of_rows


def test_rows_that_fit_are_left_as_they_are():
    data = sequences([9, 3])
    assert windows(data, 8) is data
    assert len(windows(data, 7)) == 3


def test_long_rows_count_every_target():
    model, data = random_model(small_config(context=7)), sequences([40, 3, 8])
    found = nats(model, data, rows=2)
    assert found.counts.sum() == data.targets
    np.testing.assert_allclose(found.mean, nats(model, data, rows=256).mean, rtol=1e-6)


def test_rows_without_a_target_cost_nothing():
    model = random_model(small_config())
    assert nats(model, sequences([1, 1])).counts.tolist() == [0, 0]
    alone, among = sequences([6], share=1.0), sequences([6, 1, 1], share=1.0)
    assert nats(model, among).sums[1:].tolist() == [0, 0]
    assert nats(model, among).counts.tolist() == [5, 0, 0]
    assert nats(model, alone).counts.tolist() == [5]
    assert nats(model, sequences([])).mean == 0.0


# Intervals.


@pytest.mark.parametrize(
    "right, n, low, high",
    [  # Newcombe (1998), Statistics in Medicine 17: table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - right, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 10_000), data=st.data())
def test_wilson_solves_its_equation_and_holds_the_share(n, data):
    """The ends are the shares p for which the observed one is 1.96 standard errors away."""
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            distance = abs(right / n - p) / math.sqrt(p * (1 - p) / n)
            assert distance == pytest.approx(1.959964, rel=1e-4)


def test_nothing_observed_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """Ratios of sums over rows of different lengths, as nats per token are; 95 % of 300 trials is 285 +- 11."""
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        counts = random.integers(1, 20, 80)
        level = random.gamma(4.0, 0.5, 80)  # rows differ: mean 2
        low, high = bootstrap(counts * level, counts, seed=trial)
        assert low < high
        covered += low <= 2.0 <= high
    assert 264 <= covered <= 298


def test_bootstrap_is_the_same_twice_and_narrows():
    random = np.random.default_rng(1)
    sums, counts = random.gamma(2.0, 1.0, 900), np.ones(900)
    assert bootstrap(sums, counts) == bootstrap(sums, counts)
    wide, narrow = bootstrap(sums[:9], counts[:9]), bootstrap(sums, counts)
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 3
    error = sums.std() / 30
    assert narrow == pytest.approx((sums.mean() - 1.96 * error, sums.mean() + 1.96 * error), abs=0.3 * error)


def test_bootstrap_of_very_few_rows_stays_among_them():
    """A draw that leaves out every row is no draw: it would be a score of 0."""
    low, high = bootstrap(np.array([2.0, 3.0]), np.array([1, 1]))
    assert (low, high) == (2.0, 3.0)
    assert bootstrap(np.array([4.0]), np.array([2])) == (2.0, 2.0)
    assert bootstrap(np.array([]), np.array([])) == (0.0, 0.0)
    assert bootstrap(np.array([0.0, 6.0]), np.array([0, 3])) == (2.0, 2.0)
    assert bootstrap(np.zeros(3), np.zeros(3)) == (0.0, 0.0)


# Baselines and records.


def test_the_unigram_baseline_is_the_entropy_of_what_is_scored():
    ids = np.array([0, 1, 1, 2, 0, 1, 2, 2], np.uint16)
    scored = np.array([0, 1, 1, 1, 0, 1, 0, 0], bool)  # 1, 1, 2, 1
    data = Sequences(ids, np.array([0, 4, 8]), scored, 0, 0)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert unigram(data, 5) == pytest.approx(expected, rel=1e-12)


def test_an_untrained_head_that_knows_the_frequencies_loses_exactly_the_baseline():
    """The best constant prediction: a head of zeros whose bias is the log of the scored frequencies."""
    model = random_model(small_config(head={"tied": False, "bias": True}))
    data = sequences([20] * 30, vocabulary=6)
    counts = np.bincount(data.ids[data.scored], minlength=13) + 1e-30
    with torch.no_grad():
        model.head.weight.zero_()
        assert model.head.bias is not None
        model.head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
    assert nats(model, data).mean == pytest.approx(unigram(data, 13), rel=1e-6)


def test_likelihoods_are_given_per_token_character_and_byte():
    measured = Nats(np.array([6.0, 4.0, 2.0]), np.array([3, 3, 2]))
    data = Sequences(np.zeros(11, np.uint16), np.array([0, 4, 8, 11]), np.ones(11, bool), 24, 32)
    scores = {s.name: s for s in likelihood_scores(measured, data, Baseline(name="unigram", value=3.0))}
    assert {name: (s.value, s.n) for name, s in scores.items()} == {
        "nats_per_token": (pytest.approx(12 / 8), 8),
        "nats_per_char": (pytest.approx(12 / 24), 24),
        "bits_per_byte": (pytest.approx(12 / 32 / math.log(2)), 32),
    }
    for score in scores.values():
        assert score.low <= score.value <= score.high
        assert score.baseline.name == "unigram" and score.baseline.value == pytest.approx(2 * score.value)
    without_text = Sequences(data.ids, data.starts, data.scored, 0, 0)
    assert [s.name for s in likelihood_scores(measured, without_text, Baseline(name="u", value=3.0))] == [
        "nats_per_token"
    ]


def test_exact_match_is_counted_over_all_questions_and_within_groups():
    questions = [Question(f"{i}", str(i % 2), {"depth": i % 3 * 5, "sign": "-"}) for i in range(12)]
    answers = ["1"] * 12
    seen = []

    def baseline(members):
        seen.append(len(members))
        return Baseline(name="never", value=0.0)

    scores = exact_scores(questions, answers, lambda question, answer: question.answer == answer, baseline)
    assert [s.name for s in scores] == [
        "exact",
        "exact.depth=0",
        "exact.depth=5",
        "exact.depth=10",
        "exact.sign=-",
    ]
    assert [s.n for s in scores] == seen == [12, 4, 4, 4, 12]
    assert {s.value for s in scores} == {0.5}
    assert (scores[0].low, scores[0].high) == wilson(6, 12)


def test_each_question_needs_its_answer():
    with pytest.raises(ValueError):
        exact_scores([Question("1", "1")], [], lambda *_: True, lambda _: Baseline(name="b", value=0.0))
