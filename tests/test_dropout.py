"""Dropout with cheap masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.model.dropout import Dropout, dropout


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


def test_compiled_dropout_is_that_of_torch() -> None:
    """A compiler fuses torch's own dropout with what stands around it; the graph has no break."""
    compiled = torch.compile(lambda x: dropout(x, 0.25, True), fullgraph=True, backend="eager")
    torch.manual_seed(0)
    found = compiled(torch.ones(64, 64))
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(torch.ones(64, 64), 0.25))
