"""Exact subsets: the measure of the model with every subset of its parts, the others ablated.

From the whole table follow minimal circuits, Shapley values and pair interactions without any approximation.
Subsets that agree in their first layers share the computation of these: attention runs once for each subset of
the layers before it, and the last layer only at the positions that are asked about.
Legend: n = parts, S = subsets [2^n] as bits (bit i: part i is in), B = cases, T = tokens, W = width.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Block
from linnet.model.taps import Taps
from linnet.probing.ablation import By, Replacements, edits_of, replacements, unit_of
from linnet.probing.cases import Subject
from linnet.probing.parts import Part, output_weights
from linnet.progress import Progress

MOST = 14
NOTHING = Taps(dict, (), ())


def exact_subsets(subject: Subject, parts: Sequence[Part], by: By = "mean") -> Tensor:
    """[2^n, B]: the measure with each subset of these parts; number s has part i where bit i of s is set."""
    if len(parts) > MOST:
        raise BadInput(too_many(subject, parts, by))
    with evaluating(subject.model):
        found = replacements(subject, [part.tap for part in parts], by)
        return Walk(subject, parts, found).table()


class Walk:
    """Layer by layer through all subsets, depth first."""

    def __init__(self, subject: Subject, parts: Sequence[Part], found: Replacements) -> None:
        self.subject, self.model, self.parts, self.found = subject, subject.model, tuple(parts), found
        self.frame = self.model.frame(subject.cases.ids)
        self.progress = Progress("subsets", 1 << len(parts))

    def table(self) -> Tensor:
        rows = torch.empty(1 << len(self.parts), len(self.subject.cases))
        with self.progress:
            for done, (subset, measured) in enumerate(
                self._from(0, 0, self.found.kept["blocks.0.hook_resid_pre"]), 1
            ):
                rows[subset] = measured
                self.progress.update(done)
        return rows

    def _from(self, layer: int, subset: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every subset that agrees with this one before this layer, whose stream there is x."""
        if layer == self.model.config.depth:
            yield subset, self.subject.measure_answers(self.model.final_norm(x))[0]
            return
        block = self.model.block(layer)
        for mixed_subset, mixed in self._mixed(block, layer, x):
            for fed_subset, after in self._fed(block, layer, self._at_answer(layer, x), mixed):
                yield from self._from(layer + 1, subset | mixed_subset | fed_subset, after)

    def _at_answer(self, layer: int, value: Tensor) -> Tensor:
        """Behind the last mixer, only the positions that are asked about: nothing else is read any more."""
        if layer < self.model.config.depth - 1:
            return value
        cases = self.subject.cases
        return cases.at(value.expand(max(len(value), len(cases)), *value.shape[1:]))

    def _mixed(self, block: Block, layer: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What the mixer adds, for every subset of its parts."""
        inside = [(i, part) for i, part in enumerate(self.parts) if part.layer == layer and part.kind != "mlp"]
        heads = [(i, part.head) for i, part in inside if part.kind == "head"]
        tap = f"blocks.{layer}.attn.hook_z"
        taps = Taps(self.model.taps, (tap,) if heads else (), ())
        whole, _ = block.mix(x, None, self.frame, taps)
        whole = self._at_answer(layer, whole)
        if not heads:
            yield from self._switched(layer, inside, whole)
            return
        weights = output_weights(self.model, layer)
        loss = [self.found.values[tap][:, :, head] - taps.kept[tap][:, :, head] for _, head in heads]
        losses = [
            self._at_answer(layer, change) @ weights[head] for change, (_, head) in zip(loss, heads, strict=True)
        ]
        for chosen in itertools.product((False, True), repeat=len(heads)):
            absent = [lost for lost, inside in zip(losses, chosen, strict=True) if not inside]
            yield bits(i for (i, _), inside in zip(heads, chosen, strict=True) if inside), sum(absent, whole)

    def _fed(self, block: Block, layer: int, x: Tensor, mixed: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The stream behind the layer, with and without its feed-forward."""
        inside = [(i, part) for i, part in enumerate(self.parts) if part.layer == layer and part.kind == "mlp"]
        middle = x + mixed
        if inside:
            yield 0, middle + self._at_answer(layer, self.found.values[inside[0][1].tap])
        yield bits(i for i, _ in inside), middle + block.feed(x if block.parallel else middle, NOTHING)

    def _switched(
        self, layer: int, inside: Sequence[tuple[int, Part]], whole: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """A mixer that is one part, or none of the parts."""
        if inside:
            yield 0, self._at_answer(layer, self.found.values[inside[0][1].tap]).expand_as(whole)
        yield bits(i for i, _ in inside), whole


def bits(indices: Iterator[int] | Sequence[int]) -> int:
    return sum(1 << i for i in indices)


def exact_subsets_naively(subject: Subject, parts: Sequence[Part], by: By = "mean") -> Tensor:
    """The same, one run of the whole model a subset: the reference."""
    with evaluating(subject.model):
        found = replacements(subject, [part.tap for part in parts], by)
        return torch.stack([of_subset(subject, parts, found, subset) for subset in range(1 << len(parts))])


def of_subset(subject: Subject, parts: Sequence[Part], found: Replacements, subset: int) -> Tensor:
    """[B]: the measure with these parts alone."""
    absent = [unit_of(part) for i, part in enumerate(parts) if not subset >> i & 1]
    edits = [edit for unit in absent for edit in edits_of([unit], found, len(subject.cases))]
    return subject.edited(edits)[0]


# --- what follows from the table --------------------------------------------------------------------------


def shapley(table: np.ndarray) -> np.ndarray:
    """[n]: the mean of what each part adds, over all orders in which the parts can come; of a table [2^n]."""
    n = int(math.log2(len(table)))
    numbers = np.arange(len(table))
    sizes = np.array([number.bit_count() for number in numbers.tolist()])
    weights = np.array([1 / (n * math.comb(n - 1, size)) for size in range(n)] + [0.0])
    found = []
    for i in range(n):
        without = numbers[(numbers >> i & 1) == 0]
        found.append(float((weights[sizes[without]] * (table[without | 1 << i] - table[without])).sum()))
    return np.array(found)


def interactions(table: np.ndarray) -> np.ndarray:
    """[n, n]: Shapley interactions: what two parts add together beyond what each adds; 0 on the diagonal."""
    n = int(math.log2(len(table)))
    numbers, found = np.arange(len(table)), np.zeros((n, n))
    sizes = np.array([number.bit_count() for number in numbers.tolist()])
    weights = np.array([1 / ((n - 1) * math.comb(n - 2, size)) for size in range(n - 1)] + [0.0, 0.0])
    for i, j in itertools.combinations(range(n), 2):
        rest = numbers[(numbers >> i & 1 | numbers >> j & 1) == 0]
        both, one, other = table[rest | 1 << i | 1 << j], table[rest | 1 << i], table[rest | 1 << j]
        found[i, j] = found[j, i] = float((weights[sizes[rest]] * (both - one - other + table[rest])).sum())
    return found


def minimal_circuits(table: np.ndarray, share: float = 0.95) -> list[int]:
    """The subsets that keep this share of the total effect and lose it with any part less; the smallest first.

    A subset counts as one that loses it where some smaller subset inside it keeps the share.
    """
    total = table[-1] - table[0]
    enough = (table - table[0]) / total >= share if total else np.ones(len(table), bool)
    found: list[int] = []
    for subset in sorted(np.flatnonzero(enough).tolist(), key=lambda s: (s.bit_count(), s)):
        if not any(smaller & subset == smaller for smaller in found):
            found.append(subset)
    return found


# --- more parts than can be enumerated --------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Shapley values from random orders [n], and half of their 95 % intervals."""

    values: np.ndarray
    half: np.ndarray
    orders: int


def estimated_shapley(
    subject: Subject, parts: Sequence[Part], by: By = "mean", *, orders: int = 64, seed: int = 0
) -> Estimate:
    """Shapley values by drawn orders, each of them beside its reverse."""
    random, added = np.random.default_rng(seed), []
    with evaluating(subject.model), Progress("orders", orders) as progress:
        found = replacements(subject, [part.tap for part in parts], by)
        ends = [float(of_subset(subject, parts, found, subset).mean()) for subset in (0, (1 << len(parts)) - 1)]
        for pair in range(math.ceil(orders / 2)):
            order = random.permutation(len(parts))
            both = [_marginals(subject, parts, found, one, ends) for one in (order, order[::-1])]
            added.append(np.mean(both, 0))
            progress.update(min(orders, 2 * pair + 2))
    values = np.stack(added)
    error = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.full(len(parts), math.nan)
    return Estimate(values.mean(0), 1.96 * error, 2 * len(values))


def _marginals(
    subject: Subject, parts: Sequence[Part], found: Replacements, order: np.ndarray, ends: Sequence[float]
) -> np.ndarray:
    """[n]: what each part adds when parts come in this order."""
    added, subset, before = np.zeros(len(parts)), 0, ends[0]
    for number, i in enumerate(order.tolist(), 1):
        subset |= 1 << i
        now = ends[1] if number == len(parts) else float(of_subset(subject, parts, found, subset).mean())
        added[i], before = now - before, now
    return added


def too_many(subject: Subject, parts: Sequence[Part], by: By) -> str:
    """Why there is no exact answer for so many parts, and what the estimate would take."""
    small = replace(subject, cases=subject.cases.of(slice(8)))
    with evaluating(subject.model):
        found = replacements(small, [part.tap for part in parts], "zero")
        began = time.perf_counter()
        of_subset(small, parts, found, 0)
        one = (time.perf_counter() - began) * len(subject.cases) / len(small.cases)
    orders = 64
    return (
        f"{len(parts)} parts have {1 << len(parts):,} subsets, too many to compute (at most {MOST} parts); "
        f"name fewer parts, or estimate by orders: {orders} of them take about {orders * len(parts) * one:,.0f} s"
    )
