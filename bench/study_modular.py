"""Late generalisation with Fourier features: sums modulo 59 (Nanda et al. 2023), AdamW and Muon.

One layer, one token a number, 40 % of all sums trained on. The published model has p = 113, no norms and ReLU; the
one here has norms and squared ReLU. The restricted loss keeps only what the logits say through the key frequencies
of a + b, the excluded loss (on trained sums) only what they say without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from bench.studies import Found, Page, Trial, table
from linnet import workbench
from linnet.domains.modular.data import ModularData
from linnet.model.contract import Network, evaluating
from linnet.model.model import Model
from linnet.probing.development import curves
from linnet.probing.embeddings import fourier_power
from linnet.records import AnalysisRecord

KEY = 6  # frequencies
SETTINGS = (
    "precision=float32",
    "data.share=0.4",
    "width=16",
    "feedforward.width=64",
    "optim.weight_decay=2",
    "optim.schedule.kind=wsd",
    "optim.schedule.decay=0.3",
    "steps=10000",
    "eval_every=1000",
    "training.snapshots=80",
)
QUICK = ("data.p=11", "steps=30", "training.snapshots=4", "eval_every=10")
OPTIMISERS = {"AdamW": (), "Muon": ("optim.kind=muon", "optim.muon_lr=0.02")}
KNOWN = 0.99  # accuracy on the other sums that counts as having generalised


def all_logits(network: Network, p: int) -> Tensor:
    """Logits [p, p, p] of every sum a + b, over the numbers."""
    first, second = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    ids = torch.stack((first, second, torch.full_like(first, p)), -1).view(-1, 3)
    assert isinstance(network, Model)
    with evaluating(network):
        return network.head(network(ids).hidden[:, -1])[:, :p].double().view(p, p, p).clone()


def through(logits: Tensor, frequencies: list[int]) -> Tensor:
    """The part of the logits [p, p, p] that is a wave of a + b with one of these frequencies."""
    p = len(logits)
    index = torch.arange(p)
    total = (index[:, None] + index[None]) % p
    found = torch.zeros_like(logits)
    for frequency in frequencies:
        for wave in (torch.cos, torch.sin):
            along = wave(2 * math.pi * frequency * total.double() / p)
            along = along / along.norm()
            found += along[..., None] * (along[..., None] * logits).sum((0, 1))
    return found


def key_frequencies(logits: Tensor) -> list[int]:
    """The frequencies of a + b that carry most of the logits."""
    p = len(logits)
    power = {k: float(through(logits, [k]).square().sum()) for k in range(1, p // 2 + 1)}
    return sorted(power, key=lambda k: -power[k])[:KEY]


def losses(logits: Tensor, chosen: Tensor, frequencies: list[int]) -> dict[str, float]:
    """Nats of the sums in `chosen` (bool [p, p]: trained on) and of the others, whole, restricted and excluded."""
    p = len(logits)
    index = torch.arange(p)
    wanted = ((index[:, None] + index[None]) % p)[..., None]

    def nats(values: Tensor, where: Tensor) -> float:
        return float(-values.log_softmax(-1).gather(-1, wanted)[..., 0][where].mean())

    kept, middle = through(logits, frequencies), logits.mean((0, 1))
    right = logits.argmax(-1) == wanted[..., 0]
    return {
        "train loss": nats(logits, chosen),
        "test loss": nats(logits, ~chosen),
        "restricted loss": nats(kept + middle, torch.ones_like(chosen)),
        "excluded loss": nats(logits - kept, chosen),
        "test accuracy": float(right[~chosen].double().mean()),
    }


def trained_on(data: ModularData, seed: int) -> Tensor:
    """bool [p, p]: the sums of the training part."""
    rows = torch.from_numpy(data.load(seed).train.rows.ids.astype("int64")).view(-1, 4)  # type: ignore[attr-defined]
    chosen = torch.zeros(data.p, data.p, dtype=torch.bool)
    chosen[rows[:, 0], rows[:, 1]] = True
    return chosen


def course(path: Path) -> dict[str, Any]:
    """Losses and embedding power over the snapshots."""
    opened = workbench.load(path, checkpoint=newest(path), device="cpu")
    data = opened.run.data
    assert isinstance(data, ModularData)
    chosen = trained_on(data, opened.run.seed)
    frequencies = key_frequencies(all_logits(opened.network, data.p))

    def measure(network: Network) -> Mapping[str, float]:
        found = losses(all_logits(network, data.p), chosen, frequencies)
        return found | {"embedding power": embedding_power(network, data.p)}

    steps, found = curves(opened.folder, opened.run, opened.codec, measure)
    return {"p": data.p, "steps": steps, "frequencies": frequencies, "curves": found}


def embedding_power(network: Network, p: int) -> float:
    """The share of the power of the number vectors in six frequencies."""
    assert isinstance(network, Model)
    return float(fourier_power(network.embedding.weight.detach().float()[:p]).topk(min(KEY, p // 2)).values.sum())


def newest(path: Path) -> int:
    """The last checkpoint: the best one by loss would be chosen by the sums that are tested."""
    return int(workbench.show(path).checkpoints[-1])


def first(steps: list[int], reached: Iterable[bool]) -> int | None:
    """The first snapshot at which something is reached."""
    return next((step for step, there in zip(steps, reached, strict=True) if there), None)


def for_good(steps: list[int], accuracy: list[float]) -> int | None:
    """The first snapshot from which nearly all other sums are right."""
    last = max((index for index, value in enumerate(accuracy) if value < KNOWN), default=-1) + 1
    return steps[last] if last < len(steps) else None


def trials(seeds: int, quick: bool) -> list[Trial]:
    return [
        Trial(name, seed, "modular", (*SETTINGS, *settings, *(QUICK if quick else ())), course)
        for name, settings in OPTIMISERS.items()
        for seed in range(1, seeds + 1)
    ]


def page(found: Found) -> Page:
    text = "\n".join([__doc__ or "", "## Every run", _runs(found), "## AdamW against Muon", _optimisers(found)])
    return Page(text, {"losses": _picture(found["AdamW", 1])})


def _runs(found: Found) -> str:
    rows = []
    for (name, seed), one in found.items():
        steps, curve = one["steps"], one["curves"]
        half = [
            first(steps, (value < math.log(one["p"]) / 2 for value in curve[loss]))
            for loss in ("train loss", "restricted loss", "test loss")
        ]
        accuracy, power = curve["test accuracy"], curve["embedding power"][-1]
        known = first(steps, (value >= KNOWN for value in accuracy)), for_good(steps, accuracy)
        rows.append((name, seed, f"{accuracy[-1]:.4f}", f"{power:.3f}", *half, *known))
    headings = (
        "optimiser", "seed", "accuracy on other sums", f"embedding power in {KEY} frequencies",
        "step: train loss below half of chance", "restricted loss", "test loss", "step: 99 % right", "for good",
    )  # fmt: skip
    return table(headings, rows)


def _optimisers(found: Found) -> str:
    rows = []
    for name in OPTIMISERS:
        curves = [
            (one["steps"], one["curves"]["test accuracy"]) for (known, _), one in found.items() if known == name
        ]
        reached = [first(steps, (value >= KNOWN for value in accuracy)) for steps, accuracy in curves]
        final = [for_good(steps, accuracy) for steps, accuracy in curves]
        rows.append((name, _spread(reached), _spread(final)))
    return table(("optimiser", "steps to 99 % (mean, standard deviation)", "to 99 % for good"), rows)


def _spread(steps: list[int | None]) -> str:
    there = [step for step in steps if step is not None]
    words = f"{len(there)} of {len(steps)} seeds"
    return f"{mean(there):,.0f} +- {stdev(there):,.0f} ({words})" if len(there) > 1 else f"{there} ({words})"


def _picture(one: Mapping[str, Any]) -> AnalysisRecord:
    steps, found = one["steps"], one["curves"]
    names = [name for name in found if name.endswith("loss")]
    labels = {"loss": tuple(names), "step": tuple(map(str, steps[1:]))}
    return AnalysisRecord(
        kind="study", title="AdamW, seed 1", axes=("loss", "step"), labels=labels,
        values=[[min(value, 20.0) for value in found[name][1:]] for name in names], unit="nats",
    )  # fmt: skip
