"""Smoothed targets, the z-loss and R-Drop equal their formulas written out, in value and gradient, in any chunks.

Legend: B = rows, T = tokens, N = B x T, W = model width, V = vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from linnet.data import Batch
from linnet.errors import BadInput
from linnet.model import heads, losses
from linnet.model.config import HeadConfig, LossConfig
from linnet.model.contract import Objective
from linnet.model.heads import Head
from linnet.training.distributed import Processes
from linnet.training.learner import Learner
from linnet.training.settings import changed
from linnet.workbench.train import made, prepare
from small_models import random_ids, random_model, small_config
from tiny_runs import tiny_run

CPU = torch.device("cpu")


def written_out(scores: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """The loss of each target from probabilities in float64, term by term."""
    vocabulary, likely = scores.shape[-1], scores.double().softmax(-1)
    wanted = torch.full_like(likely, config.smoothing / vocabulary)
    wanted.scatter_(-1, targets[:, None], 1 - config.smoothing + config.smoothing / vocabulary)
    total = scores.double().exp().sum(-1)
    return -(wanted * likely.log()).sum(-1) + config.z_loss * total.log() ** 2


def whole_loss(head: Head, hidden: Tensor, targets: Tensor, weights: Tensor, config: LossConfig) -> Tensor:
    passes = hidden.reshape(config.passes, -1, hidden.shape[-1]).double()
    capped = [one @ head.weight.double().T for one in passes]
    if head.softcap is not None:
        capped = [head.softcap * torch.tanh(one / head.softcap) for one in capped]
    lost = torch.stack([written_out(one, targets.flatten(), config) for one in capped]).mean(0)
    if config.r_drop:
        p, q = (one.softmax(-1) for one in capped)
        forth, back = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
        lost = lost + config.r_drop * (forth + back) / 2
    return (lost * weights.flatten()).sum()


configs = st.builds(
    LossConfig,
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    z_loss=st.sampled_from([0.0, 1e-3, 0.5]),
    r_drop=st.sampled_from([0.0, 0.3, 2.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    configs, st.integers(0, 99), st.integers(1, 9), st.sampled_from([1, 40, 1 << 22]), st.sampled_from([None, 3.0])
)
def test_every_term_is_its_formula_whatever_the_chunks(
    config: LossConfig, seed: int, tokens: int, chunk: int, softcap: float | None
) -> None:
    shape = small_config(vocabulary=17, head=HeadConfig(softcap=softcap))
    random = torch.Generator().manual_seed(seed)
    head = Head(shape, nn.Embedding(17, shape.width))
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=random))
    hidden = torch.randn(2 * config.passes, tokens, shape.width, generator=random, requires_grad=True)
    targets = random_ids(2, tokens, vocabulary=17, seed=seed)
    weights = torch.rand(2, tokens, generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "CHUNK", chunk)
        found = head.loss(hidden, targets, weights, config)
        with torch.no_grad():
            quiet = head.loss(hidden, targets, weights, config)
    expected = whole_loss(head, hidden, targets, weights, config)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, quiet) and not quiet.requires_grad
    leaves = [hidden, head.weight]
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-4, atol=1e-4)


def test_the_compiled_form_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(small_config())
    hidden = torch.randn(4, 5, model.config.width, requires_grad=True)
    targets, weights = random_ids(2, 5), torch.rand(2, 5)
    config = LossConfig(smoothing=0.1, z_loss=0.01, r_drop=1.0)
    chunked = model.head.loss(hidden, targets, weights, config)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    whole = model.head.loss(hidden, targets, weights, config)
    torch.testing.assert_close(chunked, whole)
    for mine, theirs in zip(
        torch.autograd.grad(chunked, [hidden]), torch.autograd.grad(whole, [hidden]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_logits_never_exist_for_more_than_a_chunk_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither without further terms nor with all of them."""
    model, largest = random_model(small_config(vocabulary=50)), []
    monkeypatch.setattr(heads, "CHUNK", 400)
    plain = losses.target_losses

    def watching(scores: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
        largest.append(scores.numel())
        return plain(scores, targets, config)

    monkeypatch.setattr(losses, "target_losses", watching)
    for config in (LossConfig(), LossConfig(smoothing=0.1, z_loss=1e-4, r_drop=1.0)):
        hidden = torch.randn(4 * config.passes, 9, model.config.width, requires_grad=True)
        model.head.loss(hidden, random_ids(4, 9, vocabulary=50), torch.ones(4, 9), config).backward()
    assert max(largest) <= 400 and len(largest) > 8


def test_two_passes_drop_different_values_and_agree_where_nothing_drops() -> None:
    """Without dropout R-Drop costs a pass and changes nothing; with it the two passes differ."""
    ids, weights = random_ids(3, 6), torch.ones(3, 6)
    targets = random_ids(3, 6, seed=1)
    for dropout in (0.0, 0.3):
        model = random_model(small_config(dropout=dropout)).train()
        torch.manual_seed(5)
        batch = {"ids": ids, "next.ids": targets, "weights": weights}
        one = Objective(model)(batch)
        model.config = small_config(dropout=0.1, loss=LossConfig(r_drop=5.0))
        model.passes = 2
        two = Objective(model)(batch)
        assert math.isclose(one.item(), two.item(), rel_tol=1e-5) is (dropout == 0.0)


def test_micro_batches_change_nothing() -> None:
    """Every term is a weighted mean over targets, so accumulation does not see them."""
    moved = []
    for parts in (1, 3):
        run, batches = tiny_run("smoothing=0.1", "z_loss=0.01", f"accumulation={parts}", "clip=0")
        learner = Learner(run, run.data.codec(), CPU, Processes())
        batch: Batch = batches[0]
        moved.append(learner.step(batch, 0, 10))
    assert torch.isclose(moved[0].loss, moved[1].loss, rtol=1e-6)
    assert torch.isclose(moved[0].grad_norm, moved[1].grad_norm, rtol=1e-5)


def test_terms_that_mean_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match=r"r_drop compares two passes .* model.dropout is 0"):
        prepare("tiny-text", settings=["r_drop=1"])
    assert prepare("tiny-text", settings=["dropout=0.1", "r_drop=1"]).model.loss.r_drop == 1
    with pytest.raises(BadInput, match="unknown key"):
        changed(made("places"), [("loss.smoothing", 0.1)])
