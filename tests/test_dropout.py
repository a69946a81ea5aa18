"""Dropout with cheap masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.model.dropout import Dropout, dropout, mixed_mask


@given(st.floats(0.05, 0.9), st.integers(1, 300))
@settings(max_examples=20)
def test_dropout_keeps_the_mean_and_its_share(share: float, count: int) -> None:
    torch.manual_seed(count)
    x = torch.ones(200, count)
    kept = dropout(x, share, training=True)
    values = kept.unique()
    assert len(values) == 2 and values[0] == 0 and values[1] == pytest.approx(1 / (1 - share), rel=1e-4)
    found = float((kept == 0).float().mean())
    assert abs(found - share) < 5 * (share * (1 - share) / kept.numel()) ** 0.5 + 1e-5
    assert dropout(x, share, training=False) is x and Dropout(share).eval()(x) is x


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
    compiled = torch.compile(lambda x: dropout(x, 0.25, True), fullgraph=True, backend="eager")

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return compiled(torch.ones(64, 64))

    first = draw(0)
    assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))
    assert first.unique().tolist() == [0.0, pytest.approx(4 / 3)]
