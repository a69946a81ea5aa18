"""Temperatures: fitted to answers of any number, and stored with a classifier of series."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.calibration import Spread, warmed
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.convolution import Convolution
from linnet.domains.series.labelling import nats, probabilities
from linnet.domains.series.labels import LabelRows, labelled_windows
from linnet.domains.series.metrics import CalibrationError
from linnet.domains.series.settings import ConvolutionConfig
from linnet.domains.series.tables import Series, SeriesTable


def drawn(temperature: float, cases: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [n, 4] that are off by a temperature, and classes drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = warmed(2 * rng.normal(size=(cases, 4)), 1.0)
    truth = (honest + rng.gumbel(size=honest.shape)).argmax(1)
    return warmed(honest, 1 / temperature), truth


@settings(max_examples=20, deadline=None)
@given(st.floats(0.4, 2.5), st.integers(0, 999))
def test_the_temperature_that_probabilities_are_off_by_is_found(temperature: float, seed: int) -> None:
    logp, truth = drawn(temperature, 4000, seed)
    spread = Spread.of_classes(logp, truth)
    found = spread.fitted()
    assert found == pytest.approx(temperature, rel=0.15)
    right = warmed(logp, found)
    chances, lost = spread.at(found)
    np.testing.assert_allclose(chances, np.exp(right.max(1)))
    np.testing.assert_allclose(lost, -right[np.arange(len(truth)), truth])
    others = [spread.at(heat)[1].mean() for heat in np.linspace(0.3, 4, 40)]
    assert lost.mean() <= min(others) + 1e-6
    error = CalibrationError.of(np.exp(right), truth, np.zeros(len(truth), np.int64))
    assert error.value < 0.04
    assert np.exp(right).sum(1) == pytest.approx(np.ones(len(truth)))


def test_cases_may_have_different_numbers_of_answers() -> None:
    logp, truth = drawn(2.0, 600, 0)
    spread = Spread.of_classes(logp, truth)
    starts, flat = [0], []
    for row in logp:
        answers = row if len(starts) % 2 else np.append(row, -np.inf)
        flat.append(answers)
        starts.append(starts[-1] + len(answers))
    ragged = Spread(np.array(starts), np.concatenate(flat), spread.best, spread.true)
    assert ragged.fitted() == pytest.approx(spread.fitted(), rel=1e-9)


CODEC = SeriesCodec("classes", ("x",), classes=("a", "b", "c"), length=12)


def windows(cases: int, seed: int, unsure: float) -> LabelRows:
    """Levels 0, 1 and 2 for a, b and c; a share of the labels is drawn at random."""
    rng, series = np.random.default_rng(seed), []
    for case in range(cases):
        level = int(rng.integers(3))
        label = "abc"[int(rng.integers(3)) if rng.random() < unsure else level]
        values = level * np.sin(np.arange(12))[:, None] + 0.1 * rng.normal(size=(12, 1))
        series.append(Series(f"{case}", values, f"case {case}", np.array([label])))
    codec = replace(CODEC, means=(0.0,), deviations=(1.0,))
    return labelled_windows(SeriesTable.of(series, ("x",)), codec, 0)


def sure_network() -> Convolution:
    """A classifier that knows the level of a window, and is far too sure of it."""
    torch.manual_seed(0)
    config = ConvolutionConfig(inputs=1, classes=3, window=12, kernels=(3,), fixed=(2,), width=8, members=2)
    network, rows = Convolution(config), windows(200, 0, 0.0)
    optim = torch.optim.Adam((one for one in network.parameters() if one.requires_grad), lr=0.02)
    batch = rows.batch(rows.first, rows.count)
    for _ in range(60):
        optim.zero_grad()
        network.loss(network.train()(batch), batch).backward()
        optim.step()
    return network.eval()


def test_a_classifier_takes_the_temperature_of_windows_that_were_held_out() -> None:
    network = sure_network()
    held, others = (windows(400, seed, 0.5) for seed in (1, 2))
    loose = nats(network, held, 64, nullcontext)
    assert network.temperature.item() == 1, "nothing is fitted to windows that may have been learned from"
    before = probabilities(network, others, 64, nullcontext)
    fitted = nats(network, replace(held, held_out=True), 64, nullcontext)
    after = probabilities(network, others, 64, nullcontext)
    assert network.temperature.item() > 1.2 and fitted < loose
    assert np.array_equal(before.argmax(1), after.argmax(1)), "no class changes"
    units = np.zeros(len(others), np.int64)
    errors = [CalibrationError.of(found, others.truth, units).value for found in (before, after)]
    assert errors[1] < 0.07 < errors[0]
    stored = Convolution(network.config)
    stored.load_state_dict(network.state_dict())
    np.testing.assert_array_equal(probabilities(stored.eval(), others, 64, nullcontext), after)
