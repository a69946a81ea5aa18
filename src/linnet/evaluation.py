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

from linnet.data import pad_rows
from linnet.domains import Question
from linnet.model.inputs import Inputs
from linnet.model.model import Model, evaluating
from linnet.records import Baseline, Score
from linnet.sequences import Sequences

REPLICATES = 1000


@dataclass(frozen=True)
class Nats:
    """Sums of negative log-likelihood and counts of tokens, one of each a window."""

    sums: np.ndarray  # float64 [windows]
    counts: np.ndarray  # int64 [windows]

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / max(1, self.counts.sum()))


def windows(sequences: Sequences, context: int) -> Sequences:
    """The same scored tokens in rows of at most `context` + 1 tokens; the sequences themselves if all fit."""
    if len(sequences) == 0 or int(sequences.lengths.max()) <= context + 1:
        return sequences
    stride = max(1, context // 2)
    picked, scored, lengths = [], [], [0]
    for start, length in zip(sequences.starts[:-1], sequences.lengths, strict=True):
        for first, last, fresh in _spans(int(length), context + 1, stride):
            tokens = np.arange(start + first, start + last)
            picked.append(tokens)
            scored.append(sequences.scored[tokens] & (tokens >= start + fresh))
            lengths.append(last - first)
    index = np.concatenate(picked)
    fields = {name: values[index] for name, values in sequences.fields.items()}
    starts = np.cumsum(lengths, dtype=np.int64)
    return Sequences(sequences.ids[index], starts, np.concatenate(scored), 0, 0, fields)


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
    sequences: Sequences,
    *,
    rows: int = 256,
    region: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Nats:
    """Negative log-likelihood of every scored token, in windows sorted by length so that little is padded."""
    pieces = windows(sequences, model.config.context)
    order = np.argsort(pieces.lengths, kind="stable")
    order = order[pieces.lengths[order] > 1]  # a single token has nothing to be predicted from
    sums, counts = np.zeros(len(pieces)), np.zeros(len(pieces), np.int64)
    with evaluating(model):
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            batch = pad_rows(pieces, chosen).to(model.device)
            with region():
                inputs = Inputs(batch.ids, fields=batch.fields, lengths=batch.lengths)
                lost = model.head.nll(model(inputs).hidden, batch.targets)
            sums[chosen] = (lost.double() * batch.weights).sum(1).cpu().numpy()
            counts[chosen] = batch.weights.sum(1).long().cpu().numpy()
    return Nats(sums, counts)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half if right else 0.0), (middle + half if right < n else 1.0)


def bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of sum(sums) / sum(counts), resampling units (rows, users) with Poisson weights."""
    if not counts.sum():
        return 0.0, 0.0
    if len(sums) < 2:
        return (float(sums.sum() / counts.sum()),) * 2
    random = np.random.default_rng(seed)
    ratios = []
    for first in range(0, REPLICATES, 50):
        weights = random.poisson(1.0, (min(50, REPLICATES - first), len(sums)))
        totals = weights @ counts
        drawn = totals > 0  # few units are at times all left out
        ratios.append((weights @ sums)[drawn] / totals[drawn])
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return float(low), float(high)


def unigram(sequences: Sequences, vocabulary: int) -> float:
    """Nats per scored token of the best model that knows only how often each token is scored here."""
    counts = np.bincount(sequences.ids[sequences.scored].astype(np.int64), minlength=vocabulary)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def likelihood_scores(measured: Nats, sequences: Sequences, baseline: Baseline) -> list[Score]:
    """Nats per token, per character and bits per byte, over all scored tokens; baseline in nats per token."""
    low, high = bootstrap(measured.sums, measured.counts)
    tokens = int(measured.counts.sum())
    scores = []
    units = {
        "nats_per_token": (tokens, 1.0),
        "nats_per_char": (sequences.characters, 1.0),
        "bits_per_byte": (sequences.utf8_bytes, 1 / math.log(2)),
    }
    for name, (n, factor) in units.items():
        if n == 0:
            continue
        scale = factor * tokens / n
        beaten = Baseline(name=baseline.name, value=baseline.value * scale)
        scores.append(
            Score(name=name, value=measured.mean * scale, n=n, low=low * scale, high=high * scale, baseline=beaten)
        )
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
    return group, int(value) if value.lstrip("-").isdigit() else 0, value
