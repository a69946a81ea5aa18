"""What the training text of a run says about other rows: what counting it reaches, and which of them it holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from linnet.domains.text.ngrams import NGrams, unigram_nats
from linnet.records import Baseline
from linnet.rows import Rows

COUNTED = 10_000_000  # training tokens that baselines count
COMPARED = 5_000_000  # training rows up to which repeated rows are looked for
BLOCK = 1 << 14  # rows read at a time
MANY = 0.1  # share of repeated rows from which scores say little


def counted(train: Rows, rows: Rows, vocabulary: int) -> tuple[Baseline, ...]:
    """What models of the training part that only count reach on these rows."""
    unigram = Baseline(name="unigram", value=unigram_nats(train, rows, vocabulary, COUNTED))
    return NGrams.of(train, vocabulary, COUNTED).baseline(rows), unigram


def seen_before(train: Rows, rows: Rows) -> str:
    """How many of these rows stand word for word among the training rows; nothing where none does."""
    if len(train) > COMPARED:
        return f"the training text has {len(train):,} documents, too many to look for these ones among them"
    unseen: dict[int, int] = {}
    for row in _hashes(rows):
        unseen[row] = unseen.get(row, 0) + 1
    found = 0
    for row in _hashes(train):
        found += unseen.pop(row, 0)
        if not unseen:
            break
    if not found:
        return ""
    share = found / len(rows)
    said = f"{found:,} of {len(rows):,} documents ({share:.1%}) stand word for word in the training text"
    if share < MANY:
        return said
    return f"{said}: the scores say little about new text, and the n-gram model knows these by heart"


def _hashes(rows: Rows) -> Iterator[int]:
    for first in range(0, len(rows), BLOCK):
        edges = np.asarray(rows.starts[first : first + BLOCK + 1], np.int64)
        ids = np.ascontiguousarray(rows.ids[int(edges[0]) : int(edges[-1])].astype("<u4")).tobytes()
        bounds = (4 * (edges - edges[0])).tolist()
        yield from (hash(ids[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
