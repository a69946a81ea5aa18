"""Kernels that stand for what torch has: the same values and gradients, and dropout of the right share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.model import kernels
from linnet.model.dropping import drop, mixed_mask
from linnet.model.layers import Dropout


def gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For an upstream gradient that differs everywhere."""
    upstream = torch.linspace(-1, 1, value.numel()).view(value.shape)
    return torch.autograd.grad((value * upstream).sum(), leaves)


def test_operators_keep_the_contract_of_torch():
    ids = torch.tensor([[3, 0, 3], [1, 1, 3]])
    torch.library.opcheck(kernels.compiled_angles, (torch.arange(5)[None], torch.rand(2, 4)))
    torch.library.opcheck(kernels.table_gradient, (torch.randn(2, 3, 4), ids, 6))
    torch.library.opcheck(kernels.nats_and_gradient, (torch.randn(6, 4), ids.flatten(), torch.rand(6)))


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 20))
def test_rows_of_a_table_and_their_gradient(seed, count, tokens):
    torch.manual_seed(seed)
    table = torch.randn(count, 3, requires_grad=True)
    ids = torch.randint(0, count, (2, tokens))
    ours, plain = kernels.Rows.apply(table, ids), F.embedding(ids, table)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, (table,)), gradients(plain, (table,)))


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 9))
def test_picked_numbers_and_their_gradient(seed, rows, columns):
    torch.manual_seed(seed)
    table = torch.randn(rows, columns, requires_grad=True)
    index = torch.randint(0, columns, (rows,))
    ours, plain = kernels.Picked.apply(table, index), table.gather(1, index[:, None])[:, 0]
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, (table,)), gradients(plain, (table,)))


@given(st.integers(0, 9999), st.integers(1, 9), st.integers(2, 20), st.booleans())
def test_weighted_nats_and_their_gradients_are_those_of_cross_entropy(seed, rows, vocabulary, mixed):
    torch.manual_seed(seed)
    hidden, weight = (torch.randn(count, 3, requires_grad=True) for count in (rows, vocabulary))
    targets, weights = torch.randint(0, vocabulary, (rows,)), torch.rand(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        ours = kernels.WeightedNats.apply(hidden, weight, targets, weights)
        scores = F.linear(hidden, weight).float()
    plain = (F.cross_entropy(scores, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, plain)
    found, expected = (torch.autograd.grad(3 * value, (hidden, weight)) for value in (ours, plain))
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if mixed else {}
    torch.testing.assert_close(found, expected, **tolerance)


@given(st.floats(0.05, 0.9), st.integers(1, 300))
@settings(max_examples=20)
def test_dropout_keeps_the_mean_and_its_share(share: float, count: int) -> None:
    torch.manual_seed(count)
    x = torch.ones(200, count)
    kept = drop(x, share)
    values = kept.unique()
    assert len(values) == 2 and values[0] == 0 and values[1] == pytest.approx(1 / (1 - share), rel=1e-4)
    found = float((kept == 0).float().mean())
    assert abs(found - share) < 5 * (share * (1 - share) / kept.numel()) ** 0.5 + 1e-5
    assert drop(x, share, training=False) is x and Dropout(share).eval()(x) is x


@given(st.integers(0, 9999), st.sampled_from([0.05, 0.2, 0.5]))
@settings(max_examples=20)
def test_mixed_masks_are_as_good_as_drawn_ones(seed: int, share: float) -> None:
    """Sums of rows and of columns and products of pairs of rows spread as those of independent values."""
    torch.manual_seed(seed)
    rows, columns = 400, 300
    dropped = 1 - mixed_mask(torch.Size((rows, columns)), share, torch.device("cpu")).double()
    centred = (dropped - share) / (share * (1 - share)) ** 0.5
    for sums, count in ((centred.sum(1), columns), (centred.sum(0), rows)):
        scaled = sums / count**0.5
        assert scaled.abs().max() < 5.5 and 0.7 < float(scaled.var()) < 1.35
    pairs = (centred @ centred.T / columns**0.5).triu(1).flatten()
    pairs = pairs[pairs != 0]
    assert abs(float(pairs.mean())) < 0.03 and 0.9 < float(pairs.var()) < 1.1 and pairs.abs().max() < 12


def test_compiled_dropout_draws_a_number_for_each_row_and_column_alone() -> None:
    """The graph has no break, other seeds give other masks and the same seed the same."""
    compiled = torch.compile(lambda x: drop(x, 0.25), fullgraph=True, backend="eager")

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return compiled(torch.ones(64, 64))

    first = draw(0)
    assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))
    assert first.unique().tolist() == [0.0, pytest.approx(4 / 3)]
