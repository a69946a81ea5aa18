"""Losses made in chunks equal plain cross entropy, in value and in gradient.

Legend: N = rows, W = model width, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from linnet.model import heads
from linnet.model.config import HeadConfig
from linnet.model.heads import Head
from small_models import random_ids, random_model, small_config


@dataclass(frozen=True)
class Case:
    head: Head
    hidden: Tensor  # [B, T, W]
    targets: Tensor  # [B, T]
    weights: Tensor  # [B, T], some of them 0

    def leaves(self) -> list[Tensor]:
        return [self.hidden, *self.head.parameters()]

    def plain_nats(self) -> Tensor:
        scores = self.hidden.double() @ self.head.weight.double().T
        if self.head.bias is not None:
            scores = scores + self.head.bias.double()
        if self.head.softcap is not None:
            scores = self.head.softcap * torch.tanh(scores / self.head.softcap)
        return F.cross_entropy(scores.flatten(0, 1), self.targets.flatten(), reduction="none").view(
            self.targets.shape
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed, rows, tokens = draw(st.integers(0, 999)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    vocabulary = draw(st.sampled_from([2, 5, 31]))
    options = HeadConfig(
        tied=draw(st.booleans()), bias=draw(st.booleans()), softcap=draw(st.sampled_from([None, 3.0]))
    )
    config = small_config(vocabulary=vocabulary, head=options)
    random = torch.Generator().manual_seed(seed)
    embedding = nn.Embedding(vocabulary, config.width)
    head = Head(config, embedding)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    hidden = torch.randn(rows, tokens, config.width, generator=random, requires_grad=True)
    weights = torch.rand(rows, tokens, generator=random) * (torch.rand(rows, tokens, generator=random) > 0.3)
    return Case(head, hidden, random_ids(rows, tokens, vocabulary=vocabulary, seed=seed), weights)


def close(found: Tensor, expected: Tensor) -> None:
    """To 1e-6 of the largest value."""
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(case=cases(), chunk=st.sampled_from([1, 7, 64, 200, 1 << 22]))
def test_nats_and_loss_are_plain_cross_entropy_whatever_the_chunks(case, chunk):
    expected = case.plain_nats()
    weighted = (expected * case.weights).sum()
    gradients = torch.autograd.grad(weighted, case.leaves())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "CHUNK", chunk)
        nats = case.head.nll(case.hidden, case.targets)
        loss = case.head.loss(case.hidden, case.targets, case.weights)
        with torch.no_grad():
            quiet = case.head.loss(case.hidden, case.targets, case.weights)
    assert nats.dtype == loss.dtype == torch.float32 and nats.shape == case.targets.shape
    close(nats, expected)
    close(loss, weighted)
    close(quiet, weighted)
    for value in ((nats * case.weights).sum(), loss):
        for found, wanted in zip(torch.autograd.grad(value, case.leaves()), gradients, strict=True):
            close(found, wanted.double())


@settings(max_examples=20, deadline=None)
@given(case=cases(), factor=st.sampled_from([-2.0, 0.5, 100.0]))
def test_the_loss_may_be_a_part_of_something_larger(case, factor):
    loss = case.head.loss(case.hidden, case.targets, case.weights)
    plain = torch.autograd.grad(loss, case.leaves())
    loss = case.head.loss(case.hidden, case.targets, case.weights)
    for found, wanted in zip(torch.autograd.grad(factor * loss, case.leaves()), plain, strict=True):
        torch.testing.assert_close(found, factor * wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_learns_the_same_through_chunks(tied, monkeypatch):
    """Tied, the gradients of the embedding and of the head add up."""
    model = random_model(small_config(head=HeadConfig(tied=tied, bias=True)))
    ids, targets, weights = random_ids(2, 7), random_ids(2, 7, seed=1), torch.ones(2, 7)
    found = []
    for chunk in (1 << 22, 30):
        monkeypatch.setattr(heads, "CHUNK", chunk)
        hidden = model(ids).hidden
        if chunk == 30:
            loss = model.head.loss(hidden, targets, weights)
        else:
            loss = F.cross_entropy(model.head(hidden).flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_tied_head_is_a_module_with_the_embeddings_own_weight():
    tied = random_model(small_config(head=HeadConfig(tied=True)))
    untied = random_model(small_config(head=HeadConfig(tied=False)))
    assert isinstance(tied.head, nn.Module) and tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    hidden = torch.randn(3, tied.config.width)
    torch.testing.assert_close(tied.head(hidden), hidden @ tied.embedding.weight.T)


def test_logits_never_exist_at_once(monkeypatch):
    """In training and in scoring, no product is larger than a chunk."""
    largest = 0

    def counted(*arguments: Tensor | None) -> Tensor:
        nonlocal largest
        scores = linear(*arguments)
        largest = max(largest, scores.numel())
        return scores

    linear = F.linear
    model = random_model(small_config(vocabulary=50))
    hidden, targets = torch.randn(4, 25, 12, requires_grad=True), random_ids(4, 25, vocabulary=50)
    monkeypatch.setattr(heads, "CHUNK", 500)
    monkeypatch.setattr(heads.F, "linear", counted)
    model.head.loss(hidden, targets, torch.ones(4, 25)).backward()
    model.head.nll(hidden, targets)
    assert largest == 500


def test_no_rows_lose_nothing():
    model = random_model(small_config())
    hidden, targets = torch.zeros(0, 3, 12), torch.zeros(0, 3, dtype=torch.int64)
    assert model.head.nll(hidden, targets).shape == (0, 3)
    assert model.head.loss(hidden, targets, torch.zeros(0, 3)).item() == 0.0


def test_half_precision_hidden_vectors_lose_in_float32():
    model = random_model(small_config(head=HeadConfig(softcap=4.0, bias=True)))
    hidden = torch.randn(2, 5, 12).bfloat16()
    targets = random_ids(2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = model.head.nll(hidden, targets)
        loss = model.head.loss(hidden.requires_grad_(), targets, torch.ones(2, 5))
    assert nats.dtype == loss.dtype == torch.float32
    loss.backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, nats.sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [HeadConfig(), HeadConfig(tied=False, bias=True, softcap=3.0)])
def test_compiled_and_eager_losses_agree(options):
    """In value and gradient; inside a graph the loss is the plain form, which the compiler fuses."""
    head = random_model(small_config(head=options)).head
    hidden, targets, weights = torch.randn(2, 6, 12, requires_grad=True), random_ids(2, 6), torch.rand(2, 6)
    leaves = [hidden, *head.parameters()]
    compiled = torch.compile(head.loss, fullgraph=True, backend="aot_eager")
    losses = [run(hidden, targets, weights) for run in (head.loss, compiled)]
    gradients = [torch.autograd.grad(loss, leaves) for loss in losses]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
