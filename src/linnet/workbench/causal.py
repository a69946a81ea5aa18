"""Causal analyses of a run: one function a verb, each of which gives a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from linnet.errors import BadInput, refuse_unknown
from linnet.figures import visible
from linnet.intervals import wilson
from linnet.probing import ablation, attribution, edge_scores, edges, parts, patching, subsets
from linnet.probing.cases import METRICS, Subject, mean_and_half
from linnet.records import AnalysisRecord, Grid
from linnet.workbench.cases import Analysis, CaseOptions, analysis_of

HALF = "half of the 95 % interval"
METHODS = ("exact", "eap", "eap-ig", "acdc")
THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of ACDC, in shares of the effect of the corrupt run


def attribute(path: Path | str, **options: Unpack[CaseOptions]) -> AnalysisRecord:
    """What each part adds to the logits of the answer, behind the frozen final norm."""
    analysis = analysis_of(path, **options)
    model, cases = analysis.subject.model, analysis.subject.cases
    found = attribution.attribute(model, cases)
    mean = found.values.mean(1)  # [P, A]
    answer = names(analysis, cases.targets[0].tolist())
    softcap = model.config.head.softcap
    return AnalysisRecord(
        kind="attribution",
        title=f"what each part adds to the {'logit' if cases.wrong is None else 'logit difference'} of the answer",
        axes=("part", "answer"),
        labels={"part": found.names, "answer": answer},
        tokens=analysis.tokens,
        values=mean.tolist(),
        unit="logit",
        facts={
            "n": len(cases),
            "sum of the parts": float(mean.sum(0).mean()),
            "logit of the model": float(found.logits.mean()),
            "largest difference": float((found.values.sum(0) - found.logits).abs().max()),
        },
        notes=(
            "the norm in front of the head has the scale of each prompt (frozen), so the parts add up",
            *(("the sum and the logit are means over the tokens of the answer",) if len(answer) > 1 else ()),
            *(() if softcap is None else (f"before the softcap of {softcap}",)),
            *analysis.notes,
        ),
    )


def patch(
    path: Path | str,
    *,
    what: patching.What = "head",
    by_position: bool = False,
    estimate: bool = False,
    **options: Unpack[CaseOptions],
) -> AnalysisRecord:
    """What values of the clean run do in the corrupt one: 1 is the clean run, 0 the corrupt one.

    `estimate` adds attribution patching, which takes one gradient for all, beside the exact numbers.
    """
    analysis = analysis_of(path, needs_corrupt=True, **options)
    chosen, shape = patching.patches(analysis.subject, what, by_position=by_position)
    found = patching.patch(analysis.subject, chosen)
    mean, half = mean_and_half(found.share, least_half(analysis, found))
    inner = (what,) if what in ("head", "neuron") else ()
    axes = ("layer", *inner, *(("position",) if by_position else ()))
    further, facts = spread(half, axes, {}, shape), ends(analysis.subject, found.clean, found.corrupt)
    if estimate:
        guess = replace(found, patched=patching.attribution_patch(analysis.subject, chosen)).share.mean(1)
        further.append(Grid(name="attribution patching", axes=axes, values=guess.view(shape).tolist()))
        facts |= errors({"exact": torch.tensor(mean), "attribution patching": guess})
    return AnalysisRecord(
        kind="patching",
        title=f"{what} of the clean run in the corrupt run",
        axes=axes,
        tokens=analysis.tokens,
        values=torch.tensor(mean).view(shape).tolist(),
        unit="share of the effect",
        facts=facts,
        further=tuple(further),
        notes=analysis.notes,
    )


def path_patch(
    path: Path | str,
    readers: Sequence[str],
    *,
    direct: bool = False,
    **options: Unpack[CaseOptions],
) -> AnalysisRecord:
    """The effect of each part on the measure by its paths into these readers alone."""
    analysis = analysis_of(path, needs_corrupt=True, **options)
    config = analysis.subject.model.config
    known = {part.name: part for part in parts.readers(config)}
    for name in readers:
        refuse_unknown(name, known, "this model has no reader")
    found = patching.path_patch(analysis.subject, [known[name] for name in readers], through_mlps=not direct)
    mean, half = mean_and_half(found.share, least_half(analysis, found))
    return over_parts(
        analysis,
        parts.writers(config),
        mean,
        half,
        kind="path_patching",
        title=f"corrupt parts by their paths into {', '.join(readers)}",
        unit="share of the effect",
        facts=ends(analysis.subject, found.corrupt, found.clean),
    )


def over_parts(
    analysis: Analysis, named: Sequence[parts.Part | ablation.Unit], values: Any, half: Any, **fields: Any
) -> AnalysisRecord:
    """One number for each part, with half of its interval."""
    labels = {"part": tuple(part.name for part in named)}
    return AnalysisRecord(
        axes=("part",),
        labels=labels,
        tokens=analysis.tokens,
        values=values,
        further=tuple(spread(half, ("part",), labels)),
        notes=analysis.notes,
        **fields,
    )


def ablate(
    path: Path | str,
    *,
    what: str = "head",
    by: ablation.By = "mean",
    layer: int | None = None,
    **options: Unpack[CaseOptions],
) -> AnalysisRecord:
    """What changes when a part's value is zero, its mean, or that of another prompt."""
    analysis = analysis_of(path, needs_corrupt=False, **options)
    units = units_named(analysis.subject, what)
    if layer is not None:
        depth = analysis.subject.model.config.depth
        if not 0 <= layer < depth:
            raise BadInput(f"there is no layer {layer}; the model has layers 0 to {depth - 1}")
        units = [unit for unit in units if unit.layer == layer]
        if not units:
            raise BadInput(f"layer {layer} has no {what} to ablate")
    found, plain = ablation.ablate(analysis.subject, units, by)
    mean, half = mean_and_half(found - plain, least_half(analysis))
    return over_parts(
        analysis,
        units,
        mean,
        half,
        kind="ablation",
        title=f"{by} ablation of each {what}",
        unit=f"change of the {analysis.what}",
        facts={"n": len(analysis.subject.cases), f"{analysis.what} of the whole model": float(plain.mean())},
    )


def spread(
    half: Sequence[float], axes: tuple[str, ...], labels: dict[str, tuple[str, ...]], shape: Sequence[int] = (-1,)
) -> list[Grid]:
    """The grid of the intervals; a single case has none."""
    if not half:
        return []
    values = torch.tensor(half).view(*shape).tolist()
    return [Grid(name=HALF, axes=axes, labels=labels, values=values)]


def least_half(analysis: Analysis, effects: patching.Effects | None = None) -> float:
    """Half of the interval of a share where all cases agree (Wilson's); 0 of logits and nats."""
    n = len(analysis.subject.cases)
    half = 1 - wilson(n, n)[0] if analysis.subject.metric is METRICS["score"] else 0.0
    return half if effects is None else half / effects.whole


def units_named(subject: Subject, what: str) -> list[ablation.Unit]:
    config = subject.model.config
    if what == "layer":
        return list(ablation.layers(config.depth))
    if what == "neuron":
        return [unit for n in range(config.depth) for unit in ablation.neurons(n, config.feedforward_width)]
    wanted = {"head": ("head",), "mlp": ("mlp",), "part": ("head", "mixer", "mlp")}
    if what not in wanted:
        raise BadInput(f'an ablation is of each head, mlp, part, layer or neuron, not of "{what}"')
    found = [part for part in parts.writers(config) if part.kind in wanted[what]]
    if not found:
        raise BadInput(f"this model has no {what} to ablate")
    return [ablation.unit_of(part) for part in found]


def find_edges(
    path: Path | str,
    *,
    methods: Sequence[str] = ("exact", "eap", "eap-ig"),
    curves: bool = True,
    **options: Unpack[CaseOptions],
) -> AnalysisRecord:
    """Every edge exactly, each approximation beside its error, and how faithful the chosen circuits are."""
    if unknown := [method for method in methods if method not in METHODS]:
        raise BadInput(f'there is no method "{unknown[0]}"; there is {", ".join(METHODS)}')
    analysis = analysis_of(path, needs_corrupt=True, **options)
    record = edge_record(analysis.subject, methods, curves=curves)
    notes, unit = (*analysis.notes, *record.notes), f"change of the {analysis.what}"
    return record.model_copy(update={"tokens": analysis.tokens, "unit": unit, "notes": notes})


def edge_record(
    subject: Subject,
    methods: Sequence[str] = ("exact", "eap", "eap-ig"),
    *,
    curves: bool = True,
    true: Tensor | None = None,
) -> AnalysisRecord:
    """The edges of a subject; where the true ones are known (bool [E]), how well each method tells them."""
    exact, runs = edges.exact_edges(subject)
    mean = exact.mean(1)
    whole = float((runs.clean - runs.corrupt).mean())
    sign = -1.0 if whole > 0 else 1.0
    made = {"exact": lambda: mean} | {
        "eap": lambda: edge_scores.eap(subject, runs),
        "eap-ig": lambda: edge_scores.eap_ig(subject, runs),
        # A threshold has no sign; edges that are left are taken to speak for the answer, as most do.
        "acdc": lambda: edge_scores.acdc_scores(subject, runs, [t * abs(whole) for t in THRESHOLDS]) * sign,
    }
    scores = {method: made[method]() for method in dict.fromkeys(("exact", *methods))}
    order = parts.edges(subject.model.config)
    edge_labels = {"edge": tuple(parts.edge_name(*edge) for edge in order)}
    further = [
        Grid(name=method, axes=("edge",), labels=edge_labels, values=values.tolist())
        for method, values in scores.items()
        if method != "exact"
    ]
    facts = ends(subject, runs.clean, runs.corrupt) | {"edges": len(order)}
    facts |= errors(scores)
    if true is not None:
        facts |= {f"AUROC of {method}": edge_scores.auroc(values.abs(), true) for method, values in scores.items()}
    if curves:
        curve, areas = faithfulness(subject, runs, scores)
        further, facts = [*curve, *further], facts | areas
    looked_up = ("values that are looked up by token are no edge: they stay those of the clean prompt",)
    return AnalysisRecord(
        kind="edges",
        title="change when one edge carries the corrupt value",
        axes=("edge",),
        labels=edge_labels,
        values=mean.tolist(),
        unit="change of the logit difference",
        facts=facts,
        further=tuple(further),
        notes=looked_up if subject.model.config.value_layers else (),
    )


def errors(scores: dict[str, Tensor]) -> dict[str, float | int | str]:
    """How each approximation agrees with the exact numbers."""
    exact, facts = scores["exact"], dict[str, float | int | str]()
    k = min(len(exact), max(5, len(exact) // 50))
    for method, values in scores.items():
        if method == "exact":
            continue
        facts[f"rank correlation of {method} with exact"] = edge_scores.rank_correlation(values.abs(), exact.abs())
        facts[f"{method}: share of the top {k} that is right"] = edge_scores.top_overlap(values, exact, k)
        missed = (exact.abs() >= 0.05 * exact.abs().max()) & (values.abs() < 1e-6)
        facts[f"{method}: large ones that score 0"] = int(missed.sum())
    return facts


def faithfulness(
    subject: Subject, runs: edges.Runs, scores: dict[str, Tensor]
) -> tuple[list[Grid], dict[str, float | int | str]]:
    """Curves over the share of edges, and their areas."""
    found = {method: edge_scores.faithfulness(subject, runs, values) for method, values in scores.items()}
    labels = {"method": tuple(found), "share": tuple(f"{share:g}" for share in edge_scores.SHARES)}
    curves = {
        "faithfulness, edges that add most": [list(one.kept) for one in found.values()],
        "faithfulness, edges of largest magnitude": [list(one.near) for one in found.values()],
    }
    axes = ("method", "share")
    grids = [Grid(name=name, axes=axes, labels=labels, values=values) for name, values in curves.items()]
    facts: dict[str, float | int | str] = {}
    for method, one in found.items():
        facts |= {f"area of faithfulness (CPR) of {method}": one.cpr, f"distance to 1 (CMD) of {method}": one.cmd}
    return grids, facts


def find_subsets(
    path: Path | str,
    *,
    names: Sequence[str] = (),
    by: ablation.By = "mean",
    share: float = 0.95,
    orders: int | None = None,
    **options: Unpack[CaseOptions],
) -> AnalysisRecord:
    """Every subset of the named parts (all heads and feed-forwards unless named); or an estimate by orders."""
    analysis = analysis_of(path, **options)
    config = analysis.subject.model.config
    chosen = parts.parse_parts(names, config) if names else parts.writers(config)[1:]
    if len(chosen) < 2:
        raise BadInput("subsets are of at least two parts")
    if orders is not None:
        return estimate_record(analysis, chosen, by, orders)
    table = subsets.exact_subsets(analysis.subject, chosen, by).mean(1).double().numpy()
    values, labels = subsets.shapley(table), {"part": tuple(part.name for part in chosen)}
    circuits = subsets.minimal_circuits(table, share)
    total = float(table[-1] - table[0])
    pair_labels = {"part": labels["part"], "with": labels["part"]}
    pairs = subsets.interactions(table).tolist()
    every = {"subset": tuple("+".join(inside(subset, chosen)) or "none" for subset in range(len(table)))}
    return AnalysisRecord(
        kind="subsets",
        title=f"all {len(table):,} subsets of {len(chosen)} parts, the others by {by} ablation",
        axes=("part",),
        labels=labels,
        tokens=analysis.tokens,
        values=values.tolist(),
        unit="Shapley value",
        facts={
            "n": len(analysis.subject.cases),
            f"{analysis.what} of all parts": float(table[-1]),
            f"{analysis.what} of none": float(table[0]),
            "sum of the Shapley values less the total effect": float(values.sum() - total),
            f"minimal circuits that keep {share:.0%} of the effect": len(circuits),
            **{
                f"circuit {i}": f"{', '.join(inside(one, chosen)) or 'no part'} ({float(table[one]):.4g})"
                for i, one in enumerate(circuits[:5], 1)
            },
        },
        further=(
            Grid(name="pair interactions", axes=("part", "with"), labels=pair_labels, values=pairs),
            Grid(name="every subset", axes=("subset",), labels=every, values=table.tolist()),
        ),
        notes=analysis.notes,
    )


def estimate_record(
    analysis: Analysis, chosen: Sequence[parts.Part], by: ablation.By, orders: int
) -> AnalysisRecord:
    found = subsets.estimated_shapley(analysis.subject, chosen, by, orders=orders)
    return over_parts(
        analysis,
        chosen,
        found.values.tolist(),
        found.half.tolist(),
        kind="subsets",
        title=f"Shapley values of {len(chosen)} parts, estimated from {found.orders} orders",
        unit="Shapley value",
        facts={"n": len(analysis.subject.cases), "orders": found.orders},
    )


def inside(subset: int, chosen: Sequence[parts.Part]) -> list[str]:
    """The names of the parts of a subset, which has a bit for each."""
    return [part.name for i, part in enumerate(chosen) if subset >> i & 1]


def names(analysis: Analysis, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{i + 1}: {visible(analysis.opened.codec.tokens[token])}" for i, token in enumerate(ids))


def ends(subject: Subject, clean: Tensor, corrupt: Tensor) -> dict[str, float | int | str]:
    return {"n": len(subject.cases), "clean": float(clean.mean()), "corrupt": float(corrupt.mean())}
