"""The forms of attention against one written out in float64, and against each other.

Legend: B = rows, H = heads, Hk = key-value heads, T = queries, S = keys, D = head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from linnet.model import kernels
from linnet.model.config import AttentionConfig
from linnet.model.kernels import Mask
from linnet.model.layers import rotation
from small_models import random_ids, random_model, small_config

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@dataclass(frozen=True)
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask

    def run(self, form: kernels.Form) -> Tensor:
        return kernels.FORMS[form](self.q, self.k, self.v, self.mask, 0.0)


@st.composite
def cases(draw: st.DrawFn, one_query: bool = False) -> Case:
    rows, kv_heads, sharing = (draw(st.integers(1, 3)) for _ in range(3))
    width = draw(st.sampled_from([1, 2, 3, 8, 16, 40]))
    keys = draw(st.integers(1, 14))
    kind = draw(st.sampled_from(["all", "causal", "dense", "dense for all rows"]))
    queries = 1 if one_query else keys if kind == "causal" else draw(st.integers(1, 14))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    q = scale * torch.randn(rows, kv_heads * sharing, queries, width, generator=random)
    k, v = (torch.randn(rows, kv_heads, keys, width, generator=random) for _ in range(2))
    if kind == "all":
        return Case(q, k, v, Mask(None, False))
    if kind == "causal":
        return Case(q, k[:, :, :queries], v[:, :, :queries], Mask(None, True))
    masked = 1 if kind == "dense for all rows" else rows
    allowed = torch.rand(masked, 1, queries, keys, generator=random) < 0.5
    allowed[..., draw(st.integers(0, keys - 1))] = True  # each query may see something
    return Case(q, k, v, Mask(allowed, False))


def oracle(case: Case) -> Tensor:
    """Head by head, query by query, in float64."""
    q, k, v = case.q.double(), case.k.double(), case.v.double()
    rows, heads, queries, width = q.shape
    sharing, keys = heads // k.shape[1], k.shape[2]
    mixed = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(rows):
        for h in range(heads):
            for t in range(queries):
                seen = torch.ones(keys, dtype=torch.bool)
                if case.mask.allowed is not None:
                    seen = case.mask.allowed[b % len(case.mask.allowed), 0, t]
                elif case.mask.causal:
                    seen = torch.arange(keys) <= t
                scores = k[b, h // sharing][seen] @ q[b, h, t] / math.sqrt(width)
                mixed[b, h, t] = scores.softmax(0) @ v[b, h // sharing][seen]
    return mixed


@settings(max_examples=60, deadline=None)
@given(case=cases(), block=st.integers(1, 6))
def test_every_form_agrees_with_attention_written_out(case, block):
    expected = oracle(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        for form in ("explicit", "blocked", "fused"):
            torch.testing.assert_close(case.run(form).double(), expected, rtol=1e-5, atol=1e-5, msg=form)


@settings(max_examples=30, deadline=None)
@given(case=cases(one_query=True))
def test_one_query_has_a_form_of_its_own(case):
    expected = oracle(case)
    for form in ("multiply_sum", "explicit", "fused"):
        torch.testing.assert_close(case.run(form).double(), expected, rtol=1e-5, atol=1e-5, msg=form)


@settings(max_examples=30, deadline=None)
@given(case=cases(), block=st.integers(1, 6))
def test_the_gradients_of_all_forms_agree(case, block):
    leaves = [leaf.requires_grad_() for leaf in (case.q, case.k, case.v)]
    forms = ["explicit", "blocked", "fused"] + (["multiply_sum"] if case.q.shape[2] == 1 else [])
    upstream = torch.randn(case.q.shape, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        gradients = [torch.autograd.grad(case.run(form), leaves, upstream) for form in forms]
    for form, found in zip(forms, gradients, strict=True):
        for one, other in zip(found, gradients[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=form)


def test_multiply_sum_is_for_one_query():
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="one query, not 3"):
        kernels.multiply_sum(q, q, q, Mask(None, True), 0.0)


@pytest.mark.parametrize("wide", [True, False])
def test_the_form_follows_device_and_shape(wide, monkeypatch):
    monkeypatch.setattr(kernels, "WIDE", wide)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert kernels.attention_form(cpu, 128, 128, compiled=False) == ("explicit" if wide else "fused")
    assert kernels.attention_form(cpu, 1, 128, compiled=False) == "explicit"
    assert kernels.attention_form(cpu, 1, 128, compiled=True) == "multiply_sum"
    assert kernels.attention_form(cpu, 1024, 1024, compiled=False) == ("blocked" if wide else "fused")
    assert kernels.attention_form(cpu, 128, 128, compiled=False, dropout=0.1) == "explicit"
    assert kernels.attention_form(cpu, 1024, 1024, compiled=False, dropout=0.1) == "blocked"
    assert kernels.attention_form(cuda, 128, 128, compiled=True, dropout=0.1) == "fused"
    assert kernels.attention_form(cuda, 1, 128, compiled=True) == "multiply_sum"
    assert kernels.attention_form(cuda, 1, 128, compiled=False) == "fused"


@pytest.mark.parametrize("form", ["explicit", "blocked", "fused", "multiply_sum"])
def test_dropout_drops_and_keeps_the_mean(form):
    torch.manual_seed(0)
    queries = 1 if form == "multiply_sum" else 12
    q, k = torch.randn(400, 2, queries, 4), torch.randn(400, 2, 12, 4)
    mixed = kernels.FORMS[form](q, k, torch.ones_like(k), Mask(None, False), 0.3)
    assert mixed.std() > 0.05  # without dropout each entry is exactly 1
    assert abs(float(mixed.mean()) - 1) < 0.02


def test_long_rows_are_read_in_blocks_and_agree_with_the_explicit_form(monkeypatch):
    monkeypatch.setattr(kernels, "WIDE", True)
    model = random_model(small_config(context=600, depth=1, width=8))
    ids = random_ids(1, 2 * kernels.BLOCK + 5)
    with torch.inference_mode():
        in_blocks = model(ids).hidden
        shown = model(ids, keep=("blocks.0.attn.hook_pattern",)).hidden  # only the explicit form has a pattern
    torch.testing.assert_close(in_blocks, shown, rtol=1e-5, atol=1e-5)


def test_the_model_gives_the_same_with_every_form(monkeypatch):
    model = random_model(small_config())
    ids = random_ids(3, 9)
    found = {}
    for form in ("explicit", "blocked", "fused"):
        monkeypatch.setattr(kernels, "attention_form", lambda *_, form=form, **__: form)
        found[form] = model(ids).hidden
    torch.testing.assert_close(found["blocked"], found["explicit"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["fused"], found["explicit"], rtol=1e-5, atol=1e-5)


@gpu
@needs_cuda
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_training_on_cuda_runs_the_flash_kernel(kv_heads):
    shape = {"rows": 4, "tokens": 128, "width": 64}
    make = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    q = torch.randn(shape["rows"], 8, shape["tokens"], shape["width"], **make)
    k, v = (torch.randn(shape["rows"], kv_heads, shape["tokens"], shape["width"], **make) for _ in range(2))
    assert kernels.attention_form(q.device, 128, 128, compiled=False) == "fused"
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # raises where the flash kernel cannot serve
        mixed = kernels.fused(q, k, v, Mask(None, True), 0.0)
        mixed.sum().backward()
    expected = kernels.explicit(q.float(), k.float(), v.float(), Mask(None, True), 0.0)
    torch.testing.assert_close(mixed.float(), expected, rtol=2e-2, atol=2e-2)


@gpu
@needs_cuda
def test_a_whole_training_step_on_cuda_uses_flash_and_nothing_else():
    heads = AttentionConfig(heads=2, kv_heads=1, head_width=32)
    model = random_model(small_config(width=64, attention=heads)).to("cuda").to(torch.bfloat16).train()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        hidden = model(random_ids(2, 24).to("cuda")).hidden
        model.head.loss(hidden, random_ids(2, 24).to("cuda"), torch.ones(2, 24, device="cuda")).backward()


@gpu
@needs_cuda
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_the_forms_agree_on_cuda(case):
    where = torch.device("cuda")
    allowed = None if case.mask.allowed is None else case.mask.allowed.to(where)
    moved = Case(case.q.to(where), case.k.to(where), case.v.to(where), Mask(allowed, case.mask.causal))
    torch.testing.assert_close(moved.run("fused"), moved.run("explicit"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2)])
def test_the_gradient_of_turned_heads_is_put_together_as_autograd_does(heads, kv_heads, compiled):
    """The reference of the kernel that does it on a GPU."""
    whole = torch.randn(2, 5, (heads + 2 * kv_heads) * 8, dtype=torch.float64, requires_grad=True)
    tables = [table[:, None].double() for table in rotation(torch.arange(5)[None] + 3, 8, 100.0)]
    wanted = [torch.randn(2, count, 5, 8, dtype=torch.float64) for count in (heads, kv_heads, kv_heads)]

    def gradient(turn):
        parts = turn(whole, *tables, heads, kv_heads)
        total = sum((part * other).sum() for part, other in zip(parts, wanted, strict=True))
        return parts, torch.autograd.grad(total, whole)[0]

    turn = kernels.TurnedHeads.apply
    found = gradient(torch.compile(turn, backend="aot_eager") if compiled else turn)
    expected = gradient(kernels._turned_parts)
    for one, other in zip((*found[0], found[1]), (*expected[0], expected[1]), strict=True):
        torch.testing.assert_close(one, other)
