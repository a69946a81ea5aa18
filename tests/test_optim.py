"""One step of training: groups, optimisers, averaged weights and accumulation, against plain torch and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from linnet.data import Batch
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.model.config import AttentionConfig, ModelConfig
from linnet.model.model import Model
from linnet.training.distributed import Processes
from linnet.training.learner import Learner, micro_batches
from linnet.training.muon import Muon, orthogonalized
from linnet.training.optim import keep_rates, load_state_tensors, optimizers, set_rate, state_tensors
from linnet.training.recorded import RecordedSteps
from linnet.training.run import OptimConfig, Run
from linnet.training.settings import changed
from tiny_runs import tiny_run

CPU = torch.device("cpu")


def learner_of(run: Run) -> Learner:
    assert isinstance(run.data, ArithmeticData)
    return Learner(run, run.data.codec(), CPU, Processes())


SHAPES = {
    "plain": (),
    "untied with biases": (
        "head.tied=false",
        "head.bias=true",
        "attention.bias=true",
        "feedforward.bias=true",
        "norm.kind=layer",
        "norm.bias=true",
        "positions=learned",
        "attention.qk_norm=true",
    ),
    "recurrent": ("mixer=gru",),
}


def model_of(shape: str) -> Model:
    return learner_of(tiny_run(*SHAPES[shape])[0]).network


def weights(model: Model) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_is_in_one_group(shape: str) -> None:
    model = model_of(shape)
    groups = model.groups()
    named = [name for group in (groups.matrices, groups.embeddings, groups.vectors) for name, _ in group]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert {name for name, _ in groups.embeddings} == {
        name
        for name, _ in model.named_parameters()
        if name in ("embedding.weight", "position_embedding.weight", "head.weight")
    }
    assert all(parameter.ndim == 2 and name.startswith("blocks.") for name, parameter in groups.matrices)
    assert all(parameter.ndim == 1 for _, parameter in groups.vectors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_decay(shape: str, kind: str) -> None:
    """With gradients of zero nothing but the decay moves."""
    model = model_of(shape)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    config = OptimConfig(kind=kind, lr=0.1, muon_lr=0.3, weight_decay=0.5)
    for optim in optimizers(model, config):
        optim.step()
    matrices = {name for name, _ in model.groups().matrices}
    kept = 1 - 0.5 * (0.1 if kind == "adamw" else 0.3)
    for name, parameter in model.named_parameters():
        expected = kept if name in matrices else 1.0
        assert torch.allclose(parameter, torch.full_like(parameter, expected)), name


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_moves_the_hidden_matrices_and_adamw_the_rest(shape: str) -> None:
    model = model_of(shape)
    muon, adam = optimizers(model, OptimConfig(kind="muon"))
    assert isinstance(muon, torch.optim.Muon) and isinstance(adam, torch.optim.AdamW)
    assert [group["name"] for group in muon.param_groups] == ["matrices"]
    assert [group["name"] for group in adam.param_groups] == ["embeddings", "vectors"]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = weights(model)
    muon.step()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.groups().matrices}


def test_adamw_alone_has_all_groups_by_name() -> None:
    (adam,) = optimizers(model_of("plain"), OptimConfig(betas=(0.8, 0.9), eps=1e-6))
    assert [group["name"] for group in adam.param_groups] == ["matrices", "embeddings", "vectors"]
    assert {group["betas"] for group in adam.param_groups} == {(0.8, 0.9)}
    assert {group["eps"] for group in adam.param_groups} == {1e-6}
    assert all(group["fused"] for group in adam.param_groups)


def test_a_schedule_scales_every_group_from_its_own_peak() -> None:
    muon, adam = optimizers(model_of("plain"), OptimConfig(kind="muon", lr=0.1, muon_lr=0.4))
    set_rate([muon, adam], 0.5)
    assert [group["lr"] for group in muon.param_groups] == [0.2]
    assert [group["lr"] for group in adam.param_groups] == [0.05, 0.05]


def plain_loss(model: Model, batch: Batch) -> Tensor:
    """Nats per counted token, with all logits at once: what a training step is to lower."""
    logits = model.head(model(batch).hidden)
    nats = F.cross_entropy(logits.flatten(0, 1), batch["next.ids"].flatten(), reduction="none")
    return (nats * batch["weights"].flatten()).sum() / batch["weights"].sum()


def test_a_step_is_what_plain_torch_does() -> None:
    """Loss, clipping, decay and schedule in a few lines of torch, beside the learner."""
    settings = ("optim.clip=0.5", "weight_decay=0.3", "lr=0.01", "schedule=linear", "schedule.warmup=2")
    run, batches = tiny_run(*settings)
    learner = learner_of(run)
    plain = learner_of(run).network
    decaying = [p for n, p in plain.named_parameters() if p.ndim == 2 and n.startswith("blocks")]
    others = [p for n, p in plain.named_parameters() if not (p.ndim == 2 and n.startswith("blocks"))]
    adam = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        foreach=False,
    )
    for step, batch in enumerate(batches[:8]):
        moved = learner.step(batch, step, 18)
        loss = plain_loss(plain, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = 0.01 * (step + 1) / 2 if step < 2 else 0.01 * (1 - (step - 2) / 16)
        adam.step()
        adam.zero_grad()
        assert float(moved.loss) == pytest.approx(loss.item(), rel=1e-5)
        assert float(moved.grad_norm) == pytest.approx(norm.item(), rel=1e-4)
        assert float(norm) > 0.5, "the test wants gradients that are clipped"
    for (name, ours), theirs in zip(learner.network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)


def test_averaged_weights_are_those_of_the_formula_and_of_torch() -> None:
    run, batches = tiny_run("ema=0.8")
    learner = learner_of(run)
    reference = AveragedModel(learner.network, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    by_hand: dict[str, Tensor] | None = None
    for step, batch in enumerate(batches[:6]):
        learner.step(batch, step, 18)
        reference.update_parameters(learner.network)
        now = {name: value.double() for name, value in weights(learner.network).items()}
        by_hand = now if by_hand is None else {n: 0.8 * by_hand[n] + 0.2 * now[n] for n in now}
    assert learner.averaged is not None
    for name, value in learner.averaged.named_parameters():
        torch.testing.assert_close(value.double(), by_hand[name], atol=1e-6, rtol=0)
        assert torch.equal(value, dict(reference.module.named_parameters())[name])
        assert not torch.equal(value, dict(learner.network.named_parameters())[name])


def test_without_averaging_there_are_no_averaged_weights() -> None:
    assert learner_of(tiny_run()[0]).averaged is None


def ragged(batch: Batch) -> Batch:
    """The batch with uneven masks: some rows count fully, some hardly, and the last four not at all."""
    weights = batch["weights"].clone()
    weights[::3, 4:] = 0.0
    weights[1, :] = 1.0 * (torch.arange(weights.shape[1]) < batch["lengths"][1])
    weights[-4:] = 0.0
    return batch.replaced(weights=weights)


def gradient(run: Run, batch: Batch) -> tuple[Tensor, float]:
    """The whole gradient of one step as a vector, and the loss."""
    learner = learner_of(run)
    loss = learner.gradients(batch, 0)
    return torch.cat([p.grad.flatten() for p in learner.network.parameters() if p.grad is not None]), float(loss)


def test_accumulation_does_not_change_the_gradient() -> None:
    run, batches = tiny_run("init_std=0.3")
    batch = ragged(batches[0])
    whole, loss = gradient(run, batch)
    learner = learner_of(run)
    plain_loss(learner.network, batch).backward()
    plain = torch.cat([p.grad.flatten() for p in learner.network.parameters() if p.grad is not None])
    assert float(whole.abs().max()) > 0.05, "the tolerance means something"
    assert float((whole - plain).abs().max()) <= 1e-6
    for parts in (2, 4, 8, 5, 16):
        cut, cut_loss = gradient(changed(run, [("accumulation", parts)]), batch)
        assert float((cut - whole).abs().max()) <= 1e-6, f"{parts} micro-batches"
        assert cut_loss == pytest.approx(loss, rel=1e-6)


def test_means_of_micro_batches_would_be_wrong() -> None:
    """The mistake that the test above is there to find: weighing micro-batches alike."""
    run, batches = tiny_run("init_std=0.3")
    batch = ragged(batches[0])
    whole, _ = gradient(run, batch)
    halves = [gradient(run, part)[0] for part in micro_batches(batch, 2)]
    assert float((sum(halves) / 2 - whole).abs().max()) > 1e-3


@pytest.mark.parametrize(("rows", "parts"), list(itertools.product((1, 2, 5, 16), (1, 2, 3, 8))))
def test_micro_batches_share_the_rows_evenly(rows: int, parts: int) -> None:
    batch = tiny_run()[1][0].slice(slice(0, rows))
    pieces = micro_batches(batch, parts)
    assert torch.equal(torch.cat([piece["ids"] for piece in pieces]), batch["ids"])
    sizes = [len(piece["ids"]) for piece in pieces]
    assert len(sizes) == min(rows, parts)
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_without_a_counted_token_moves_nothing_but_the_decay() -> None:
    run, batches = tiny_run("weight_decay=0")
    learner = learner_of(run)
    before = weights(learner.network)
    batch = batches[0]
    empty = batch.replaced(weights=torch.zeros_like(batch["weights"]))
    moved = learner.step(empty, 0, 18)
    assert float(moved.loss) == 0.0 and float(moved.grad_norm) == 0.0
    assert all(torch.equal(value, before[name]) for name, value in weights(learner.network).items())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimiser_state_comes_back_as_it_was(kind: str) -> None:
    run, batches = tiny_run(f"optim.kind={kind}", "accumulation=2")
    one, other = learner_of(run), learner_of(run)
    for step in range(3):
        one.step(batches[step], step, 18)
    stored = {name: value.clone() for name, value in state_tensors(one.network, one.optims).items()}
    slots = {tuple(name.split("/")[::2]) for name in stored}
    adam = {("adamw", slot) for slot in ("step", "exp_avg", "exp_avg_sq")}
    assert slots == (adam if kind == "adamw" else adam | {("muon", "momentum_buffer")})
    other.network.load_state_dict(one.network.state_dict())
    load_state_tensors(other.network, other.optims, stored, "a checkpoint")
    for step in range(3, 5):
        one.step(batches[step], step, 18)
        other.step(batches[step], step, 18)
    after = weights(one.network)
    assert all(torch.equal(value, after[name]) for name, value in weights(other.network).items())


def test_dropout_depends_on_the_step_and_the_micro_batch_alone() -> None:
    """No random state is saved, so what was drawn before must not matter."""
    run, batches = tiny_run("dropout=0.5", "accumulation=2")
    first, _ = gradient(run, batches[0])
    torch.manual_seed(99)
    torch.rand(7)
    again, _ = gradient(run, batches[0])
    assert torch.equal(first, again)
    learner = learner_of(run)
    learner.gradients(batches[0], 1)
    other = torch.cat([p.grad.flatten() for p in learner.network.parameters() if p.grad is not None])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_is_torchs_muon_with_products_in_any_format(dtype: torch.dtype) -> None:
    """Matrices of one shape are moved together, and end where torch's loop over them does."""
    random = torch.Generator().manual_seed(3)
    shapes = [(12, 5), (5, 12), (12, 5), (7, 7)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    plain = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optims = [
        Muon(ours, dtype=dtype, lr=0.1, weight_decay=0.2, momentum=0.9),
        torch.optim.Muon(plain, lr=0.1, weight_decay=0.2, momentum=0.9),
    ]
    for _ in range(3):
        for mine, theirs in zip(ours, plain, strict=True):
            mine.grad = torch.randn(mine.shape, generator=random)
            theirs.grad = mine.grad.clone()
        for optim in optims:
            optim.step()
    ours[0].grad = None  # a parameter without a gradient stays where it is
    before = ours[0].detach().clone()
    optims[0].step()
    assert torch.equal(ours[0], before)
    optims[1].step()
    for mine, theirs in zip(ours[1:], plain[1:], strict=True):
        assert (mine - theirs).abs().max() < (0.02 if dtype == torch.float32 else 0.01)


def test_muon_moves_matrices_that_share_a_parameter_one_by_one() -> None:
    """Three in one, of two shapes, end where the same three end that are parameters of their own."""
    random = torch.Generator().manual_seed(4)
    apart = [torch.nn.Parameter(torch.randn(rows, 6, generator=random)) for rows in (8, 4, 4)]
    together = torch.nn.Parameter(torch.cat([one.detach() for one in apart]))
    settings = {"dtype": torch.float32, "lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    optims = [Muon(apart, **settings), Muon([together], joined={together: (8, 4, 4)}, **settings)]
    for _ in range(3):
        for one in apart:
            one.grad = torch.randn(one.shape, generator=random)
        together.grad = torch.cat([one.grad for one in apart])
        for optim in optims:
            optim.step()
    torch.testing.assert_close(together.detach(), torch.cat([one.detach() for one in apart]))


def test_queries_keys_values_and_both_halves_of_a_gate_are_matrices_of_their_own_to_muon() -> None:
    attention = AttentionConfig(heads=4, kv_heads=2)
    model = Model(ModelConfig(vocabulary=9, width=32, depth=1, context=8, attention=attention))
    muon, _ = optimizers(model, OptimConfig(kind="muon"))
    assert isinstance(muon, Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)]: rows for parameter, rows in muon.joined.items()}
    hidden = model.config.feedforward_width
    assert found == {
        "blocks.0.mixer.qkv.weight": (32, 16, 16),
        "blocks.0.feedforward.up.weight": (hidden, hidden),
    }


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    found = orthogonalized(torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(1)))
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("settings", [("ema=0.9", "dropout=0.2"), ("optim.kind=muon",)])
def test_steps_in_kept_tensors_move_as_other_steps_do(settings: tuple[str, ...]) -> None:
    """What a GPU records: the batch, its counted tokens and the rates are read where they stay."""
    run, batches = tiny_run(*settings, "precision=float32")
    plain, kept = learner_of(run), learner_of(run)
    kept.recorded = RecordedSteps(kept.device)
    keep_rates(kept.optims, kept.device)
    for number, batch in enumerate(batches):
        one, other = (learner.step(batch, number, 20) for learner in (plain, kept))
        torch.testing.assert_close(other.loss, one.loss)
        torch.testing.assert_close(other.grad_norm, one.grad_norm)
        assert kept.rate == plain.rate == pytest.approx(float(kept.optims[-1].param_groups[0]["lr"]))
    shapes = {tuple(batch["ids"].shape) for batch in batches}
    assert len(kept.recorded._kept) == len(shapes) > 1
    for one, other in zip(plain.network.parameters(), kept.network.parameters(), strict=True):
        torch.testing.assert_close(other, one)
    if plain.ema is not None and kept.ema is not None:
        assert plain.ema.updates == kept.ema.updates == len(batches)
        for one, other in zip(plain.ema.network.parameters(), kept.ema.network.parameters(), strict=True):
            torch.testing.assert_close(other, one)
