"""The member that learns no filters, against its definition written out; the loss of all members."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.data import NEXT
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.convolution import Convolution
from linnet.domains.series.labelling import probabilities
from linnet.domains.series.labels import LabelRows, labelled_windows
from linnet.domains.series.proportions import (
    PATTERNS,
    TAPS,
    Proportions,
    dilated_filters,
    dilations,
    quantile_levels,
)
from linnet.domains.series.settings import ConvolutionConfig
from linnet.domains.series.tables import Series, SeriesTable


def config(window: int, *, inputs: int = 1, stride: int = 1, proportions: int = 400) -> ConvolutionConfig:
    return ConvolutionConfig(
        inputs=inputs, classes=3, window=window, stride=stride, proportions=proportions, kernels=(3,), fixed=(2,),
        width=4, depth=1, norms=False,
    )  # fmt: skip


def shares_by_steps(member: Proportions, x: Tensor, observed: Tensor, number: int) -> np.ndarray:
    """[P, N] of one window [C, T]: what each filter gives at each observed step, one product at a time."""
    filters, dilation = member.get_buffer(f"filters_{number}").double(), member.dilations[number]
    channels, length = x.shape
    wide = torch.zeros(channels, length + 8 * dilation, dtype=torch.float64)
    wide[:, 4 * dilation : 4 * dilation + length] = x * observed
    found = []
    for step in range(0, length, member.stride):
        if observed[step]:
            seen = wide[:, step : step + 8 * dilation + 1 : dilation]
            found.append((filters * seen).sum((1, 2)))
    values = torch.stack(found, 1)
    return (values[:, None] > member.thresholds[number].double()[..., None]).double().mean(2).numpy()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(9, 40), st.integers(1, 2), st.integers(0, 99))
def test_shares_are_those_of_the_definition(channels: int, length: int, stride: int, seed: int) -> None:
    member = Proportions(config(length, inputs=channels, stride=stride)).eval()
    random = torch.Generator().manual_seed(seed)
    member.thresholds.copy_(torch.randn(member.thresholds.shape, generator=random))
    x = torch.randint(-3, 4, (2, channels, length), generator=random).float()  # sums without rounding
    observed = torch.ones(2, length)
    observed[1, length // 2 :] = 0
    found = member.shares(x * observed[:, None], observed).unflatten(1, member.thresholds.shape)
    for row in range(2):
        for number in range(len(member.dilations)):
            wanted = shares_by_steps(member, x[row].double(), observed[row], number)
            np.testing.assert_allclose(found[row, number], wanted, atol=1e-6)


@given(st.integers(1, 600))
def test_filters_fit_into_a_window_and_reach_over_half_of_it(window: int) -> None:
    found = dilations(window)
    assert found[0] == 1 and all(b == 2 * a for a, b in zip(found[:-1], found[1:], strict=True))
    assert len(found) == 1 or (TAPS - 1) * found[-1] < window
    assert (TAPS - 1) * 2 * found[-1] >= window


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_filters_see_no_level_and_each_reads_some_channel(channels: int) -> None:
    filters = dilated_filters(channels, 4)
    assert filters.shape == (len(PATTERNS), channels, TAPS)
    assert (filters.sum(2) == 0).all()
    read = (filters != 0).any(2).sum(1)
    assert read.min() >= 1 and read.max() <= channels
    assert channels == 1 or len(set(read.tolist())) > 1
    assert len({tuple(one.sum(0).tolist()) for one in filters}) >= len(PATTERNS)


def test_levels_lie_at_equal_distances_between_0_and_1() -> None:
    levels = quantile_levels(5)
    assert levels.min() >= 0 and levels.max() < 1
    np.testing.assert_allclose(levels.diff(dim=1), 0.2, atol=1e-6)
    assert len(set(levels[:, 0].tolist())) == len(PATTERNS)


def test_thresholds_become_quantiles_of_what_filters_give() -> None:
    member = Proportions(config(64)).train()
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(32, 1, 64, generator=random)
        member.shares(x, torch.ones(32, 64))
    member.eval()
    x, observed = torch.randn(400, 1, 64, generator=random), torch.ones(400, 64)
    above = member.shares(x, observed).mean(0).unflatten(0, member.thresholds.shape)
    levels = member.get_buffer("levels").expand_as(above)
    np.testing.assert_allclose(above, 1 - levels, atol=0.05)
    before = member.thresholds.clone()
    member.shares(3 * x, observed)
    assert torch.equal(member.thresholds, before), "nothing moves outside of training"


CODEC = SeriesCodec("classes", ("x",), classes=("a", "b", "c"), length=4)


def mixed() -> LabelRows:
    labels = [list("aabbcc"), list("abcab"), list("cc"), list("bbbb")]
    series = [
        Series(f"S{n}", np.random.default_rng(n).normal(size=(len(one), 1)), "", np.array(one, object))
        for n, one in enumerate(labels)
    ]
    return labelled_windows(SeriesTable.of(series, ("x",)), CODEC, 2)


def test_training_adds_up_members_and_validation_judges_their_mean() -> None:
    rows = mixed()
    batch, smoothing = rows.batch(rows.first, rows.count), 0.3
    targets = batch[NEXT + "class"]
    torch.manual_seed(0)
    model = Convolution(config(4, proportions=84).model_copy(update={"smoothing": smoothing, "members": 2}))
    for training in (True, False):
        output = model.train(training)(batch)
        found = output.hidden.double()
        assert len(found) == 3
        wanted = -found.exp().mean(0)[torch.arange(len(rows)), targets].log().sum()
        if training:
            goal = (1 - smoothing) * torch.eye(3)[targets] + smoothing / 3
            wanted = -(found * goal).sum()
        assert model.loss(output, batch).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_shares_do_not_depend_on_the_batch(size: int) -> None:
    rows = mixed()
    torch.manual_seed(0)
    model = Convolution(config(4, proportions=84))
    torch.nn.init.normal_(model.members[-1].out.weight)  # type: ignore[union-attr, arg-type]
    model.train()(rows.batch(rows.first, rows.count))
    whole = probabilities(model.eval(), rows, 64, nullcontext)
    np.testing.assert_allclose(probabilities(model, rows, size, nullcontext), whole, atol=1e-6)
