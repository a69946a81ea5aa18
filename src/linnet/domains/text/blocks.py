"""The block metric of the headline protocol, number for number, with what it leaves out.

The protocol joins all titles with an end mark of five characters, walks over spans of B x T + 1 tokens, reads
each as B rows of T that know nothing of each other, and divides the summed nats of the spans that are full by all
characters. What does not fill a span is never scored, so the number falls as batches grow. It is printed
beside the full-coverage score and never instead of it.
Legend: N = tokens of the joined text, B = rows of a span, T = tokens of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from linnet.codecs import Codec
from linnet.domains.contract import Region
from linnet.errors import counted
from linnet.records import Baseline, Score
from linnet.rows import Rows

if TYPE_CHECKING:
    from linnet.evaluation import Units
    from linnet.model.model import Model

MARK = 5  # characters that the protocol counts for one end mark, "<eos>"


def joined_tokens(rows: Rows, has_begin: bool) -> np.ndarray:
    """Which tokens make up the text: those of each document and its end mark, without begin tokens."""
    kept = np.ones(int(rows.starts[-1]), bool)
    kept[rows.starts[:-1]] = not has_begin
    return kept


def block_rows(tokens: int, rows: int, context: int) -> np.ndarray:
    """Which of so many joined tokens are the rows [spans x B, T + 1] of every full span.

    The last T of each are predicted from the first T.
    """
    spans = tokens // (rows * context + 1)
    first = np.arange(spans)[:, None] * (rows * context + 1) + np.arange(rows) * context
    return first.reshape(-1, 1) + np.arange(context + 1)


def no_block(rows: Rows, codec: Codec, block: tuple[int, int] | None, name: str) -> list[str]:
    """Why the block metric that a run wants is not there."""
    if block is None:
        return []
    tokens, (batch, context) = int(joined_tokens(rows, codec.begin is not None).sum()), block
    if tokens > batch * context:
        return []
    return [
        f"no block metric: the {name} has {tokens:,} tokens, and one {batch} x {context} span needs "
        f"{batch * context + 1:,}"
    ]


def block_scores(
    model: Model,
    codec: Codec,
    rows: Rows,
    units: Units,
    block: tuple[int, int],
    beaten: Baseline,
    *,
    size: int,
    region: Region,
) -> list[Score]:
    """The number of the headline protocol, with its coverage; nothing where no span is full (see `no_block`).

    Its interval is that of the units that it covers, with as many of their characters as it covers tokens.
    """
    from linnet.evaluation import Nats, nats
    from linnet.intervals import ratio_interval

    there = joined_tokens(rows, codec.begin is not None)
    kept, (batch, context) = np.flatnonzero(there), block
    cut = kept[block_rows(len(kept), batch, context)]
    if not len(cut):
        return []
    scored = np.ones(cut.shape, bool)
    scored[:, 0] = False
    starts = np.arange(len(cut) + 1, dtype=np.int64) * (context + 1)
    ids = rows.ids[cut.reshape(-1)].astype(np.int64)
    measured = nats(model, Rows.of_ids(ids, starts, scored.reshape(-1)), rows=size, region=region)
    covered = Nats(np.zeros(rows.steps, np.float32), np.zeros(rows.steps, bool))
    covered.each[cut[scored]], covered.scored[cut[scored]] = measured.each[scored.reshape(-1)], True
    sums, tokens = covered.between(units.edges)
    marks = np.histogram(rows.starts[1:] - 1, units.edges)[0]
    whole = np.add.reduceat(there, units.edges[:-1], dtype=np.int64)
    counts = (units.characters + MARK * marks) * tokens / np.maximum(whole, 1)
    characters = rows.characters + MARK * len(rows)
    value = float(sums.sum()) / characters
    low, high = (side * counts.sum() / characters for side in ratio_interval(sums, counts))
    note = (
        f"the headline protocol at {batch} x {context}: {counted(len(cut) // batch, 'span')}, "
        f"{scored.sum() / len(kept):.1%} of the tokens; the end mark counts as {MARK} characters; not comparable "
        "with the scores above"
    )
    cut_at = f"; rows read in windows of {model.config.context}" if context > model.config.context else ""
    return [
        Score(
            name="block_nats_per_char",
            value=value,
            n=characters,
            low=max(0.0, low),
            high=high,
            baseline=Baseline(name=beaten.name, value=beaten.value * int(scored.sum()) / characters),
            note=f"{note}{cut_at}; {units.note()}",
        )
    ]
