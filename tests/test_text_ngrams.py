"""The counting baselines against slow models written another way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.codecs import CharacterCodec
from linnet.domains.text.blocks import block_rows, block_scores, joined_tokens, no_block
from linnet.evaluation import Units
from linnet.model.model import Model
from linnet.ngrams import NGrams, _discounts, unigram_nats
from linnet.records import Baseline
from linnet.rows import Rows
from small_models import random_model, small_config

VOCABULARY = 6
DOCUMENTS = st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=8), min_size=2, max_size=12)


def rows_of(documents: list[list[int]]) -> Rows:
    """Rows that begin and end with token 0."""
    framed = [[0, *document, 0] for document in documents]
    ids = np.array([i for row in framed for i in row], np.uint16)
    starts = np.cumsum([0, *map(len, framed)], dtype=np.int64)
    scored = np.ones(len(ids), bool)
    scored[starts[:-1]] = False
    return Rows.of_ids(ids, starts, scored)


class SlowKneserNey:
    """The textbook recursion over dictionaries."""

    def __init__(self, documents: list[list[int]], order: int) -> None:
        self.order = order
        plain: dict[int, Counter[tuple[int, ...]]] = {k: Counter() for k in range(1, order + 1)}
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for document in documents:
            row = (0, *document, 0)
            for k in plain:
                for i in range(len(row) - k + 1):
                    gram = row[i : i + k]
                    if k > 1 or i > 0:
                        plain[k][gram] += 1
                    if i > 0:
                        before[gram].add(row[i - 1])
        self.counts: dict[int, dict[tuple[int, ...], int]] = {}
        for k, grams in plain.items():
            starts_row = lambda gram, k=k: k > 1 and gram[0] == 0  # noqa: E731
            self.counts[k] = {
                gram: n if k == order or starts_row(gram) else len(before[gram]) for gram, n in grams.items()
            }
        self.discounts = {k: _discounts(np.array(list(grams.values()))) for k, grams in self.counts.items()}

    def probability(self, context: tuple[int, ...], token: int) -> float:
        k = len(context) + 1
        shorter = self.probability(context[1:], token) if context else 1 / VOCABULARY
        following = {gram: n for gram, n in self.counts[k].items() if gram[:-1] == context}
        total = sum(following.values())
        if not total:
            return shorter
        take = {gram: min(n, self.discounts[k][min(n, 3)]) for gram, n in following.items()}
        gram = (*context, token)
        own = (following[gram] - take[gram]) / total if gram in following else 0.0
        return own + sum(take.values()) / total * shorter

    def nats(self, document: list[int]) -> list[float]:
        row = (0, *document, 0)
        found = []
        for i in range(1, len(row)):
            context = row[max(0, i - self.order + 1) : i]
            found.append(-math.log(self.probability(context, row[i])))
        return found


@settings(max_examples=60, deadline=None)
@given(train=DOCUMENTS, held=DOCUMENTS, order=st.integers(2, 5), block=st.integers(1, 40))
def test_sorted_arrays_agree_with_the_recursion(
    train: list[list[int]], held: list[list[int]], order: int, block: int
) -> None:
    model = NGrams.of(rows_of(train), VOCABULARY, order=order)
    slow = SlowKneserNey(train, order)
    wanted = [nats for document in held for nats in slow.nats(document)]
    np.testing.assert_allclose(model.nats(rows_of(held), block), wanted, rtol=1e-5)
    assert model.baseline(rows_of(held)).value == pytest.approx(np.mean(wanted), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(train=DOCUMENTS, context=st.lists(st.integers(1, VOCABULARY - 1), max_size=5))
def test_probabilities_sum_to_one(train: list[list[int]], context: list[int]) -> None:
    model = NGrams.of(rows_of(train), VOCABULARY)
    total = 0.0
    for token in range(VOCABULARY):
        # the last but one token of a row that ends with this token, then with the end mark
        row = Rows.of_ids(
            np.array([0, *context, token], np.uint16),
            np.array([0, len(context) + 2]),
            np.ones(len(context) + 2),
        )
        total += math.exp(-model.nats(row)[-1])
    assert total == pytest.approx(1, abs=1e-5)


def test_a_limit_counts_the_first_rows_only() -> None:
    documents = [[1, 2, 3], [2, 3, 4], [5, 5, 5]]
    some, first = NGrams.of(rows_of(documents), VOCABULARY, limit=6), NGrams.of(rows_of(documents[:2]), VOCABULARY)
    np.testing.assert_array_equal(some.nats(rows_of(documents)), first.nats(rows_of(documents)))


def test_repetition_is_learned() -> None:
    rng = np.random.default_rng(0)
    documents = [[1, 2, 3, 4, 5] * 2 for _ in range(20)] + [rng.integers(1, 6, 10).tolist() for _ in range(20)]
    rows = rows_of([[1, 2, 3, 4, 5] * 2])
    five = NGrams.of(rows_of(documents), VOCABULARY).nats(rows).mean()
    assert five < 0.3
    assert unigram_nats(rows_of(documents), rows, VOCABULARY) == pytest.approx(math.log(VOCABULARY), abs=0.3)


def protocol(model: Model, tokens: np.ndarray, rows: int, context: int) -> tuple[float, int, int]:
    """Summed nats of the headline protocol, as its program walks, its tokens and its spans."""
    size, total, pointer, spans = rows * context + 1, 0.0, 0, 0
    while pointer + size <= len(tokens):
        span = torch.from_numpy(tokens[pointer : pointer + size])
        x, y = span[:-1].reshape(rows, context), span[1:].reshape(rows, context)
        with torch.inference_mode():
            total += float(model.head.nll(model(x).hidden, y).double().sum())
        pointer, spans = pointer + size, spans + 1
    return total, spans * rows * context, spans


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=40),
    rows=st.integers(1, 4),
    context=st.integers(1, 6),
)
def test_the_block_metric_is_the_protocol(documents: list[list[int]], rows: int, context: int) -> None:
    model, codec = random_model(small_config(context=6)), CharacterCodec("abcdefgh", has_begin=True)
    data = dataclasses.replace(rows_of(documents), row_characters=np.array(list(map(len, documents))))
    tokens = data.ids[joined_tokens(data, has_begin=True)].astype(np.int64)
    total, scored, spans = protocol(model, tokens, rows, context)
    units = Units.of(data, codec, "document")
    beaten = Baseline(name="none", value=3.0)
    options: dict[str, Any] = {"size": 3, "region": contextlib.nullcontext}
    found = block_scores(model, codec, data, units, (rows, context), beaten, **options)
    if not spans:
        assert found == [] and no_block(data, codec, (rows, context), "text")
        return
    characters = sum(map(len, documents)) + 5 * len(documents)
    (score,) = found
    assert score.n == characters and score.value == pytest.approx(total / characters, rel=1e-5)
    assert score.low <= score.value * (1 + 1e-9) and score.value <= score.high * (1 + 1e-9)
    assert score.baseline.value == pytest.approx(3.0 * scored / characters)
    assert f": {spans} span" in score.note and f"{scored / len(tokens):.1%} of the tokens" in score.note


def test_coverage_of_the_published_runs() -> None:
    for (rows, context), spans, covered in (
        ((64, 128), 14, 0.936),
        ((64, 64), 29, 0.970),
        ((256, 128), 3, 0.803),
        ((256, 256), 1, 0.535),
        ((1024, 128), 0, 0.0),
    ):
        cut = block_rows(122_495, rows, context)
        assert len(cut) == spans * rows
        assert cut[:, 1:].size / 122_495 == pytest.approx(covered, abs=6e-4)


def test_the_joined_text_has_end_marks_and_no_begin_tokens() -> None:
    rows = rows_of([[1, 2], [3]])
    assert rows.ids[joined_tokens(rows, has_begin=True)].tolist() == [1, 2, 0, 3, 0]
