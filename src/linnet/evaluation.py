"""Scores that do not depend on batch size, packing or order, each with its interval and what it has to beat.

Every scored token of every row counts once. Rows longer than the context are read in windows that overlap by half,
so that each token is predicted from at least half a context. Sums are float64.
Legend: windows = pieces of rows that fit into the context; each scores the tokens that no earlier one scored.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnet.codecs import Codec
from linnet.data import NEXT, PRESENT, Batch, pad_rows
from linnet.domains.contract import Question
from linnet.errors import counted
from linnet.intervals import degrees_of_freedom, ratio_interval, wilson
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.progress import tracked
from linnet.records import Baseline, Score
from linnet.rows import IDS, Rows
from linnet.untrusted import whole_number

BLOCKS = 24  # of a few long rows; in Student's quantile they cost 5 %
BLOCK_TOKENS = 256  # at least: neighbouring tokens are about as hard
FEWEST, FREEDOM = 10, 4.0  # rows, and degrees of freedom, from which rows are resampled and not their blocks


@dataclass(frozen=True)
class Nats:
    """Negative log-likelihoods."""

    each: np.ndarray  # float32 [tokens]: 0 where a token is not scored
    scored: np.ndarray  # bool [tokens]

    @property
    def mean(self) -> float:
        return float(self.each.sum(dtype=np.float64) / max(1, np.count_nonzero(self.scored)))

    def between(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts of scored tokens between these edges, in order and none of them empty."""
        first = np.asarray(edges[:-1])
        sums = np.add.reduceat(self.each, first, dtype=np.float64)
        return sums, np.add.reduceat(self.scored, first, dtype=np.int64)


def windows(source: Rows, context: int) -> tuple[Rows, np.ndarray]:
    """The same scored tokens in rows of at most `context` + 1 tokens, and the token that each begins with.

    These are the source themselves if all fit.
    """
    if len(source) == 0 or int(source.lengths.max()) <= context + 1:
        return source, source.starts[:-1]
    stride = max(1, context // 2)
    picked, scored, lengths = [], [], [0]
    for start, length in zip(source.starts[:-1], source.lengths, strict=True):
        for first, last, fresh in _spans(int(length), context + 1, stride):
            tokens = np.arange(start + first, start + last)
            picked.append(tokens)
            scored.append(source.scored[tokens] & (tokens >= start + fresh))
            lengths.append(last - first)
    index, starts = np.concatenate(picked), np.cumsum(lengths, dtype=np.int64)
    return source.at(index, starts, np.concatenate(scored)), index[starts[:-1]]


def _spans(length: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first, last, first token not scored before) of the windows over a row of this length."""
    first, seen = 0, 0
    while True:
        last = min(first + size, length)
        yield first, last, seen
        if last == length:
            return
        seen, first = last, first + stride


def nats(
    model: Model,
    source: Rows,
    *,
    rows: int = 256,
    region: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Nats:
    """Negative log-likelihood of every scored token, in windows sorted by length so that little is padded."""
    pieces, begins = windows(source, model.config.context)
    order = np.argsort(pieces.lengths, kind="stable")
    order = order[pieces.lengths[order] > 1]  # a single token has nothing to be predicted from
    each = np.zeros(source.steps, np.float32)
    with evaluating(model):
        for first in tracked(range(0, len(order), rows), "scoring rows", len(order), rows):
            chosen = order[first : first + rows]
            batch = pad_rows(pieces, chosen).to(model.device)
            with region():
                lost = target_losses(model, batch)
            row, column = np.nonzero(batch["weights"].cpu().numpy())
            each[begins[chosen][row] + column + 1] = lost.float().cpu().numpy()[row, column]
    return Nats(each, np.asarray(source.scored[:]))


def target_losses(model: Model, batch: Batch) -> Tensor:
    """[B, T]: nats of each token, and the losses of further columns at the same steps."""
    hidden = model(batch).hidden
    losses = list(model.column_losses(hidden, batch).values())
    if IDS in batch:
        nats, marks = model.head.nll(hidden, batch[NEXT + IDS]), batch.get(f"{NEXT}{PRESENT}{IDS}")
        losses.append(nats if marks is None else nats * marks)
    return torch.stack(losses).sum(0) if len(losses) > 1 else losses[0]


@dataclass(frozen=True)
class Units:
    """What a score varies with: the rows, or long blocks where there are few rows or one outweighs the others."""

    edges: np.ndarray  # int64 [units + 1]: the tokens that they begin with, and how many tokens there are
    characters: np.ndarray  # [units], of their scored tokens
    utf8_bytes: np.ndarray
    name: str  # as "120 documents"

    @classmethod
    def of(cls, source: Rows, codec: Codec, row: str) -> Units:
        """`row` says what a row is: a document, for instance."""
        lengths, starts = source.lengths, np.asarray(source.starts)
        name = counted(len(lengths), row)
        characters, utf8_bytes = (
            np.zeros(len(lengths)) if size is None else np.asarray(size)
            for size in (source.row_characters, source.row_bytes)
        )
        if len(lengths) >= FEWEST and degrees_of_freedom(lengths) >= FREEDOM:
            return cls(starts, characters, utf8_bytes, name)
        tokens = int(lengths.sum())
        blocks = min(BLOCKS, max(2, tokens // BLOCK_TOKENS))
        parts = np.clip(np.rint(blocks * lengths / max(1, tokens)), 1, np.maximum(1, lengths - 1)).astype(np.int64)
        if parts.max(initial=1) == 1:
            return cls(starts, characters, utf8_bytes, name)
        # The first token of a row is not scored, so that it is no block of its own.
        cuts = [np.linspace(starts[i] + 1, starts[i + 1], parts[i] + 1)[1:-1] for i in np.flatnonzero(parts > 1)]
        edges = np.sort(np.concatenate([starts, *(cut.astype(np.int64) for cut in cuts)]))
        sizes, rows = [np.zeros(len(edges) - 1)] * 2, np.repeat(np.arange(len(parts)), parts)
        if source.row_characters is not None:
            ids, scored = np.asarray(source.ids[:]), np.asarray(source.scored[:])
            for i, (written, total) in enumerate(zip(written_sizes(codec), (characters, utf8_bytes), strict=True)):
                inside = np.add.reduceat(written[ids] * scored, edges[:-1])
                sizes[i] = inside * (total / np.maximum(np.bincount(rows, inside), 1))[rows]
        others = "" if len(lengths) == 1 else "; others may differ by more"
        return cls(edges, sizes[0], sizes[1], f"{len(edges) - 1:,} blocks of {name}{others}")

    def note(self) -> str:
        return f"interval over {self.name}"


def written_sizes(codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """Characters and bytes that each token writes; 1 where that depends on its neighbours."""
    pieces = codec.pieces
    if pieces is None:
        return np.ones(len(codec.tokens)), np.ones(len(codec.tokens))
    characters = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces]  # bytes that begin one
    return np.array(characters, np.float64), np.array([len(piece) for piece in pieces], np.float64)


def unigram(source: Rows, vocabulary: int) -> float:
    """Nats per scored token of the best model that knows only how often each token is scored here."""
    counts = np.bincount(source.ids[:][source.scored[:]].astype(np.int64), minlength=vocabulary)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def likelihood_scores(measured: Nats, source: Rows, units: Units, baseline: Baseline) -> list[Score]:
    """Nats per token, per character and bits per byte, over all scored tokens; baseline in nats per token."""
    sums, tokens = measured.between(units.edges)
    total = int(tokens.sum())
    scores = []
    for name, n, counts, factor in (
        ("nats_per_token", total, tokens, 1.0),
        ("nats_per_char", source.characters, units.characters, 1.0),
        ("bits_per_byte", source.utf8_bytes, units.utf8_bytes, 1 / math.log(2)),
    ):
        if n == 0:
            continue
        low, high = ratio_interval(sums * factor, counts)
        scale = factor * total / n
        beaten = Baseline(name=baseline.name, value=baseline.value * scale)
        value, note = measured.mean * scale, units.note()
        scores.append(Score(name=name, value=value, n=n, low=max(0.0, low), high=high, baseline=beaten, note=note))
    return scores


def exact_scores(
    questions: Sequence[Question],
    answers: Sequence[str],
    right: Callable[[Question, str], bool],
    baseline: Callable[[Sequence[Question]], Baseline],
) -> list[Score]:
    """Shares of wholly right answers: over all questions, and within each group of them."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        groups["exact"].append(index)
        for name, value in question.groups.items():
            groups[f"exact.{name}={value}"].append(index)
    verdicts = [right(question, answer) for question, answer in zip(questions, answers, strict=True)]
    scores = []
    for name in sorted(groups, key=_by_group):
        members = groups[name]
        hits, n = sum(verdicts[i] for i in members), len(members)
        low, high = wilson(hits, n)
        beaten = baseline([questions[i] for i in members])
        scores.append(Score(name=name, value=hits / n, n=n, low=low, high=high, baseline=beaten))
    return scores


def _by_group(name: str) -> tuple[str, int, str]:
    """Groups in the order of their numbers: exact, exact.depth=0, exact.depth=1, ..."""
    group, _, value = name.partition("=")
    return group, whole_number(value) or 0, value
