"""Classical forecasts: smoothing against its recursion written out, and seasons made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.series.baselines import (
    METHODS,
    Naive,
    Naive2,
    SeasonalNaive,
    Theta,
    adjusted,
    filled,
    is_seasonal,
    seasonal_indices,
)
from linnet.domains.series.lags import Ends, Ridge, Windows
from linnet.domains.series.metrics import mase, scales_of, smape
from linnet.domains.series.perceptron import Examples, ResidualMLP, parted
from linnet.domains.series.smoothing import smooth

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def walks(lengths: list[int], seed: int = 0, level: float = 50.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [level + np.cumsum(rng.normal(0.1, 1, length)) for length in lengths]


def squared_error(history: np.ndarray, alpha: float, beta: float, phi: float, level: float, trend: float) -> float:
    """The criterion of the fit, one value at a time."""
    total = 0.0
    for value in history:
        ahead = level + phi * trend
        error = value - ahead
        level, trend = ahead + alpha * error, phi * trend + beta * error
        total += error**2
    return total


def best_first_state(history: np.ndarray, alpha: float, beta: float, phi: float, trended: bool) -> float:
    """The least squared error over first states: errors are linear in them, so three points give the plane."""
    columns = []
    for level, trend in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        errors, now, slope = [], level, trend
        for value in history:
            ahead = now + phi * slope
            errors.append(value - ahead)
            now, slope = ahead + alpha * errors[-1], phi * slope + beta * errors[-1]
        columns.append(np.array(errors))
    design = np.stack([columns[1] - columns[0], columns[2] - columns[0]], -1)[:, : 1 + trended]
    state = np.linalg.lstsq(design, -columns[0], rcond=None)[0]
    return squared_error(history, alpha, beta, phi, state[0], state[1] if trended else 0.0)


@pytest.mark.parametrize(("trend", "damped"), [(False, False), (True, False), (True, True)])
def test_the_fit_is_not_beaten_by_a_fine_grid(trend: bool, damped: bool) -> None:
    for history in walks([20, 30, 45], seed=4):
        found = smooth([history], 3, trend=trend, damped=damped)
        ours = best_first_state(history, found.alpha[0], found.beta[0], found.phi[0], trend)
        alphas = np.linspace(0.001, 0.999, 25)
        shares = np.linspace(0.0001, 1, 11) if trend else [0.0]
        phis = np.linspace(0.8, 0.98, 4) if damped else [1.0]
        grid = [
            best_first_state(history, a, a * share, phi, trend) for a in alphas for share in shares for phi in phis
        ]
        assert ours <= min(grid) * 1.0005
        assert 0 < found.alpha[0] < 1 and found.beta[0] <= found.alpha[0]


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.sampled_from(sorted(METHODS)), st.integers(1, 9))
def test_a_forecast_does_not_depend_on_the_other_series(lengths: list[int], name: str, horizon: int) -> None:
    histories, method = walks(lengths), METHODS[name]
    together = method.forecast(histories, horizon, 4)
    assert together.mean.shape == together.deviation.shape == (len(histories), horizon)
    assert np.isfinite(together.mean).all() and (together.deviation >= 0).all()
    for row, history in enumerate(histories):
        alone = method.forecast([history], horizon, 4)
        assert together.mean[row] == pytest.approx(alone.mean[0], rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(METHODS)), st.floats(0.01, 1e6), st.integers(0, 50))
def test_a_forecast_grows_with_the_unit_of_the_series(name: str, unit: float, seed: int) -> None:
    history = walks([37], seed)[0]
    plain, scaled = METHODS[name].forecast([history], 5, 4), METHODS[name].forecast([unit * history], 5, 4)
    assert scaled.mean == pytest.approx(unit * plain.mean, rel=1e-6)
    assert scaled.deviation == pytest.approx(unit * plain.deviation, rel=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_constant_is_forecast_as_itself_with_certainty(name: str) -> None:
    found = METHODS[name].forecast([np.full(length, 1e6) for length in (1, 2, 3, 5, 30)], 6, 12)
    assert found.mean == pytest.approx(np.full((5, 6), 1e6))
    assert (found.deviation < 1).all()


def test_lines_go_on_under_holt_and_flatten_when_damped() -> None:
    line = [np.arange(60.0) * 2 + 7]
    ahead = 2 * np.arange(60, 70) + 7
    assert METHODS["Holt"].forecast(line, 10, 1).mean[0] == pytest.approx(ahead, rel=1e-3)
    damped = METHODS["damped"].forecast(line, 10, 1).mean[0]
    assert (np.diff(damped) > 0).all() and (np.diff(damped, 2) < 0).all() and damped[-1] < ahead[-1]
    drift = np.diff(Theta().forecast(line, 10, 1).mean[0])
    assert drift == pytest.approx(np.full(9, 1.0), rel=1e-6), "half of the slope, as the method has it"


def test_intervals_of_a_random_walk_cover_what_they_say() -> None:
    paths = [path - path[0] + 9 for path in walks([110] * 300, seed=7)]
    histories, truth = [path[:100] for path in paths], np.stack([path[100:] for path in paths])
    for name in ("naive", "simple smoothing"):
        low, high = np.moveaxis(METHODS[name].forecast(histories, 10, 1).quantiles([0.1, 0.9]), -1, 0)
        assert 0.74 < ((truth > low) & (truth < high)).mean() < 0.86


# Seasons


def seasonal(season: int, cycles: float, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Growing level times a known pattern; returns the history and the pattern."""
    rng = np.random.default_rng(seed)
    pattern = 1 + 0.4 * np.sin(2 * np.pi * np.arange(season) / season)
    steps = np.arange(int(season * cycles))
    values = (100 + 0.1 * steps) * pattern[steps % season]
    return values * np.exp(noise * rng.normal(size=len(values))), pattern


@pytest.mark.parametrize("season", [4, 7, 12, 24])
@pytest.mark.parametrize("extra", [0, 0.5])
def test_naive2_continues_a_season_that_plain_naive_misses(season: int, extra: float) -> None:
    history, pattern = seasonal(season, 5 + extra)
    ahead = np.arange(len(history), len(history) + season)
    truth = (100 + 0.1 * ahead) * pattern[ahead % season]
    found = Naive2().forecast([history], season, season).mean[0]
    assert np.abs(found / truth - 1).max() < 0.04
    assert np.abs(Naive().forecast([history], season, season).mean[0] / truth - 1).max() > 0.3


def test_a_season_is_found_only_with_three_whole_ones_and_beyond_the_bound() -> None:
    pulses = np.tile([1.0, 0, 0, 0], 3)
    assert is_seasonal(pulses, 4) and not is_seasonal(pulses[:-1], 4)
    history, _ = seasonal(12, 8)
    assert is_seasonal(history, 12)
    assert is_seasonal(1e-20 * history, 12) and is_seasonal(1e20 * history, 12)
    assert not is_seasonal(history, 1) and not any(is_seasonal(np.full(60, one), 12) for one in (5.0, 0.1, 0.0))
    noise = [np.random.default_rng(seed).normal(10, 1, 120) for seed in range(300)]
    share = np.mean([is_seasonal(one, 12) for one in noise])
    assert 0.03 < share < 0.16, "the test is wrong in about one of ten series without a season"


def test_the_bound_is_bartletts_written_out() -> None:
    rng = np.random.default_rng(5)
    for season in (2, 5, 8):
        for _ in range(20):
            history = rng.normal(size=40) + 0.6 * np.sin(2 * np.pi * np.arange(40) / season)
            centred = history - history.mean()
            lags = [float((centred[k:] * centred[: len(centred) - k]).sum()) for k in range(season + 1)]
            r = [lag / lags[0] for lag in lags]
            bound = 1.645 * ((1 + 2 * sum(one**2 for one in r[1:season])) / 40) ** 0.5
            assert is_seasonal(history, season) == (abs(r[season]) > bound)


@pytest.mark.parametrize("season", [4, 5])
def test_indices_are_the_pattern_that_the_series_was_made_with(season: int) -> None:
    pattern = np.arange(1.0, season + 1)
    level = np.full(season * 6, 20.0)
    factors = seasonal_indices(level * np.tile(pattern / pattern.mean(), 6), season, multiply=True)
    assert factors == pytest.approx(pattern / pattern.mean(), rel=0.01)
    terms = seasonal_indices(level + np.tile(pattern - pattern.mean(), 6), season, multiply=False)
    assert terms == pytest.approx(pattern - pattern.mean())


def test_a_series_with_values_below_zero_is_adjusted_by_terms() -> None:
    history = np.tile([-3.0, 1.0, 2.0, 0.0], 8) + 0.01 * np.arange(32)
    found = adjusted([history], 8, 4)
    assert found.factor.tolist() == np.ones((1, 8)).tolist()
    assert Naive2().forecast([history], 8, 4).mean[0] == pytest.approx(np.tile([-3.0, 1, 2, 0], 2) + 0.3, abs=0.1)
    positive = adjusted([history + 10], 8, 4)
    assert not positive.term.any() and np.ptp(positive.factor) > 0.3


def test_seasonal_naive_repeats_the_last_season_in_phase() -> None:
    history = np.arange(10.0)
    assert SeasonalNaive().forecast([history], 6, 4).mean[0].tolist() == [6, 7, 8, 9, 6, 7]
    assert SeasonalNaive().forecast([history[:3]], 3, 4).mean[0].tolist() == [2, 2, 2]


def test_missing_values_take_the_last_one_seen() -> None:
    nan = float("nan")
    assert filled(np.array([nan, 2, nan, nan, 5, nan])).tolist() == [2, 2, 2, 2, 5, 5]
    assert filled(np.array([nan, nan])).tolist() == [0, 0] and filled(np.array([])).tolist() == [0]


# Lags


def repeated(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Series of very different levels that repeat after nine steps, and six steps after them."""
    rng = np.random.default_rng(6)
    levels = np.exp(rng.normal(0, 4, count))
    paths = [level * (5 + np.tile(rng.normal(size=9), 12)) for level in levels]
    return [path[:100] for path in paths], np.stack([path[100:106] for path in paths])


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.integers(1, 20), st.integers(1, 9), st.integers(1, 3))
def test_windows_of_all_series_at_once_are_those_cut_one_by_one(
    lengths: list[int], lags: int, horizon: int, recent: int
) -> None:
    histories = [*walks(lengths), np.full(7, 3.0)]
    ends = Ends.learned(histories, horizon, recent)
    pairs = [
        (row, end)
        for row, history in enumerate(histories)
        for end in range(2, len(history) - horizon + 1)
        if end > len(history) - horizon - recent * horizon
    ]
    assert sorted(zip(ends.row.tolist(), ends.step.tolist(), strict=True)) == pairs
    found, futures = Windows.cut(histories, ends, lags), ends.futures(histories, horizon)
    for number, (row, end) in enumerate(zip(ends.row.tolist(), ends.step.tolist(), strict=True)):
        window = histories[row][max(0, end - lags) : end]
        step = float(np.abs(np.diff(window)).mean()) if len(window) > 1 else 0.0
        assert found.last[number] == window[-1] and found.step[number] == pytest.approx(step)
        inside = found.values[number][found.observed[number]]
        assert inside * (step or 1.0) + window[-1] == pytest.approx(window)
        assert len(inside) == len(window) and not found.values[number][~found.observed[number]].any()
        assert futures[number].tolist() == histories[row][end : end + horizon].tolist()


@pytest.mark.parametrize("method", [Ridge(18), ResidualMLP(18, width=64, steps=200, rate=3e-3)])
def test_what_learns_from_lags_finds_a_rule_that_all_series_share(method: Ridge | ResidualMLP) -> None:
    """At any level; the season is never named, the lags show it."""
    histories, truth = repeated(40)
    found = method.forecast(histories, 6, 1)
    apart = np.abs(found.mean - truth).sum(-1) / np.abs(Naive().forecast(histories, 6, 1).mean - truth).sum(-1)
    assert np.median(apart) < 0.15
    levels = np.array([np.abs(history).mean() for history in histories])
    assert (found.deviation > 0).all() and (found.deviation / levels[:, None] < 1).all()


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 20), st.sampled_from([Ridge, ResidualMLP]))
def test_what_learns_from_lags_forecasts_any_lengths(
    lengths: list[int], horizon: int, lags: int, method: type[Ridge | ResidualMLP]
) -> None:
    histories = [*walks(lengths), np.full(30, 1e6)]
    chosen = Ridge(lags) if method is Ridge else ResidualMLP(lags, blocks=1, width=8, steps=3, batch=16)
    found = chosen.forecast(histories, horizon, 1)
    assert found.mean.shape == (len(histories), horizon) and np.isfinite(found.quantiles([0.1, 0.9])).all()
    assert found.mean[-1].tolist() == [1e6] * horizon, "a constant stays where it is"


# The residual network


def test_the_network_learns_half_of_each_measure_as_it_is_reported() -> None:
    histories = [*walks([40, 25, 60], seed=3), -20 - 3 * walks([50], seed=4)[0]]
    ends = Ends.learned(histories, 5, recent=3)
    windows, futures = Windows.cut(histories, ends, 12), ends.futures(histories, 5)
    scales = scales_of(histories, 4)[ends.row]
    examples = Examples.of(windows, futures, scales, ends.row)
    guess = np.random.default_rng(0).normal(size=futures.shape)
    relative, scaled = examples.errors(torch.from_numpy(guess), slice(None))
    points = windows.back(guess)
    np.testing.assert_allclose(200 * relative.mean(1), smape(futures, points), rtol=1e-4)
    np.testing.assert_allclose(scaled.mean(1), mase(futures, points, scales), rtol=1e-4)


def test_the_network_draws_series_and_not_windows_alike() -> None:
    """A short series has as large a share of the batches as one that has forty times as many windows."""
    histories = walks([24, 300])
    ends = Ends.learned(histories, 4, recent=100)
    examples = Examples.of(
        Windows.cut(histories, ends, 8), ends.futures(histories, 4), np.ones(len(ends)), ends.row
    )
    drawn = torch.cat(list(examples.batches(100, 20, seed=1))).numpy()
    assert set(drawn.tolist()) <= set(range(len(ends))) and abs((ends.row[drawn] == 0).mean() - 0.5) < 0.05


def test_the_network_is_the_same_in_any_unit_and_leaves_other_random_numbers_alone() -> None:
    histories, _ = repeated(12)
    small = ResidualMLP(12, blocks=2, layers=1, width=16, steps=20, batch=32)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    found = small.forecast(histories, 6, 1)
    assert torch.equal(torch.rand(3), wanted)
    again = small.forecast([1024.0 * history for history in histories], 6, 1)
    np.testing.assert_allclose(again.mean, 1024 * found.mean, rtol=1e-6)
    np.testing.assert_allclose(again.deviation, 1024 * found.deviation, rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.integers(1, 9))
def test_errors_are_measured_where_the_network_did_not_learn(lengths: list[int], horizon: int) -> None:
    histories = walks([*lengths, 60, 50, 40])
    ends = Ends.learned(histories, horizon, recent=5)
    learned, measured = parted(ends, histories, horizon)
    assert len(learned) and len(measured)
    if len(learned) == len(ends):
        return
    for row in set(ends.row[measured].tolist()):
        seen = ends.step[learned][ends.row[learned] == row] + horizon
        assert seen.max(initial=0) <= len(histories[row]) - horizon
    assert (ends.step[measured] + horizon == [len(histories[row]) for row in ends.row[measured]]).all()
