"""Ablation, patching, attribution and edges: fast ways equal slow ones, everything adds up, parts are told apart.

Legend: B = cases, T = tokens, E = edges.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.probing import ablation, attribution, edge_scores, edges, parts, patching
from linnet.probing.cases import Cases, Subject, log_probability, mean_and_half, score
from small_models import configs, random_ids, random_model, small_config

CASES, TOKENS = 3, 6
CAUSAL = configs(causal=True)


def without_value_tables(mixers):
    """Values that are looked up by token reach a head past every edge and every stream."""
    return configs(mixers=mixers).filter(lambda config: not config.value_layers)


def some_cases(*, seed: int = 0, corrupt: bool = True) -> Cases:
    ids, other = random_ids(CASES, TOKENS, seed=seed), random_ids(CASES, TOKENS, seed=seed + 1)
    targets = random_ids(CASES, 2, seed=seed + 2)
    wrong = (targets + 1 + random_ids(CASES, 2, seed=seed + 3) % 3) % 13
    return Cases(ids, targets, torch.tensor([TOKENS - 2, TOKENS - 1]), wrong, other if corrupt else None)


def subject_of(config, seed: int = 0) -> Subject:
    return Subject(random_model(config, seed), some_cases(seed=seed))


@settings(max_examples=25, deadline=None)
@given(config=CAUSAL, by=st.sampled_from(["zero", "mean", "resample"]), many=st.booleans())
def test_ablations_from_the_layer_that_they_touch_are_whole_runs(config, by, many):
    subject = subject_of(config)
    chosen = [ablation.unit_of(part) for part in parts.writers(config)[1:]]
    chosen += [*ablation.layers(2), *ablation.neurons(1, 3)]
    limits = ablation.MOST_UNITS, ablation.MOST_TOKENS
    try:
        ablation.MOST_UNITS, ablation.MOST_TOKENS = limits if many else (4, 2 * 4 * TOKENS)
        found, plain = ablation.ablate(subject, chosen, by)
    finally:
        ablation.MOST_UNITS, ablation.MOST_TOKENS = limits
    torch.testing.assert_close(found, ablation.ablate_naively(subject, chosen, by), rtol=1e-4, atol=1e-4)
    with evaluating(subject.model):
        torch.testing.assert_close(plain, subject.run(subject.cases.ids)[0])


def test_resampling_needs_another_prompt_and_zero_does_not():
    model = random_model(small_config())
    alone = some_cases(corrupt=False).of(slice(1))
    unit = [ablation.unit_of(parts.Part("mlp", 0))]
    ablation.ablate(Subject(model, alone), unit, "zero")
    with pytest.raises(BadInput, match="one prompt has no other one"):
        ablation.ablate(Subject(model, alone), unit, "resample")


@settings(max_examples=25, deadline=None)
@given(config=CAUSAL)
def test_attributions_sum_to_the_logit(config):
    model, cases = random_model(config), some_cases()
    found = attribution.attribute(model, cases)
    total = found.values.sum(0)
    torch.testing.assert_close(total, found.logits, rtol=1e-4, atol=1e-4)
    with evaluating(model):
        logits = model.head(model(cases.ids).hidden[:, cases.positions])
    if config.head.softcap is None:
        chosen = logits.gather(-1, cases.targets[..., None]) - logits.gather(-1, cases.wrong[..., None])
        torch.testing.assert_close(total, chosen[..., 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["residual", "attention", "mlp", "head", "neuron"])
def test_a_patch_of_everything_is_the_clean_run_and_of_nothing_the_corrupt_run(what):
    """Bit for bit: an edit by 1 and 0 changes no bit, and one by 0 and the value is the value."""
    subject = subject_of(small_config())
    with evaluating(subject.model):
        clean, _ = subject.run(subject.cases.ids)
        corrupt, _ = subject.run(subject.cases.corrupt)
        streams = [name for name in subject.model.taps() if name.endswith("hook_resid_pre")]
        kept = subject.model(subject.cases.ids, keep=tuple(streams)).kept
        nothing = ((name, patching.Affine(torch.ones(()), torch.zeros(()))) for name in subject.model.taps())
        everything = ((name, patching.Affine(torch.zeros(()), kept[name])) for name in streams)
        ids = subject.cases.corrupt
        for edit, expected in ((nothing, corrupt), (everything, clean)):
            found = subject.measure(subject.model(ids, edit=tuple(edit)).hidden)[0]
            assert torch.equal(found, expected)
    chosen, shape = patching.patches(subject, what, by_position=True)
    effects = patching.patch(subject, chosen)
    assert effects.patched.shape == (len(chosen), CASES) and torch.equal(effects.clean, clean)
    assert len(chosen) == torch.Size(shape).numel()


@settings(max_examples=15, deadline=None)
@given(config=without_value_tables(("attention",)))
def test_patching_the_whole_stream_in_front_of_the_first_layer_is_the_clean_run(config):
    subject = subject_of(config)
    whole = patching.patch(subject, [patching.Patch("blocks.0.hook_resid_pre")])
    torch.testing.assert_close(whole.patched[0], whole.clean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.share[0].mean(), torch.ones(()), rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(config=configs(mixers=("attention", "gru")), what=st.sampled_from(["residual", "mlp", "neuron"]))
def test_attribution_patching_is_right_where_changes_are_small(config, what):
    model, cases = random_model(config), some_cases()
    with torch.no_grad():  # the corrupt prompts differ in one token whose vector is nearly the same
        model.embedding.weight[5] = model.embedding.weight[4] + 1e-3 * torch.randn(config.width)
        if model.config.value_layers:
            return
    ids, other = cases.ids.clone(), cases.ids.clone()
    ids[:, 2], other[:, 2] = 4, 5
    subject = Subject(model, Cases(ids, cases.targets, cases.positions, cases.wrong, other))
    chosen, _ = patching.patches(subject, what, by_position=False)
    found = patching.patch(subject, chosen)
    estimate = patching.attribution_patch(subject, chosen)
    torch.testing.assert_close(
        estimate, found.patched, rtol=0, atol=0.1 * float((found.clean - found.corrupt).abs().max()) + 2e-5
    )


def test_heads_of_one_layer_are_patched_apart():
    """A patch that put in the whole layer for each head would give the same number twice, and their sum once."""
    subject = subject_of(small_config())
    chosen, shape = patching.patches(subject, "head", by_position=False)
    assert shape == (2, 2)
    found = patching.patch(subject, chosen).patched.mean(1)
    layer = patching.patch(subject, [patching.Patch("blocks.1.attn.hook_z")]).patched.mean(1)
    assert (found[2] - found[3]).abs() > 1e-3 and (found[2] - layer).abs() > 1e-3


@settings(max_examples=20, deadline=None)
@given(config=CAUSAL)
def test_exact_edges_are_whole_runs(config):
    subject = subject_of(config)
    found, runs = edges.exact_edges(subject)
    assert len(found) == len(parts.edges(config))
    torch.testing.assert_close(found, edges.exact_edges_naively(subject), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(config=without_value_tables(("attention", ("attention", "gru"))), data=st.data())
def test_a_circuit_of_all_edges_is_the_clean_run_of_all_but_one_the_exact_edge(config, data):
    subject = subject_of(config)
    found, runs = edges.exact_edges(subject)
    everything = torch.ones(len(found), dtype=torch.bool)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(edges.of_circuit(subject, runs, everything), runs.clean, **close)
    torch.testing.assert_close(edges.of_circuit(subject, runs, ~everything), runs.corrupt, **close)
    number = data.draw(st.integers(0, len(found) - 1))
    everything[number] = False
    torch.testing.assert_close(edges.of_circuit(subject, runs, everything) - runs.clean, found[number], **close)


@settings(max_examples=10, deadline=None)
@given(config=configs(mixers=("attention", "gru")))
def test_gradients_estimate_small_changes(config):
    """Where the corrupt run is near the clean one, an edge is what its gradient says."""
    subject = subject_of(config)
    _, runs = edges.exact_edges(subject)
    near = dataclasses.replace(runs, other=runs.writes + 1e-3 * runs.change)
    with evaluating(subject.model):
        exact = torch.cat(
            [
                edges.altered(subject, reader, near, near.change[list(parts.before(reader, config))]) - near.clean
                for reader in parts.readers(config)
            ]
        ).mean(1)
    estimate = edge_scores.eap(subject, near)
    torch.testing.assert_close(estimate, exact, rtol=0.05, atol=2e-5)
    torch.testing.assert_close(edge_scores.eap_ig(subject, near, 2), exact, rtol=0.05, atol=2e-5)


def test_acdc_keeps_what_matters():
    subject = subject_of(small_config())
    exact, runs = edges.exact_edges(subject)
    assert edge_scores.acdc(subject, runs, 0.0).all()
    assert not edge_scores.acdc(subject, runs, 1e9).any()
    scores = edge_scores.acdc_scores(subject, runs, [0.03, 0.1, 0.3, 1.0])
    last = torch.tensor([reader.kind == "logits" for _, reader in parts.edges(subject.model.config)])
    assert edge_scores.rank_correlation(scores[last], exact.mean(1).abs()[last]) > 0.5


def test_measures_of_scores():
    scores, true = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([True, False, True, False])
    assert edge_scores.auroc(scores, true) == 1 and edge_scores.auroc(-scores, true) == 0
    assert edge_scores.auroc(torch.zeros(4), true) == 0.5
    assert edge_scores.rank_correlation(scores, scores * 2 + 1) == pytest.approx(1)
    assert edge_scores.rank_correlation(scores, torch.ones(4)) == 0
    assert edge_scores.top_overlap(scores, torch.tensor([-9.0, 8.0, 1.0, 0.0]), 2) == 0.5
    assert edge_scores.area((0.5,), (1.0,)) == pytest.approx(0.25 + 0.5)


@settings(max_examples=10, deadline=None)
@given(config=configs(mixers=("attention",)))
def test_path_patching_of_direct_edges_is_the_exact_edge(config):
    subject = subject_of(config)
    exact, runs = edges.exact_edges(subject)
    table = dict(zip(parts.edges(config), exact, strict=True))
    for receiver in (parts.Part("logits"), parts.Part("v", 1, 0)):
        found = patching.path_patch(subject, [receiver], through_mlps=False)
        for writer, changed in zip(parts.writers(config), found.patched, strict=True):
            expected = table.get((writer, receiver), torch.zeros(CASES))
            torch.testing.assert_close(changed - runs.clean, expected, rtol=1e-3, atol=1e-3)


def test_weights_never_change():
    subject = subject_of(small_config())
    model: Model = subject.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exact, runs = edges.exact_edges(subject)
    edge_scores.eap(subject, runs)
    edge_scores.faithfulness(subject, runs, exact.mean(1))
    ablation.ablate(subject, ablation.layers(2))
    attribution.attribute(model, subject.cases)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_without_an_effect_edges_have_no_share_of_it():
    subject = subject_of(small_config())
    exact, runs = edges.exact_edges(subject)
    with pytest.raises(BadInput, match="the same mean logit difference"):
        edge_scores.faithfulness(subject, dataclasses.replace(runs, corrupt=runs.clean), exact.mean(1))


@pytest.mark.parametrize("metric", [log_probability, score])
def test_other_questions_can_be_asked(metric):
    model, cases = random_model(small_config()), some_cases()
    found, plain = ablation.ablate(Subject(model, cases, metric), [ablation.unit_of(parts.Part("mlp", 1))], "zero")
    assert found.shape == (1, CASES) and plain.shape == (CASES,)
    assert (plain <= 0).all() or set(plain.tolist()) <= {0.0, 1.0}


def test_what_cannot_be_asked_is_named():
    model, cases = random_model(small_config()), some_cases()
    with pytest.raises(BadInput, match="the clean prompts have 6 tokens and the corrupt ones 5"):
        Cases(cases.ids, cases.targets, cases.positions, cases.wrong, cases.ids[:, :5])
    with pytest.raises(BadInput, match="position 6 is outside of the prompt, which has 6 tokens"):
        Cases(cases.ids, cases.targets, torch.tensor([1, 6]))
    with pytest.raises(BadInput, match="needs a wrong answer"):
        ablation.ablate(
            Subject(model, Cases(cases.ids, cases.targets, cases.positions)), ablation.layers(2), "zero"
        )
    with pytest.raises(BadInput, match='no part "head.0.7"; did you mean "head.0.'):
        parts.parse_parts(["head.0.7"], model.config)
    same = Cases(cases.ids, cases.targets, cases.positions, cases.wrong, cases.ids)
    with pytest.raises(BadInput, match="no effect to divide by"):
        _ = patching.patch(Subject(model, same), [patching.Patch("blocks.0.hook_resid_pre")]).share
    with pytest.raises(BadInput, match="no attention to patch|no head to patch"):
        patching.patches(Subject(random_model(small_config(mixer="gru")), cases), "head", by_position=False)


def test_intervals_are_students_of_few_cases_and_wilsons_where_all_agree():
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    means, halves = mean_and_half(values, least=0.25)
    assert means == pytest.approx([7 / 3, 1.0])
    assert halves == pytest.approx([4.302653 * float(values[0].std()) / 3**0.5, 0.25], rel=1e-4)
    assert mean_and_half(values[:, :1]) == ([1.0, 1.0], [])
