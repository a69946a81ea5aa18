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

from linnet.codecs import CharacterCodec
from linnet.domains.contract import Question
from linnet.evaluation import (
    Nats,
    Units,
    exact_scores,
    likelihood_scores,
    nats,
    unigram,
    windows,
)
from linnet.intervals import wilson
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.records import Baseline
from linnet.rows import Rows
from small_models import MIXERS, random_model, small_config


def sequences(lengths: list[int], seed: int = 0, vocabulary: int = 13, share: float = 0.8) -> Rows:
    """Random rows of these lengths; about `share` of the tokens are scored, a row's first never."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    scored = random.random(total) < share
    scored[starts[:-1]] = False
    ids = random.integers(0, vocabulary, total).astype(np.uint16)
    return Rows.of_ids(ids, starts, scored, 3 * np.array(lengths), 4 * np.array(lengths))


def row_by_row(model: Model, data: Rows) -> list[float]:
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
    sums, counts = found.between(data.starts)
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-5)
    assert counts.sum() == data.targets
    shuffled = list(range(len(lengths)))
    order.shuffle(shuffled)
    moved = data.select(np.array(shuffled))
    again = nats(model, moved, rows=256)
    np.testing.assert_allclose(again.mean, found.mean, rtol=1e-6)
    np.testing.assert_allclose(again.between(moved.starts)[0], sums[shuffled], rtol=1e-6, atol=1e-5)


def test_nats_do_not_depend_on_packing():
    """Rows packed into one, kept apart by their documents, lose what they lose alone."""
    model, data = random_model(small_config()), sequences([5, 9, 2, 7])
    inputs = torch.cat([torch.from_numpy(data.row(row)[:-1]) for row in range(4)])[None]
    targets = torch.cat([torch.from_numpy(data.row(row)[1:]) for row in range(4)])[None]
    scored = np.concatenate([data.scored[data.starts[row] + 1 : data.starts[row + 1]] for row in range(4)])
    documents = torch.arange(4).repeat_interleave(torch.from_numpy(data.lengths - 1))[None]
    with torch.inference_mode():
        lost = model.head.nll(model(Inputs({"ids": inputs}, documents=documents)).hidden, targets)
    packed = float((lost.double() * torch.from_numpy(scored)).sum()) / data.targets
    assert nats(model, data).mean == pytest.approx(packed, rel=1e-6)


def test_scoring_leaves_the_model_as_it_was_and_ignores_dropout():
    model, data = random_model(small_config(dropout=0.5)).train(), sequences([6, 9])
    first = nats(model, data)
    assert model.training
    assert np.array_equal(first.each, nats(model, data).each)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    context=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_windows_score_each_token_once_from_at_least_half_a_context(lengths, context, seed):
    data = sequences(lengths, seed)
    steps = np.arange(len(data.ids))
    marked = Rows({"ids": data.ids, "step": steps}, data.starts, data.scored)
    cut, begins = windows(marked, context)
    np.testing.assert_array_equal(begins, cut.columns["step"][cut.starts[:-1]])
    assert cut.lengths.max() <= context + 1
    scored = cut.columns["step"][cut.scored]
    assert sorted(scored.tolist()) == np.flatnonzero(data.scored).tolist()
    np.testing.assert_array_equal(cut.ids, data.ids[cut.columns["step"]])
    starts_of_rows = set(data.starts.tolist())
    for first, last in zip(cut.starts[:-1], cut.starts[1:], strict=True):
        steps = cut.columns["step"][first:last]
        assert np.array_equal(steps, np.arange(steps[0], steps[0] + len(steps)))  # a piece of one row
        for offset in np.flatnonzero(cut.scored[first:last]):
            assert offset > 0  # there is something to predict it from
            assert offset >= context / 2 or int(steps[0]) in starts_of_rows


def test_rows_that_fit_are_left_as_they_are():
    data = sequences([9, 3])
    assert windows(data, 8)[0] is data and windows(data, 8)[1].tolist() == [0, 9]
    assert len(windows(data, 7)[0]) == 3


def test_long_rows_count_every_target():
    model, data = random_model(small_config(context=7)), sequences([40, 3, 8])
    found = nats(model, data, rows=2)
    assert np.count_nonzero(found.each) == data.targets
    np.testing.assert_allclose(found.mean, nats(model, data, rows=256).mean, rtol=1e-6)


def test_rows_without_a_target_cost_nothing():
    model = random_model(small_config())
    assert nats(model, sequences([1, 1])).mean == 0.0
    alone, among = sequences([6], share=1.0), sequences([6, 1, 1], share=1.0)
    sums, counts = nats(model, among).between(among.starts)
    assert sums[1:].tolist() == [0, 0] and counts.tolist() == [5, 0, 0]
    assert nats(model, alone).between(alone.starts)[1].tolist() == [5]
    assert nats(model, sequences([])).mean == 0.0


# Baselines and records.


def test_the_unigram_baseline_is_the_entropy_of_what_is_scored():
    ids = np.array([0, 1, 1, 2, 0, 1, 2, 2], np.uint16)
    scored = np.array([0, 1, 1, 1, 0, 1, 0, 0], bool)  # 1, 1, 2, 1
    data = Rows.of_ids(ids, np.array([0, 4, 8]), scored)
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


def rows_of(lengths: list[int], characters: list[int] | None = None) -> Rows:
    """Rows of these numbers of tokens, the first of each not scored."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    scored = np.ones(starts[-1], bool)
    scored[starts[:-1]] = False
    sizes = None if characters is None else np.array(characters)
    return Rows.of_ids(np.zeros(starts[-1], np.uint16), starts, scored, sizes, sizes)


LETTERS = CharacterCodec("abc")


def test_likelihoods_are_given_per_token_character_and_byte():
    data = rows_of([4, 4, 3])
    each = np.array([0, 3, 2, 1, 0, 2, 1, 1, 0, 1, 1], np.float32)
    data = Rows.of_ids(data.ids, data.starts, data.scored, np.array([9, 9, 6]), np.array([12, 12, 8]))
    measured, units = Nats(each, data.scored), Units.of(data, LETTERS, "document")
    scores = {s.name: s for s in likelihood_scores(measured, data, units, Baseline(name="unigram", value=3.0))}
    assert {name: (s.value, s.n) for name, s in scores.items()} == {
        "nats_per_token": (pytest.approx(12 / 8), 8),
        "nats_per_char": (pytest.approx(12 / 24), 24),
        "bits_per_byte": (pytest.approx(12 / 32 / math.log(2)), 32),
    }
    for score in scores.values():
        assert 0 <= score.low <= score.value <= score.high
        assert score.baseline.name == "unigram" and score.baseline.value == pytest.approx(2 * score.value)
        assert score.note == "interval over 3 documents"
    uncounted = rows_of([4, 4, 3])
    units = Units.of(uncounted, LETTERS, "row")
    (only,) = likelihood_scores(measured, uncounted, units, Baseline(name="u", value=3.0))
    assert (only.name, only.note) == ("nats_per_token", "interval over 3 rows")


@pytest.mark.parametrize("documents", [30, 120])
def test_intervals_cover_the_truth_where_documents_differ(documents: int) -> None:
    """Tokens of a document resemble each other, and longer ones have more characters a token."""
    random, covered = np.random.default_rng(documents), 0
    for _ in range(200):
        tokens = random.integers(50, 1500, documents)
        data = rows_of((tokens + 1).tolist(), np.rint(tokens * random.uniform(3, 5, documents)).tolist())
        level = random.gamma(25.0, 4 / 25, documents)  # nats a token: mean 4
        each = np.repeat(level, tokens + 1) * random.gamma(1.0, 1.0, data.starts[-1])
        measured = Nats((each * data.scored).astype(np.float32), data.scored)
        units = Units.of(data, LETTERS, "document")
        assert units.name == f"{documents} documents"
        found = likelihood_scores(measured, data, units, Baseline(name="none", value=0.0))
        in_units = {"nats_per_token": 4.0, "nats_per_char": 1.0, "bits_per_byte": 1 / math.log(2)}
        covered += sum(score.low <= in_units[score.name] <= score.high for score in found)
    assert covered >= 0.93 * 3 * 200


@pytest.mark.parametrize("total", [6_200, 200_000])
def test_long_blocks_cover_the_truth_of_one_document(total: int) -> None:
    """The level wanders from scene to scene, 60 tokens each, and every letter writes two bytes."""
    random, covered = np.random.default_rng(total), 0
    codec = CharacterCodec("é")
    for _ in range(200):
        scenes = random.geometric(1 / 60, total // 30)
        level = np.repeat(random.gamma(25.0, 2 / 25, len(scenes)), scenes)[: total + 1]
        data = rows_of([total + 1], [total])
        data = Rows.of_ids(data.ids + 2, data.starts, data.scored, data.row_characters, 2 * data.row_bytes)
        measured = Nats((level * data.scored).astype(np.float32), data.scored)
        units = Units.of(data, codec, "document")
        assert units.name == "24 blocks of 1 document"
        assert units.characters.sum() == pytest.approx(total) and units.utf8_bytes.sum() == pytest.approx(
            2 * total
        )
        scores = likelihood_scores(measured, data, units, Baseline(name="none", value=0.0))
        covered += sum(score.low <= 2.0 <= score.high for score in scores[:2])
    assert covered >= 0.93 * 2 * 200


def test_blocks_count_the_characters_of_scored_tokens_alone():
    """Of one long conversation: what is asked in it is neither predicted nor counted."""
    scored = np.arange(2000) % 400 >= 100
    data = Rows.of_ids(np.full(2000, 2), np.array([0, 2000]), scored, np.array([1500]), np.array([1500]))
    units = Units.of(data, LETTERS, "document")
    assert units.name == "7 blocks of 1 document"
    np.testing.assert_allclose(units.characters, np.add.reduceat(scored, units.edges[:-1], dtype=float))


def test_few_rows_of_numbers_are_cut_into_blocks_too():
    data = Rows({"x": np.zeros((3000, 2))}, np.array([0, 3000]), np.ones(3000, bool))
    units = Units.of(data, LETTERS, "row")
    assert units.name == "11 blocks of 1 row" and not units.characters.any()


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_units_are_the_rows_or_cut_them_and_leave_nothing_out(lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = random.integers(0, 5, sum(lengths))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    characters = np.array([np.count_nonzero(part >= 2) for part in np.split(ids, starts[1:-1])])
    data = Rows.of_ids(ids, starts, np.ones(len(ids), bool), characters, characters)
    units = Units.of(data, LETTERS, "row")
    assert set(starts.tolist()) <= set(units.edges.tolist())
    assert (np.diff(units.edges) > 0).all() and len(units.characters) == len(units.edges) - 1
    written = [np.count_nonzero(part >= 2) for part in np.split(ids, units.edges[1:-1])]
    np.testing.assert_allclose(units.characters, written)
    whole = "1 row" if len(lengths) == 1 else f"{len(lengths)} rows"
    if len(units.edges) == len(starts):
        assert units.name == whole
    else:
        assert units.name.startswith(f"{len(units.edges) - 1} blocks of {whole}")
        assert len(lengths) < 10 or max(lengths) > sum(lengths) / 8


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
