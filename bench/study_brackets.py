"""Is one head special for brackets? The claim of a report on expressions (S5), with enough examples to tell.

The report ablated each of 16 heads, compared the loss of accuracy on 100 expressions with brackets and on 100
without, and named the head with the largest difference (0.0458). Here each head is set to zero on 5,000 of each
kind, for several seeds, and the p-values are corrected for having looked at all heads (Holm).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.studies import Found, Page, Trial, table
from linnet import workbench
from linnet.data import pad_rows
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.drawing import draw_distinct
from linnet.domains.arithmetic.problems import Space, solve
from linnet.domains.arithmetic.rows import frame_texts
from linnet.intervals import NORMAL
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.records import AnalysisRecord
from linnet.rows import Rows

SETTINGS = ("steps=1000", "batch=64", "data.instances=64000")
QUICK = ("steps=20", "data.instances=640")
CHUNK = 500  # expressions that are read together
LEVEL = 0.05


@dataclass(frozen=True)
class Excess:
    """How much more a head matters with brackets than without, in nats of the answer and in right answers."""

    layer: int
    head: int
    nats: float
    error: float  # standard error of `nats`
    accuracy: float
    p: float = 1.0  # corrected, of no difference

    @property
    def special(self) -> bool:
        return self.p < LEVEL and self.nats > 0


def expressions(codec: ArithmeticCodec, depth: tuple[int, int], count: int) -> Rows:
    """Expressions of these depths that no training draws, with their answers as targets."""
    questions = draw_distinct(Space("expression", (1, 2), (2, 4), False, depth), 5, count, "test")
    return frame_texts(codec, [(question, solve("expression", question)) for question in questions], "answer")


def answers(model: Model, rows: Rows, head: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Nats of each answer, and whether it would be written exactly; with one head at zero."""
    edit = () if head is None else ((f"blocks.{head[0]}.attn.hook_z", _without(head[1])),)
    nats, exact = [], []
    for first in range(0, len(rows), CHUNK):
        batch = pad_rows(rows, np.arange(first, min(first + CHUNK, len(rows))))
        wanted, asked = batch["next.ids"].long(), batch["weights"] > 0
        with evaluating(model):
            logits = model.head(model(batch["ids"].long(), edit=edit).hidden).float()
        lost = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
        nats.append((lost * asked).sum(1))
        exact.append(((logits.argmax(-1) == wanted) | ~asked).all(1).float())
    return torch.cat(nats).clone(), torch.cat(exact).clone()


def _without(head: int):  # type: ignore[no-untyped-def]
    def edit(values: Tensor) -> Tensor:
        values = values.clone()
        values[:, :, head] = 0
        return values

    return edit


def excesses(path: Path, count: int) -> tuple[list[Excess], tuple[float, float]]:
    """Every head of a run, and the shares of right answers without and with brackets."""
    opened = workbench.load(path, device="cpu")
    model, codec = opened.model, opened.codec
    assert isinstance(codec, ArithmeticCodec)
    parts = [expressions(codec, depth, count) for depth in ((0, 0), (1, 2))]
    whole = [answers(model, rows, None) for rows in parts]
    found = []
    for layer in range(model.config.depth):
        for head in range(model.config.attention.heads):
            changed = [answers(model, rows, (layer, head)) for rows in parts]
            nats = [new[0] - old[0] for new, old in zip(changed, whole, strict=True)]
            lost = [float((old[1] - new[1]).mean()) for new, old in zip(changed, whole, strict=True)]
            error = math.sqrt(sum(float(one.var() / len(one)) for one in nats))
            excess = float(nats[1].mean() - nats[0].mean())
            found.append(Excess(layer, head, excess, error, lost[1] - lost[0]))
    return holm(found), (float(whole[0][1].mean()), float(whole[1][1].mean()))


def inside(tokens: Sequence[str]) -> list[str | None]:
    """The label of the report's probe, depth > 0, at each character of the question."""
    depth, labels, end = 0, list[str | None](), tokens.index("=")
    for index, token in enumerate(tokens):
        depth += (token == "(") - (token == ")")
        labels.append(None if index >= end or token.startswith("<") else "inside" if depth else "outside")
    return labels


def depth_probes(path: Path, rows: int) -> str:
    """Probes of depth > 0 on the residual stream and on single heads."""
    label, config = "bench.study_brackets:inside", workbench.load(path, device="cpu").model.config
    record = workbench.probe(path, label, rows=rows)
    names = record.labels["reading"]
    lines = [
        (tap, *(f"{value:.4f}" for value in values))
        for tap, values in zip(record.labels["tap"], record.values, strict=True)
    ]
    for layer in range(config.depth):
        for head in range(config.attention.heads):
            one = workbench.probe(path, label, taps=(f"blocks.{layer}.attn.hook_z",), head=head, rows=rows)
            lines.append((f"layer {layer} head {head}", *(f"{value:.4f}" for value in one.values[0])))
    facts = "; ".join(
        f"{name}: {record.facts[name]}" for name in ("majority class", "token alone", "token and position")
    )
    return f"Without a model: {facts}.\n\n" + table(("values", *names), lines)


def holm(found: list[Excess]) -> list[Excess]:
    """With two-sided p-values, corrected for their number (Holm 1979)."""
    plain = [math.erfc(abs(one.nats) / max(one.error, 1e-12) / math.sqrt(2)) for one in found]
    corrected, least = [1.0] * len(found), 0.0
    for rank, index in enumerate(sorted(range(len(found)), key=lambda i: plain[i])):
        least = max(least, min(1.0, plain[index] * (len(found) - rank)))
        corrected[index] = least
    return [
        Excess(one.layer, one.head, one.nats, one.error, one.accuracy, p)
        for one, p in zip(found, corrected, strict=True)
    ]


def measure(seed: int, count: int, rows: int, path: Path) -> dict[str, Any]:
    """Everything that the page says about a run."""
    heads, shares = excesses(path, count)
    return {
        "count": count,
        "heads": [asdict(head) for head in heads],
        "right": shares,
        "probes": depth_probes(path, rows) if seed == 1 else "",
    }


def trials(seeds: int, quick: bool) -> list[Trial]:
    count, rows, further = (100, 60, QUICK) if quick else (5000, 1000, ())
    return [
        Trial("pilot", seed, "pilot", (*SETTINGS, *further), functools.partial(measure, seed, count, rows))
        for seed in range(1, seeds + 1)
    ]


def page(found: Found) -> Page:
    heads = {seed: [Excess(**one) for one in known["heads"]] for (_, seed), known in found.items()}
    rows = [_row(seed, heads[seed], known["right"]) for (_, seed), known in found.items()]
    headings = (
        "seed", "right, flat", "right, brackets", "heads special after Holm", "the most special", "excess in nats",
        "lead over the next", "excess in accuracy",
    )  # fmt: skip
    first = found["pilot", 1]
    ablated = f"{first['count']:,} expressions of each kind, 16 heads, zero ablation.\n"
    words = (
        "## Probes of depth > 0, seed 1\n\nThe report: 0.8916 (a head), 0.9991 (residual stream), chance at 0.5.\n"
    )
    text = "\n".join([__doc__ or "", ablated, table(headings, rows), words, first["probes"]])
    return Page(text, {"heads": _picture(heads[1])})


def _row(seed: int, heads: list[Excess], shares: Sequence[float]) -> tuple[object, ...]:
    best, second = sorted(heads, key=lambda one: -one.nats)[:2]
    lead, error = best.nats - second.nats, math.hypot(best.error, second.error)
    return (
        seed,
        f"{shares[0]:.3f}",
        f"{shares[1]:.3f}",
        f"{sum(one.special for one in heads)} of {len(heads)}",
        f"layer {best.layer} head {best.head}",
        f"{best.nats:.3f} ({best.nats - NORMAL * best.error:.3f} .. {best.nats + NORMAL * best.error:.3f})",
        f"{lead:.3f} ({lead - NORMAL * error:.3f} .. {lead + NORMAL * error:.3f})",
        f"{best.accuracy:+.4f}",
    )


def _picture(heads: list[Excess]) -> AnalysisRecord:
    layers = sorted({one.layer for one in heads})
    return AnalysisRecord(
        kind="study",
        title="seed 1: how much more each head matters with brackets",
        axes=("layer", "head"),
        labels={"layer": tuple(map(str, layers))},
        values=[[one.nats for one in heads if one.layer == layer] for layer in layers],
        unit="nats of the answer",
    )
