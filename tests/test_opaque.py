"""What a compiler takes as it is gives the values and the gradients of what it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from linnet.machine import compiler_at_hand
from linnet.model import opaque
from linnet.model.attention import Mixed, explicit
from linnet.model.config import AttentionConfig, LossConfig, ModelConfig
from linnet.model.contract import Objective
from linnet.model.inputs import Inputs
from linnet.model.masks import Mask
from linnet.model.model import Model


def gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For an upstream gradient that differs from place to place."""
    upstream = torch.linspace(-1, 1, value.numel()).view(value.shape)
    return torch.autograd.grad((value * upstream).sum(), leaves)


def test_operators_keep_the_contract_of_torch():
    ids = torch.tensor([[3, 0, 3], [1, 1, 3]])
    torch.library.opcheck(opaque.waves, (torch.arange(5)[None], torch.rand(4)))
    torch.library.opcheck(opaque.rows_added, (torch.randn(2, 3, 4), ids, 6))


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 20))
def test_rows_of_a_table_and_their_gradient(seed, count, tokens):
    torch.manual_seed(seed)
    table = torch.randn(count, 3, requires_grad=True)
    ids = torch.randint(0, count, (2, tokens))
    ours, plain = opaque.rows_of(table, ids), F.embedding(ids, table)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, (table,)), gradients(plain, (table,)))


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 9))
def test_picked_numbers_and_their_gradient(seed, rows, columns):
    torch.manual_seed(seed)
    table = torch.randn(rows, columns, requires_grad=True)
    index = torch.randint(0, columns, (rows,))
    ours, plain = opaque.picked(table, index), table.gather(1, index[:, None])[:, 0]
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, (table,)), gradients(plain, (table,)))


@given(
    st.integers(0, 9999),
    st.integers(1, 3),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([0.0, 0.25]),
)
def test_a_sum_that_divides_the_mix_is_softmax(seed, rows, heads, tokens, masked, dropout):
    torch.manual_seed(seed)
    q = torch.randn(rows, heads[0], tokens, 8, requires_grad=True)
    k, v = (torch.randn(rows, heads[1], tokens, 8, requires_grad=True) for _ in range(2))
    allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None] if masked else None
    shape = (rows, heads[0], tokens, tokens)
    kept = torch.rand(shape) >= dropout if dropout else None

    def scores():
        return ((q / 8**0.5).reshape(rows, heads[1], -1, 8) @ k.mT).view(shape)

    ours = Mixed.apply(scores(), v, allowed, kept, 1 / (1 - dropout))
    plain = explicit(q, k, v, Mask(allowed, False), 0.0)
    if kept is not None:
        seen = scores() if allowed is None else scores().masked_fill(~allowed, -torch.inf)
        left = seen.softmax(-1) * kept / (1 - dropout)
        plain = (left.view(rows, heads[1], -1, tokens) @ v).view(plain.shape)
    torch.testing.assert_close(ours, plain)
    for one, other in zip(gradients(ours, (q, k, v)), gradients(plain, (q, k, v)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not compiler_at_hand("cpu"), reason="there is no C++ compiler here")
@pytest.mark.parametrize(
    ("documents", "further"),
    [(False, LossConfig()), (True, LossConfig(smoothing=0.1, z_loss=1e-2))],
    ids=["plain", "documents, smoothing and z-loss"],
)
def test_a_compiled_objective_gives_the_loss_and_the_gradients_of_the_plain_one(documents, further):
    torch.manual_seed(0)
    config = ModelConfig(
        vocabulary=50, context=16, width=32, depth=2, attention=AttentionConfig(heads=4, kv_heads=2, qk_norm=True)
    )
    model = Model(config)
    ids, weights = torch.randint(0, 50, (3, 17)), torch.rand(3, 16)
    packed = torch.tensor([[0] * 5 + [1] * 11, [0] * 16, [0] * 15 + [1]]) if documents else None
    inputs = Inputs({"ids": ids[:, :-1]}, documents=packed)
    objective, parameters = Objective(model, further), tuple(model.parameters())

    def learn(function):
        loss = function(inputs, ids[:, 1:], weights)
        return loss.detach(), torch.autograd.grad(loss, parameters)

    plain, compiled = learn(objective), learn(torch.compile(objective, dynamic=False))
    torch.testing.assert_close(compiled[0], plain[0], atol=1e-4, rtol=1e-5)
    for one, other in zip(compiled[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
