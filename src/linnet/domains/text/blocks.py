"""The block metric of the headline protocol, number for number, with what it leaves out.

The protocol joins all titles with an end mark of five characters, walks over spans of B x T + 1 tokens, reads
each as B rows of T that know nothing of each other, and divides the summed nats of the spans that are full by all
characters. What does not fill a span is never scored, so the number falls as batches grow. It is printed
beside the full-coverage score and never instead of it.
Legend: N = tokens of the joined text, B = rows of a span, T = tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.codecs import Codec
from linnet.domains.contract import Region
from linnet.errors import BadInput
from linnet.records import Baseline, Score
from linnet.rows import Rows

if TYPE_CHECKING:
    from linnet.evaluation import Units
    from linnet.model.model import Model

MARK = 5  # characters that the protocol counts for one end mark, "<eos>"


@dataclass(frozen=True)
class BlockScore:
    nats_per_char: float
    coverage: float  # share of the N tokens that were scored
    spans: int
    tokens: int  # that were scored
    characters: int  # of the whole text, end marks among them


def coverage(tokens: int, rows: int, context: int) -> float:
    """floor(N / (B T + 1)) B T / N."""
    return tokens // (rows * context + 1) * rows * context / tokens if tokens else 0.0


def joined_tokens(rows: Rows, has_begin: bool) -> np.ndarray:
    """Which tokens make up the text: those of each document and its end mark, without begin tokens."""
    kept = np.ones(int(rows.starts[-1]), bool)
    kept[rows.starts[:-1]] = not has_begin
    return kept


def block_targets(tokens: int, rows: int, context: int) -> np.ndarray:
    """The indices of the joined tokens that are predicted, in the order of `block_rows`."""
    size = rows * context + 1
    return (np.arange(tokens // size)[:, None] * size + np.arange(1, size)).reshape(-1)


def block_rows(tokens: np.ndarray, rows: int, context: int) -> np.ndarray:
    """The rows [spans x B, T + 1] of every full span: the last T tokens of each are predicted from the first T."""
    size = rows * context + 1
    spans = len(tokens) // size
    if spans == 0:
        raise BadInput(
            f"the block metric of {rows} x {context} needs {size:,} tokens for one span, and there are "
            f"{len(tokens):,}: its value would be 0 whatever the model; choose a smaller block"
        )
    cut = tokens[: spans * size].reshape(spans, size)
    inputs, targets = cut[:, :-1].reshape(-1, context), cut[:, 1:].reshape(-1, context)
    return np.concatenate([inputs, targets[:, -1:]], axis=1)


def block_score(
    nats: np.ndarray, tokens: int, rows: int, context: int, characters: int, documents: int
) -> BlockScore:
    """The protocol's number from the nats of the rows that `block_rows` gave, [spans x B, T] or summed over T."""
    spans = tokens // (rows * context + 1)
    if spans == 0 or nats.shape not in ((spans * rows, context), (spans * rows,)):
        raise BadInput(
            f"{spans} spans of {rows} x {context} have {spans * rows} rows of nats, not shape {nats.shape}"
        )
    counted = characters + MARK * documents
    total, covered = float(nats.sum(dtype=np.float64)), coverage(tokens, rows, context)
    return BlockScore(total / counted, covered, spans, spans * rows * context, counted)


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
    kept = np.flatnonzero(there)
    batch, context = block
    if len(kept) <= batch * context:
        return []
    cut = block_rows(rows.ids[kept].astype(np.int64), batch, context)
    starts = np.arange(len(cut) + 1, dtype=np.int64) * (context + 1)
    scored = np.ones(cut.size, bool)
    scored[starts[:-1]] = False
    measured = nats(model, Rows.of_ids(cut.reshape(-1), starts, scored), rows=size, region=region)
    each = measured.each.reshape(len(cut), context + 1)[:, 1:]
    found = block_score(each, len(kept), batch, context, rows.characters, len(rows))
    targets = kept[block_targets(len(kept), batch, context)]
    covered = Nats(np.zeros(rows.steps, np.float32), np.zeros(rows.steps, bool))
    covered.each[targets], covered.scored[targets] = each.reshape(-1), True
    sums, tokens = covered.between(units.edges)
    marks = np.histogram(rows.starts[1:] - 1, units.edges)[0]
    whole = np.add.reduceat(there, units.edges[:-1], dtype=np.int64)
    counts = (units.characters + MARK * marks) * tokens / np.maximum(whole, 1)
    low, high = (found.nats_per_char * side * counts.sum() / sums.sum() for side in ratio_interval(sums, counts))
    spans = "1 span" if found.spans == 1 else f"{found.spans:,} spans"
    return [
        Score(
            name="block_nats_per_char",
            value=found.nats_per_char,
            n=found.characters,
            low=max(0.0, low),
            high=high,
            baseline=Baseline(name=beaten.name, value=beaten.value * found.tokens / found.characters),
            note=f"the headline protocol at {batch} x {context}: {spans}, {found.coverage:.1%} of the "
            "tokens; the end mark counts as 5 characters; not comparable with the scores above"
            + (f"; rows read in windows of {model.config.context}" if context > model.config.context else "")
            + f"; {units.note()}",
        )
    ]
