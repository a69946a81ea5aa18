"""The analyses on circuits that are known exactly: they find the very set of parts and edges, and nothing else.

Where attention is hard there is no gradient, so EAP has to miss edges there, and the record says so.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from linnet.model.contract import evaluating
from linnet.model.taps import Affine
from linnet.probing import ablation, edge_scores, edges, parts, patching, subsets
from linnet.probing.cases import Cases, Subject
from linnet.probing.known.programs import HARD, PROGRAMS, KnownCircuit, known_circuit
from linnet.workbench.causal import edge_record

NOTHING = 1e-6
SOFT = 4.0
SATURATED = (
    "induction",
    "sort",
    "adder",
    "pointer",
    "two_steps",
    "balanced",
)  # their queries, keys or carries depend on tokens


@functools.cache
def known(name: str, sharpness: float) -> tuple[KnownCircuit, Subject]:
    made = known_circuit(name, sharpness)
    clean, corrupt, steps = made.pairs(24, seed=1)
    rows = torch.arange(len(clean))
    with evaluating(made.model):
        targets, wrong = (
            made.model.head(made.model(ids).hidden)[rows, steps].argmax(-1) for ids in (clean, corrupt)
        )
    cases = Cases(clean, targets.clone()[:, None], steps[:, None], wrong.clone()[:, None], corrupt)
    return made, Subject(made.model, cases)


@functools.cache
def exact(name: str, sharpness: float) -> tuple[Tensor, edges.Runs]:
    return edges.exact_edges(known(name, sharpness)[1])


def true_edges(made: KnownCircuit) -> Tensor:
    order = parts.edges(made.model.config)
    return torch.tensor([(writer.name, reader.name) in made.circuit.edges for writer, reader in order])


def true_parts(made: KnownCircuit) -> set[str]:
    heads = {f"head.{layer}.{head}" for layer, head in made.circuit.heads}
    return heads | {f"mlp.{layer}" for layer in made.circuit.feedforwards}


@pytest.mark.parametrize("sharpness", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_exact_edges_are_the_circuit(name: str, sharpness: float) -> None:
    made, _ = known(name, sharpness)
    true, found = true_edges(made), exact(name, sharpness)[0].abs().amax(1)
    assert len(made.circuit.edges) == int(true.sum())
    assert float(found[true].min()) > 0.01 and float(found[~true].max()) < NOTHING


@pytest.mark.parametrize("name", PROGRAMS)
def test_exact_subsets_are_the_circuit(name: str) -> None:
    made, subject = known(name, HARD)
    everything = parts.writers(made.model.config)[1:]
    chosen = sorted(everything, key=lambda part: part.name not in true_parts(made))[: subsets.MOST]
    # The two letters of two corrupt heads of `two_steps` fit each other, so that the last head alone is enough.
    by: ablation.By = "zero" if name == "two_steps" else "resample"
    table = subsets.exact_subsets(subject, chosen, by).mean(1).double().numpy()
    (circuit,) = subsets.minimal_circuits(table, 1 - NOTHING)
    assert {part.name for i, part in enumerate(chosen) if circuit >> i & 1} == true_parts(made)
    values = dict(zip((part.name for part in chosen), subsets.shapley(table), strict=True))
    assert all(abs(value) < NOTHING for name, value in values.items() if name not in true_parts(made))


@pytest.mark.parametrize("name", PROGRAMS)
def test_acdc_finds_the_circuit_and_the_record_says_what_gradients_miss(name: str) -> None:
    made, subject = known(name, HARD)
    true, (found, runs) = true_edges(made), exact(name, HARD)
    whole = float((runs.clean - runs.corrupt).mean())
    scores = edge_scores.acdc_scores(subject, runs, [share * whole for share in (1e-5, 1e-2, 0.1)])
    assert edge_scores.auroc(scores, true) == 1
    record = edge_record(subject, ["eap", "eap-ig"], true=true, curves=False)
    large = found.mean(1).abs() > 0.05 * found.mean(1).abs().max()
    missed = large & (edge_scores.eap(subject, runs).abs() < NOTHING)
    assert record.facts["AUROC of exact"] == 1
    assert record.facts["eap: large ones that score 0"] == int(missed.sum())
    if name in SATURATED:
        assert missed.any() and float(record.facts["AUROC of eap"]) < 1
    assert float(record.facts["AUROC of eap-ig"]) > 0.99


@pytest.mark.parametrize("name", ["induction", "duplicate", "sort"])
def test_soft_attention_has_gradients(name: str) -> None:
    made, subject = known(name, SOFT)
    estimate = edge_scores.eap(subject, exact(name, SOFT)[1])
    assert edge_scores.auroc(estimate.abs(), true_edges(made)) == 1


def heads_that_matter(subject: Subject) -> set[str]:
    chosen, _ = patching.patches(subject, "head", by_position=False)
    share = patching.patch(subject, chosen).share.abs().amax(1).tolist()
    return {f"head.{p.tap.split('.')[1]}.{p.index}" for p, v in zip(chosen, share, strict=True) if v > NOTHING}


@pytest.mark.parametrize("name", PROGRAMS)
def test_patches_and_ablations_find_the_heads(name: str) -> None:
    made, subject = known(name, HARD)
    heads = {part for part in true_parts(made) if part.startswith("head")}
    patched = heads_that_matter(subject)
    assert patched <= heads and (patched == heads or name == "adder")  # one operand's digit alone restores nothing
    units = [ablation.unit_of(part) for part in parts.writers(made.model.config)[1:]]
    found, plain = ablation.ablate(subject, units, "resample")
    changed = {unit.name for unit, v in zip(units, found - plain, strict=True) if float(v.abs().max()) > NOTHING}
    assert changed == true_parts(made)


def test_a_head_patch_that_patches_the_layer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    made, subject = known("induction", HARD)
    heads = {part for part in true_parts(made) if part.startswith("head")}
    assert heads_that_matter(subject) <= heads
    honest = patching.values_at

    def whole_layer(group: list[patching.Patch], value: Tensor) -> Affine:
        return honest([patching.Patch(one.tap, -1, one.position) for one in group], value)

    monkeypatch.setattr(patching, "values_at", whole_layer)
    assert not heads_that_matter(subject) <= heads


@pytest.mark.parametrize("name", PROGRAMS)
def test_neurons_of_the_program_are_those_that_matter(name: str) -> None:
    made, subject = known(name, HARD)
    config = made.model.config
    for layer in range(config.depth):
        units = ablation.neurons(layer, config.feedforward_width)
        found, plain = ablation.ablate(subject, units, "resample")
        changed = {
            (layer, unit.index) for unit, v in zip(units, found - plain, strict=True) if v.abs().max() > NOTHING
        }
        assert changed <= made.circuit.neurons
