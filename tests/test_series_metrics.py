"""Measures of forecasts and labels, against their definitions written out, and what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from linnet.domains.series.copies import copied
from linnet.domains.series.metrics import (
    CalibrationError,
    MacroF1,
    Relative,
    coverage,
    mase,
    mean_of,
    msis,
    quantile_loss,
    scale_of,
    smape,
)
from linnet.errors import BadInput
from linnet.intervals import Bootstrap

VALUES = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-3)
TABLES = arrays(np.float64, (3, 5), elements=VALUES)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(TABLES, TABLES)
def test_smape_is_its_definition_and_symmetric(truth: np.ndarray, forecast: np.ndarray) -> None:
    found = smape(truth, forecast)
    for row in range(3):
        terms = [
            200 * abs(y - f) / (abs(y) + abs(f)) if y or f else 0.0
            for y, f in zip(truth[row], forecast[row], strict=True)
        ]
        assert found[row] == pytest.approx(sum(terms) / 5)
    assert found == pytest.approx(smape(forecast, truth))
    assert (found >= 0).all() and (found <= 200 + 1e-9).all()


def test_mase_divides_by_the_seasonal_steps_of_the_history() -> None:
    history = np.array([1.0, 10, 2, 12, 4, 15])
    assert scale_of(history, 2) == pytest.approx((1 + 2 + 2 + 3) / 4)
    truth, forecast = np.array([[5.0, 16]]), np.array([[4.0, 19]])
    assert mase(truth, forecast, np.array([scale_of(history, 2)])) == pytest.approx([2 / 2])


@pytest.mark.parametrize("history", [[3.0], [7.0] * 9, [], [1.0, math.nan]])
def test_a_history_without_steps_has_no_scale_and_is_left_out_of_the_mean(history: list[float]) -> None:
    assert math.isnan(scale_of(np.array(history), 1))
    assert mean_of(np.array([1.0, math.nan, 3.0])).value == 2


def test_missing_truths_are_left_out_of_every_measure() -> None:
    truth, forecast = np.array([[2.0, math.nan, 4.0]]), np.array([[1.0, 5.0, 4.0]])
    shorter = truth[:, [0, 2]], forecast[:, [0, 2]]
    assert smape(truth, forecast) == smape(*shorter)
    assert (
        quantile_loss(truth, forecast[..., None], [0.5]).value
        == quantile_loss(shorter[0], shorter[1][..., None], [0.5]).value
    )
    assert coverage(truth, forecast - 1, forecast + 1).value == 1
    assert math.isnan(smape(np.full((1, 2), np.nan), np.zeros((1, 2)))[0])


def test_errors_are_averaged_before_they_are_divided() -> None:
    ours = np.array([10.0, 30.0]), np.array([1.0, 3.0])
    reference = np.array([5.0, 60.0]), np.array([4.0, 1.0])
    assert Relative.of(ours, reference).value == pytest.approx((40 / 65 + 4 / 5) / 2)
    assert Relative.of(reference, reference).value == 1


@given(TABLES, TABLES)
def test_the_loss_of_the_median_is_the_share_of_absolute_error(truth: np.ndarray, forecast: np.ndarray) -> None:
    truth = np.where(truth == 0, 1.0, truth)
    found = quantile_loss(truth, forecast[..., None], [0.5]).value
    assert found == pytest.approx(np.abs(truth - forecast).sum() / np.abs(truth).sum())


def test_quantile_loss_averages_over_levels_and_is_least_at_the_true_quantiles() -> None:
    truth = seeded().normal(5, 1, (400, 10))
    levels = [0.1, 0.5, 0.9]
    best = np.broadcast_to(np.quantile(truth, levels), (400, 10, 3))
    least = quantile_loss(truth, best, levels).value
    assert least == pytest.approx(
        np.mean([quantile_loss(truth, best[..., [k]], [q]).value for k, q in enumerate(levels)])
    )
    assert all(quantile_loss(truth, best + shift, levels).value > least for shift in (-0.3, 0.3))


def test_the_interval_score_counts_the_width_and_forty_times_what_lies_outside() -> None:
    truth = np.array([[1.0, 7.0, -2.0]])
    found = msis(truth, (np.zeros((1, 3)), np.full((1, 3), 5.0)), np.array([2.0]))
    assert found == pytest.approx([(15 + 40 * (2 + 2)) / 3 / 2])
    assert coverage(truth, np.zeros((1, 3)), np.full((1, 3), 5.0)).value == pytest.approx(1 / 3)


def test_macro_f1_is_the_mean_over_classes_that_occur() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    found = MacroF1.of(truth, predicted, np.array([0, 0, 1, 1, 1]), 4)
    assert found.value == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert found.accuracy.value == pytest.approx(3 / 5)


@given(st.integers(0, 1000))
def test_a_draw_of_units_equals_the_measure_on_the_drawn_cases(seed: int) -> None:
    rng = seeded(seed)
    truth, units = rng.integers(0, 3, 60), np.repeat(np.arange(6), 10)
    probabilities = rng.dirichlet(np.ones(3), 60)
    draws = Bootstrap.draw(6, seed, resamples=4)
    cases = [np.repeat(np.arange(60), weights[units].astype(int)) for weights in draws.weights]
    f1 = MacroF1.of(truth, probabilities.argmax(-1), units, 3)(draws.weights)
    error = CalibrationError.of(probabilities, truth, units)(draws.weights)
    for row, chosen in enumerate(cases):
        alone = np.zeros(len(chosen), np.int64)
        again = MacroF1.of(truth[chosen], probabilities[chosen].argmax(-1), alone, 3)
        assert f1[row] == pytest.approx(again.value)
        assert error[row] == pytest.approx(CalibrationError.of(probabilities[chosen], truth[chosen], alone).value)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    probabilities = np.tile([0.7, 0.3], (10, 1))
    truth = np.array([0] * 5 + [1] * 5)
    assert CalibrationError.of(probabilities, truth, np.zeros(10, np.int64)).value == pytest.approx(0.2)
    sure = CalibrationError.of(np.eye(2)[truth], truth, np.zeros(10, np.int64))
    assert sure.value == 0


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = seeded(1)
    hard = rng.gamma(1, 10, 200)
    ours, theirs = mean_of(hard), mean_of(hard + rng.normal(1, 0.5, 200))
    draws = Bootstrap.draw(200)
    apart = draws.difference(ours, theirs)
    low, high = draws.interval(ours)
    assert apart.value == pytest.approx(ours.value - theirs.value)
    assert apart.low < apart.value < apart.high < 0 and apart.p < 0.01
    assert low < ours.value < high and high - low > 5 * (apart.high - apart.low)
    assert draws.difference(ours, ours).p == 1


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error() -> None:
    values = seeded(2).normal(0, 1, 400)
    low, high = Bootstrap.draw(400, resamples=4000).interval(mean_of(values))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    with pytest.raises(BadInput, match="no unit"):
        Bootstrap.draw(0)


def test_a_future_that_stands_in_another_history_is_found_whatever_its_level() -> None:
    rng = seeded(3)
    histories = [np.exp(np.cumsum(rng.normal(0, 0.05, 80))) for _ in range(4)]
    futures = [np.exp(np.cumsum(rng.normal(0, 0.05, 8))) for _ in range(3)] + [1e6 * histories[1][20:28]]
    constant = [*futures[:2], np.full(8, 3.0), futures[3]]
    assert copied(histories, futures).tolist() == [-1, -1, -1, 1]
    assert copied([*histories[:2], np.full(80, 3.0), histories[3]], constant).tolist() == [-1, -1, -1, 1]
    own = [histories[0][30:40], *futures[1:]]
    assert copied(histories, own)[0] == -1, "its own past is no copy of another series"


def test_one_series_says_nothing_of_others() -> None:
    draws, one = Bootstrap.draw(1), mean_of(np.array([0.4]))
    difference = draws.difference(mean_of(np.array([0.9])), one)
    assert difference.value == pytest.approx(0.5) and one.value == 0.4
    assert np.isnan([*draws.interval(one), difference.low, difference.high, difference.p]).all()
    assert draws.share_interval(one) == (0, 1)


def test_what_no_series_has_is_unknown_and_has_no_p() -> None:
    """Series that never move have no scaled errors; nothing is said of a difference between them."""
    nothing = mean_of(np.full(5, np.nan))
    apart = Bootstrap.draw(5).difference(nothing, mean_of(np.arange(5.0)))
    assert all(np.isnan(value) for value in (nothing.value, apart.value, apart.low, apart.high, apart.p))
