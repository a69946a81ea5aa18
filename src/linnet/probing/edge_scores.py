"""Approximations of edges, and how far each is from the exact ones: EAP, EAP-IG, ACDC; faithfulness of circuits.

EAP multiplies what an edge would change by the gradient at its reader; where attention is saturated there is no
gradient, and an edge that matters scores 0. EAP-IG takes the mean of gradients between the clean and the corrupt
embedding. ACDC takes edges away one by one, from the logits backwards, as long as the measure changes little.
Legend: E = edges, P = writers, B = cases, T = tokens, W = width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.probing.cases import Subject, differentiating
from linnet.probing.edges import Circuit, Runs, of_circuit, present_of
from linnet.probing.parts import START, Part, before, edges, readers, writers
from linnet.progress import tracked

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def eap(subject: Subject, runs: Runs) -> Tensor:
    """[E]: the linear estimate of each edge's effect, from gradients of the clean run."""
    return _estimated(subject, runs, [0.0])


def eap_ig(subject: Subject, runs: Runs, steps: int = 10) -> Tensor:
    """[E]: the same with gradients averaged on the way from the clean to the corrupt embedding."""
    return _estimated(subject, runs, [(step + 0.5) / steps for step in range(steps)])


def _estimated(subject: Subject, runs: Runs, ways: Sequence[float]) -> Tensor:
    model = subject.model
    everything = torch.ones(len(readers(model.config)), len(writers(model.config)))
    change = runs.change.clone()  # tensors of inference cannot be differentiated through
    start, other, total = runs.writes[0].clone(), runs.other.clone(), None
    with differentiating(model):
        for way in ways:
            circuit = Circuit(subject, other, everything, leaves=True)
            measured = circuit.measure(start + way * change[0]).mean()
            assert circuit.leaves is not None
            leaves = list(circuit.leaves.values())
            gradients = torch.autograd.grad(measured, leaves)
            found = _edge_products(circuit, change, dict(zip(circuit.leaves, gradients, strict=True)))
            total = found if total is None else total + found
    assert total is not None
    return total / len(ways)


def _edge_products(circuit: Circuit, change: Tensor, gradients: Mapping[tuple[Part, ...], Tensor]) -> Tensor:
    """[E]: what each edge would change times the gradient at its reader, in the order of `parts.edges`."""
    of_reader: dict[Part, Tensor] = {}
    for parts, gradient in gradients.items():  # [B, T, R, W]
        products = torch.einsum("pbtw,btrw->rp", change, gradient)
        of_reader |= dict(zip(parts, products, strict=True))
    config = circuit.model.config
    return torch.cat([of_reader[reader][list(before(reader, config))] for reader in readers(config)]).detach()


def acdc(subject: Subject, runs: Runs, threshold: float) -> Tensor:
    """bool [E]: the edges that are left. Those of the last readers go first; what is upstream is still whole."""
    model, config = subject.model, subject.model.config
    order, chosen = edges(config), torch.ones(len(edges(config)), dtype=torch.bool)
    index = {edge: number for number, edge in enumerate(order)}
    present = present_of(model, chosen)
    rows = {part: i for i, part in enumerate(readers(config))}
    with evaluating(model):
        reference = float(runs.clean.mean())
        for reader in tracked(list(reversed(readers(config))), "readers", len(rows)):
            layer = config.depth - 1 if reader.kind == "logits" else reader.layer
            start = f"blocks.{layer}.hook_resid_pre"
            written = sum(part.layer < layer for part in writers(config))
            for i in reversed(before(reader, config)):
                present[rows[reader], i] = 0
                circuit = Circuit(subject, runs.other, present)
                now = runs.writes[:written] if start != START else None
                measured = float(circuit.measure(runs.kept[start], start, now).mean())
                if abs(measured - reference) < threshold:
                    reference = measured
                    chosen[index[writers(config)[i], reader]] = False
                else:
                    present[rows[reader], i] = 1
    return chosen


def acdc_scores(subject: Subject, runs: Runs, thresholds: Sequence[float]) -> Tensor:
    """[E]: the largest of these thresholds at which an edge is left; 0 where it always goes."""
    scores = torch.zeros(len(edges(subject.model.config)))
    for threshold in tracked(sorted(thresholds), "acdc", len(thresholds)):
        scores[acdc(subject, runs, threshold)] = threshold
    return scores


# --- how good scores are ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faithfulness:
    """The share of the measure that circuits of growing size keep, and their areas.

    `kept` chooses edges by what they add (their area: CPR, more is better); `near` by magnitude (the area of the
    distance to 1: CMD, less is better). A circuit of no edge has 0, of all edges 1.
    """

    shares: tuple[float, ...]
    kept: tuple[float, ...]
    near: tuple[float, ...]

    @property
    def cpr(self) -> float:
        return area(self.shares, self.kept)

    @property
    def cmd(self) -> float:
        return area(self.shares, [abs(1 - value) for value in self.near], ends=(1.0, 0.0))


def area(shares: Sequence[float], values: Sequence[float], ends: tuple[float, float] = (0.0, 1.0)) -> float:
    """By trapezoids from no edge to all of them, whose values are `ends`."""
    x, y = torch.tensor([0.0, *shares, 1.0]), torch.tensor([ends[0], *values, ends[1]])
    return float(torch.trapezoid(y, x))


def faithfulness(subject: Subject, runs: Runs, scores: Tensor, shares: Sequence[float] = SHARES) -> Faithfulness:
    """Curves of the circuits that these scores choose; a score is the change that a corrupt edge makes."""
    whole = float((runs.clean - runs.corrupt).mean())
    if not whole:
        raise BadInput(
            "clean and corrupt prompts have the same mean logit difference: edges have no effect to share"
        )
    sign = 1.0 if whole > 0 else -1.0

    def kept(order: Tensor, share: float) -> float:
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[order[: max(1, round(share * len(scores)))]] = True
        return float((of_circuit(subject, runs, chosen) - runs.corrupt).mean()) / whole

    adding, largest = (-sign * scores).argsort(descending=True), scores.abs().argsort(descending=True)
    curves = [tuple(kept(order, share) for share in shares) for order in (adding, largest)]
    return Faithfulness(tuple(shares), *curves)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; 0 where one of them does not vary."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / scale if scale else 0.0


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties shared."""
    found, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts + 1) / 2).double()[inverse]


def top_overlap(first: Tensor, second: Tensor, k: int) -> float:
    """The share of the k largest magnitudes that both have."""
    chosen = [set(values.abs().argsort(descending=True, stable=True)[:k].tolist()) for values in (first, second)]
    return len(chosen[0] & chosen[1]) / k


def auroc(scores: Tensor, true: Tensor) -> float:
    """How often a true edge (bool [E]) scores above another one; ties count half."""
    positive, negative = int(true.sum()), int((~true).sum())
    if not positive or not negative:
        return 1.0
    return float((ranks(scores)[true].sum() - positive * (positive - 1) / 2) / (positive * negative))


def used(subject: Subject, scores: Tensor, least: float = 1e-6) -> tuple[str, ...]:
    """The names of edges whose magnitude is at least this."""
    found = edges(subject.model.config)
    return tuple(
        f"{w.name}->{r.name}" for (w, r), v in zip(found, scores.tolist(), strict=True) if abs(v) >= least
    )
