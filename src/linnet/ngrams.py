"""An interpolated modified Kneser-Ney n-gram model: what a person without a network would use (as KenLM does).

Everything is sorted arrays. An n-gram is known by the number of its context and its last token, and gets a
number of its own, so that no order is limited by how many tokens fit into an integer. N-grams never reach over
the start of a row; those that start there keep their plain counts.
Legend: N = tokens of all rows, G(k) = distinct k-grams; number 0 is the empty context.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from linnet.records import Baseline
from linnet.rows import Rows

ORDER = 5
COUNTED = 10_000_000  # training tokens that baselines count
COMPARED = 2_000_000  # training rows up to which repeated rows are looked for
ROWS = 1 << 14  # rows read at a time
MANY = 0.1  # share of repeated rows from which scores say little


@dataclass(frozen=True)
class Order:
    """All k-grams of one length, in the order of their keys, with what their probability needs."""

    keys: np.ndarray  # int64 [G(k)]: number of the context * vocabulary + last token, sorted
    discounted: np.ndarray  # float32 [G(k)]: max(count - discount, 0) / total of the context
    backoff: np.ndarray  # float32 [G(k - 1)]: what a context leaves to the shorter ones; 1 where it was never seen

    def number(self, contexts: np.ndarray, tokens: np.ndarray, vocabulary: int) -> np.ndarray:
        """The numbers of these k-grams; -1 where the k-gram or its context is unknown."""
        wanted = contexts * vocabulary + tokens
        index = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        known = (contexts >= 0) & (len(self.keys) > 0)
        known[known] &= self.keys[index[known]] == wanted[known]
        return np.where(known, index, -1)


@dataclass(frozen=True)
class NGrams:
    orders: tuple[Order, ...]
    vocabulary: int

    @classmethod
    def of(cls, rows: Rows, vocabulary: int, limit: int | None = None, order: int = ORDER) -> NGrams:
        """Count the rows (those that start within the first `limit` tokens) and smooth the counts."""
        some = len(rows) if limit is None else int(np.searchsorted(rows.starts, limit, side="left"))
        stop = int(rows.starts[min(some, len(rows))])
        depth = _depth(rows.starts[: some + 1], 0, stop)
        counting = _count(rows.ids[:stop].astype(np.int64), depth, vocabulary, order)
        return cls(tuple(_smoothed(counting, vocabulary)), vocabulary)

    def nats(self, rows: Rows, block: int = 1 << 20) -> np.ndarray:
        """Negative log-likelihood of every token of these rows but the first of each, in order."""
        pieces, total = [], int(rows.starts[-1])
        for first in range(0, total, block):
            lead, stop = max(0, first - len(self.orders) + 1), min(first + block, total)
            depth = _depth(rows.starts, lead, stop)
            shares = self._probabilities(rows.ids[lead:stop].astype(np.int64), depth)
            pieces.append(-np.log(shares[(np.arange(lead, stop) >= first) & (depth > 0)]))
        return np.concatenate(pieces) if pieces else np.empty(0)

    def baseline(self, rows: Rows) -> Baseline:
        """The mean over all scored tokens of these rows."""
        scored = np.delete(rows.scored[:], rows.starts[:-1])
        return Baseline(name=f"{len(self.orders)}-gram", value=float(self.nats(rows)[scored].mean()))

    def _probabilities(self, ids: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """P(token | what stands before it in its row), mixed over all orders from the shortest up."""
        found = np.full(len(ids), 1.0 / self.vocabulary)
        contexts = np.zeros(len(ids), np.int64)  # number of the (k-1)-gram before each token; 0: the empty one
        for k, order in enumerate(self.orders, start=1):
            known = contexts >= 0
            left = np.ones(len(ids))
            left[known] = order.backoff[contexts[known]]
            numbers = order.number(contexts, ids, self.vocabulary)
            found *= left
            found[numbers >= 0] += order.discounted[numbers[numbers >= 0]]
            contexts = np.concatenate([[-1], numbers[:-1]])
            contexts[depth < k] = -1
        return found


@dataclass(frozen=True)
class _Counting:
    """Plain counts of one length, and which (k-1)-gram each k-gram ends with."""

    keys: np.ndarray
    counts: np.ndarray
    suffixes: np.ndarray  # int64 [G(k)]: number of the k-gram without its first token
    starting: np.ndarray  # bool [G(k)]: it starts a row, so nothing precedes it
    contexts: int  # G(k - 1)


def _count(ids: np.ndarray, depth: np.ndarray, vocabulary: int, order: int) -> list[_Counting]:
    found: list[_Counting] = []
    numbers = np.zeros(len(ids), np.int64)  # of the (k-1)-gram that ends with each token
    contexts = 1
    for k in range(1, order + 1):
        index = np.flatnonzero(depth >= k - 1)
        before = numbers[index - 1] if k > 1 else np.zeros(len(index), np.int64)
        keys, first, inverse, counts = np.unique(
            before * vocabulary + ids[index], return_index=True, return_inverse=True, return_counts=True
        )
        suffixes = numbers[index[first]] if k > 1 else np.zeros(len(keys), np.int64)
        if k == 1:  # what starts a row is a context, and is never predicted
            counts = np.bincount(inverse[depth > 0], minlength=len(keys))
        found.append(_Counting(keys, counts, suffixes, (depth[index[first]] == k - 1) & (k > 1), contexts))
        numbers = np.full(len(ids), -1)
        numbers[index] = inverse
        contexts = len(keys)
    return found


def _smoothed(counting: list[_Counting], vocabulary: int) -> Iterator[Order]:
    """Lower orders count in how many ways an n-gram is preceded; only the longest counts how often it occurs."""
    for k, counts in enumerate(counting, start=1):
        adjusted = counts.counts.astype(np.float64)
        if k < len(counting):
            preceded = np.bincount(counting[k].suffixes, minlength=len(counts.keys))
            adjusted = np.where(counts.starting, adjusted, preceded)
        discounts = _discounts(adjusted)
        context = counts.keys // vocabulary
        totals = np.bincount(context, adjusted, minlength=counts.contexts)
        taken = np.minimum(adjusted, discounts[np.minimum(adjusted, 3).astype(np.int64)])
        left = np.bincount(context, taken, minlength=counts.contexts)
        safe = np.maximum(totals, 1e-12)
        yield Order(
            counts.keys,
            ((adjusted - taken) / safe[context]).astype(np.float32),
            np.where(totals > 0, left / safe, 1.0).astype(np.float32),
        )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Chen and Goodman's discounts for counts of 1, 2 and 3 or more, from how many there are of each."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.75, 0.9])
    y = n1 / (n1 + 2 * n2)
    found = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([min(max(d, 0.05 * c), 0.95 * c) if c else 0.0 for c, d in enumerate(found)])


def _depth(starts: np.ndarray, first: int, stop: int) -> np.ndarray:
    """How many tokens of its row stand before each token from `first` to `stop`."""
    low = int(np.searchsorted(starts, first, side="right")) - 1
    high = int(np.searchsorted(starts, stop, side="left"))
    edges = np.asarray(starts[low:high], np.int64)
    lengths = np.diff(np.append(np.maximum(edges, first), stop))
    return np.arange(first, stop) - np.repeat(edges, lengths)


def unigram_nats(train: Rows, rows: Rows, vocabulary: int, limit: int | None = None) -> float:
    """Nats per scored token of the shares of tokens in `train`, each token counted once more than it occurs."""
    counts = np.ones(vocabulary)
    counts += np.bincount(train.ids[:limit][train.scored[:limit]].astype(np.int64), minlength=vocabulary)
    logs = np.log(counts) - math.log(float(counts.sum()))
    return float(-logs[rows.ids[:][rows.scored[:]].astype(np.int64)].mean())


def counted_baselines(train: Rows, rows: Rows, vocabulary: int) -> tuple[Baseline, ...]:
    """What models of the training part that only count reach on these rows."""
    unigram = Baseline(name="unigram", value=unigram_nats(train, rows, vocabulary, COUNTED))
    return NGrams.of(train, vocabulary, COUNTED).baseline(rows), unigram


def seen_before(train: Rows, rows: Rows) -> str:
    """How many of these rows stand word for word among the training rows; nothing where none does."""
    if len(train) > COMPARED:
        return f"the training text has {len(train):,} documents, too many to look for these ones among them"
    unseen = Counter(_hashes(rows))
    found = sum(unseen.pop(row, 0) for row in _hashes(train))
    if not found:
        return ""
    share = found / len(rows)
    note = f"{found:,} of {len(rows):,} documents ({share:.1%}) stand word for word in the training text"
    if share < MANY:
        return note
    return f"{note}: the scores say little about new text, and the n-gram model knows these by heart"


def _hashes(rows: Rows) -> Iterator[int]:
    for first in range(0, len(rows), ROWS):
        edges = np.asarray(rows.starts[first : first + ROWS + 1], np.int64)
        ids = np.ascontiguousarray(rows.ids[int(edges[0]) : int(edges[-1])].astype("<u4")).tobytes()
        bounds = (4 * (edges - edges[0])).tolist()
        yield from (hash(ids[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
