"""The counting baselines against slow models written another way."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.text.blocks import block_rows, block_score, block_targets, coverage, joined_tokens
from linnet.domains.text.ngrams import NGrams, _discounts, unigram_nats
from linnet.errors import BadInput
from linnet.rows import Rows

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
        # the last but one place of a row that ends with this token, then with the end mark
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
    assert some.counted == first.counted == 10
    np.testing.assert_array_equal(some.nats(rows_of(documents)), first.nats(rows_of(documents)))


def test_repetition_is_learned() -> None:
    rng = np.random.default_rng(0)
    documents = [[1, 2, 3, 4, 5] * 2 for _ in range(20)] + [rng.integers(1, 6, 10).tolist() for _ in range(20)]
    rows = rows_of([[1, 2, 3, 4, 5] * 2])
    five = NGrams.of(rows_of(documents), VOCABULARY).nats(rows).mean()
    assert five < 0.3
    assert unigram_nats(rows_of(documents), rows, VOCABULARY) == pytest.approx(math.log(VOCABULARY), abs=0.3)


def protocol(tokens: np.ndarray, rows: int, context: int, cost: np.ndarray, characters: int) -> float:
    """The headline protocol, as its program walks."""
    size, total, pointer = rows * context + 1, 0.0, 0
    while pointer + size <= len(tokens):
        span = tokens[pointer : pointer + size]
        x, y = span[:-1].reshape(rows, context), span[1:].reshape(rows, context)
        total += float(cost[x, y].sum())
        pointer += size
    return total / characters


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 400), st.integers(0, 10))
def test_the_block_metric_is_the_protocol(rows: int, context: int, total: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, cost = rng.integers(0, VOCABULARY, total), rng.random((VOCABULARY, VOCABULARY))
    if total < rows * context + 1:
        with pytest.raises(BadInput, match="its value would be 0 whatever the model"):
            block_rows(tokens, rows, context)
        return
    cut = block_rows(tokens, rows, context)
    np.testing.assert_array_equal(tokens[block_targets(total, rows, context)], cut[:, 1:].reshape(-1))
    nats = cost[cut[:, :-1], cut[:, 1:]]
    assert block_score(nats.sum(1), total, rows, context, 900, 20).nats_per_char == pytest.approx(
        block_score(nats, total, rows, context, 900, 20).nats_per_char
    )
    score = block_score(nats, total, rows, context, characters=900, documents=20)
    assert score.nats_per_char == pytest.approx(protocol(tokens, rows, context, cost, 900 + 5 * 20))
    assert score.coverage == pytest.approx(score.tokens / total) == coverage(total, rows, context)


def test_coverage_of_the_published_runs() -> None:
    for (rows, context), spans, covered in (
        ((64, 128), 14, 0.936),
        ((64, 64), 29, 0.970),
        ((256, 128), 3, 0.803),
        ((256, 256), 1, 0.535),
        ((1024, 128), 0, 0.0),
    ):
        assert 122_495 // (rows * context + 1) == spans
        assert coverage(122_495, rows, context) == pytest.approx(covered, abs=6e-4)


def test_the_joined_text_has_end_marks_and_no_begin_tokens() -> None:
    rows = rows_of([[1, 2], [3]])
    assert rows.ids[joined_tokens(rows, has_begin=True)].tolist() == [1, 2, 0, 3, 0]


def test_nats_of_another_shape_are_refused() -> None:
    with pytest.raises(BadInput, match="rows of nats, not shape"):
        block_score(np.zeros((3, 4)), 100, 2, 4, 10, 1)
