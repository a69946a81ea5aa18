"""The block metric of the headline protocol, number for number, with what it leaves out.

The protocol joins all titles with an end mark of five characters, walks over spans of B x T + 1 tokens, reads
each as B rows of T that know nothing of each other, and divides the summed nats of the spans that are full by all
characters. What does not fill a span is never scored, so the number falls as batches grow. It is printed
beside the full-coverage score and never instead of it.
Legend: N = tokens of the joined text, B = rows of a span, T = tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnet.errors import BadInput
from linnet.sequences import Sequences

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


def joined_tokens(rows: Sequences, has_begin: bool) -> np.ndarray:
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
