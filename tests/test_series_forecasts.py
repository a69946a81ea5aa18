"""Forecasts: scaling, windows that never look ahead, sorted quantiles, any history and horizon, and whole runs."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench import series_speed
from linnet import workbench
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.data import SeriesData, lengths_of
from linnet.domains.series.forecasts import forecast, forecast_material
from linnet.domains.series.metrics import mase, smape
from linnet.domains.series.residual import Residual, unit_costs, weighted_error
from linnet.domains.series.scaling import scaled
from linnet.domains.series.settings import ResidualConfig, SyntheticConfig
from linnet.domains.series.synthetic import synthetic_windows
from linnet.domains.series.tables import LARGEST, Series, SeriesTable
from linnet.domains.series.windows import ForecastPlan, training_windows
from linnet.errors import BadInput, RunFailed

HISTORY, HORIZON = 12, 4
CODEC = SeriesCodec("forecast", ("value",), horizon=HORIZON, histories=(6, HISTORY), typical=0.1)
WINDOWS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=HISTORY)


def network(seed: int = 0) -> Residual:
    """Random weights everywhere, the zero heads of a fresh network included."""
    torch.manual_seed(seed)
    config = ResidualConfig(lengths=CODEC.histories, outputs=HORIZON, blocks=2, layers=1, width=8)
    found = Residual(config)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found.eval()


def right_aligned(*histories: list[float]) -> np.ndarray:
    windows = np.full((len(histories), HISTORY), np.nan)
    for row, one in enumerate(histories):
        windows[row, HISTORY - len(one) :] = one
    return windows


def table(*parts: np.ndarray) -> SeriesTable:
    return SeriesTable.of([Series(f"S{n}", p[:, None], f"row {n}") for n, p in enumerate(parts)], ("value",))


@settings(max_examples=50, deadline=None)
@given(history=WINDOWS, level=st.sampled_from([0.0, 1.0, -1e6, 1e6]), factor=st.sampled_from([0.01, 1.0, 1e6]))
def test_forecasts_move_with_the_level_and_the_unit_of_the_series(history, level, factor) -> None:
    model = network()
    windows = right_aligned([round(x, 2) for x in history])
    plain = forecast(model, CODEC, windows, 8, nullcontext)
    window, moved = scaled(windows, 0.0), scaled(factor * windows + level, 0.0)
    np.testing.assert_allclose(moved.scale, factor * window.scale, rtol=1e-6, atol=1e-9 * (abs(level) + factor))
    if len(history) > 1 and window.scale[0] > 0.05:
        other = forecast(model, CODEC, factor * windows, 8, nullcontext)
        np.testing.assert_allclose(other.quantiles, factor * plain.quantiles, rtol=1e-4, atol=1e-3 * factor)
    assert (np.diff(plain.quantiles, axis=-1) >= 0).all() and np.isfinite(plain.quantiles).all()


FAR = st.sampled_from([0.0, 5e-324, 1e-300, -1e-30, 1e-7, 1.0, 41.6, -1e9, 1e18, LARGEST, -LARGEST, np.nan])


@settings(max_examples=100, deadline=None)
@given(values=st.lists(FAR | st.floats(-LARGEST, LARGEST), min_size=HISTORY + HORIZON, max_size=40))
def test_whatever_the_values_the_loss_and_the_forecast_are_numbers(values: list[float]) -> None:
    """Values that a damaged file may hold, beyond what float32 has."""
    assume(np.isfinite(values[HISTORY - 1]))
    codec = SeriesCodec("forecast", ("v",), horizon=HORIZON, histories=(6,), naive_smape=0.1, naive_mase=2.0)
    train, _ = training_windows(table(np.array(values)), codec, 0, recent=10)
    batch = train.batch(np.arange(len(train)))
    median = torch.randn(1, len(train), HORIZON, generator=torch.Generator().manual_seed(0))
    assert all(torch.isfinite(part).all() for part in batch.values() if part.is_floating_point())
    assert all(torch.isfinite(part).all() for part in weighted_error(batch, median))
    assert np.isfinite(forecast(network(), CODEC, right_aligned(values[:HISTORY]), 8, nullcontext).quantiles).all()


@pytest.mark.parametrize("value", [0.0, 5.0, 1e6, -1e9])
@pytest.mark.parametrize("length", [2, HISTORY])
def test_a_series_that_never_moved_keeps_its_value(value: float, length: int) -> None:
    found = forecast(network(), CODEC, right_aligned([value] * length), 8, nullcontext, horizon=9)
    np.testing.assert_array_equal(found.quantiles, value)


def test_a_single_value_has_the_spread_of_a_typical_step() -> None:
    found = forecast(network(), CODEC, right_aligned([200.0]), 8, nullcontext)
    assert found.quantiles.std() > 0
    np.testing.assert_allclose(scaled(right_aligned([200.0]), 0.1).scale, 20.0)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_forecast_does_not_depend_on_the_others_in_its_batch(size: int) -> None:
    random = np.random.default_rng(3)
    windows = right_aligned(*(list(random.normal(size=n) * 10**n) for n in (1, 2, 5, 9, 12, 12)))
    whole = forecast(network(), CODEC, windows, 6, nullcontext, horizon=7)
    parts = forecast(network(), CODEC, windows, size, nullcontext, horizon=7)
    scale = np.abs(whole.quantiles).max((1, 2), keepdims=True)
    np.testing.assert_allclose(parts.quantiles / scale, whole.quantiles / scale, atol=1e-6)


def test_longer_horizons_begin_with_the_shorter_forecast_and_spread_further() -> None:
    windows = right_aligned(list(np.random.default_rng(1).normal(size=HISTORY).cumsum()))
    short, long = (forecast(network(), CODEC, windows, 8, nullcontext, horizon=h) for h in (HORIZON, 3 * HORIZON))
    np.testing.assert_array_equal(long.quantiles[:, :HORIZON], short.quantiles)
    wide = long.at(0.9) - long.at(0.1)
    assert (wide[0, HORIZON:] >= wide[0, HORIZON - 1] - 1e-9).all()


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((60, 60), "the last 4 steps of 2 of 2 series are held out"),
        ((60, 5), "the last 4 steps of 1 of 2 series are held out; 1 more are too short for that"),
        ((5, 4), "none of the 2 series whose last 4 steps should be held out has more than 5: "
         "training sees their ends, so the scores of this run are no test"),
    ],
)  # fmt: skip
def test_what_is_held_out_is_told_as_it_is(lengths: tuple[int, ...], words: str) -> None:
    source = table(*(np.arange(float(length)) for length in lengths))
    data = SeriesData(held_share=1.0, horizon=HORIZON)
    assert forecast_material(data, source, CODEC).notes[-1] == words


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), held=st.sampled_from([0, HORIZON]))
def test_training_windows_never_see_what_is_held_out(lengths: list[int], held: int) -> None:
    """Steps count up, so that a value says where it is from."""
    source = table(*(100.0 * n + np.arange(length) for n, length in enumerate(lengths)))
    train, validation = training_windows(source, CODEC, held, recent=10)
    everything = np.arange(len(train))
    past, future = train.histories(everything, HISTORY), train.futures(everything, HORIZON)
    seen = np.concatenate([past, future], 1)
    kept = {int(series) for series in validation.series}
    for row, series in enumerate(train.series):
        last = lengths[series] - (held if series in kept else 0)
        assert np.nanmax(seen[row]) < 100 * series + last
        assert np.nanmin(seen[row]) >= 100 * series
        known = seen[row][np.isfinite(seen[row])]
        np.testing.assert_array_equal(np.diff(known), 1)
        assert np.isfinite(past[row]).any() and np.isfinite(future[row]).any()
    assert kept == {n for n, length in enumerate(lengths) if held and length > held + 1}
    truth = validation.futures(np.arange(len(validation)), HORIZON)
    for row, series in enumerate(validation.series):
        np.testing.assert_array_equal(
            truth[row], 100 * series + np.arange(lengths[series] - held, lengths[series])
        )


def test_batches_are_functions_of_the_step_and_hold_finite_numbers() -> None:
    source = table(np.array([5.0]), np.array([1.0, 2.0]), np.full(40, 7.0), np.array([1e6, np.nan, 1e6 + 1, 0.0]))
    train, _ = training_windows(source, CODEC, 0, recent=10)
    plan = ForecastPlan(train, 16, seed=4)
    for step in range(3):
        one, again = plan.batch(step), plan.batch(step)
        assert all(torch.equal(one[name], again[name]) and torch.isfinite(one[name]).all() for name in one)


def test_members_learn_apart_and_the_mean_is_judged() -> None:
    train, _ = training_windows(table(np.arange(40.0) ** 1.5), CODEC, 0, recent=10)
    batch, model = train.batch(np.arange(8)), network()
    found = model(batch)
    assert found.hidden.shape == (2, 8, HORIZON, 13)
    alone = [model.loss(type(found)(member[None], None, {}), batch) for member in found.hidden]
    model.train()
    torch.testing.assert_close(model.loss(found, batch), torch.stack(alone).sum())
    model.eval()
    mean = type(found)(found.hidden.mean(0, keepdim=True), None, {})
    torch.testing.assert_close(model.loss(found, batch), model.loss(mean, batch))


def series_file(path: Path, count: int = 12, length: int = 60, first: int = 0) -> Path:
    """Sums of a cycle of 7 and a slope, one a row."""
    steps = np.arange(first, first + length)
    rows = [50 + n + 0.3 * steps + 5 * np.sin(2 * np.pi * (steps + n) / 7) for n in range(count)]
    lines = ["id," + ",".join(f"v{i}" for i in range(length))]
    lines += [f"D{n}," + ",".join(f"{value:.3f}" for value in row) for n, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_run_learns_a_cycle_and_scores_the_test_part(tmp_path: Path) -> None:
    """From the file to scores; after a hundred steps the last value is beaten by far."""
    series_file(tmp_path / "Daily-train.csv")
    series_file(tmp_path / "Daily-test.csv", length=14, first=60)
    record = workbench.train("tiny-forecast", data=[tmp_path], out=tmp_path / "run", steps=150)
    scores = {score.name: score for score in record.scores}
    assert scores["owa"].value < 0.6 and scores["owa"].n == 12
    found = workbench.evaluate(tmp_path / "run", data=[tmp_path])
    tested = {score.name: score for score in found.scores}
    assert tested["owa"].value < 0.8 and tested["owa"].value != scores["owa"].value
    names = {row.name for row in found.systems}
    assert names >= {"this run", "naive", "Theta", "ridge on lags", "residual MLP"}
    quick = workbench.evaluate(tmp_path / "run", data=[tmp_path], settings=["baselines=untrained"])
    assert names - {row.name for row in quick.systems} == {"residual MLP"}
    with pytest.raises(BadInput, match='all or untrained, not "none"'):
        workbench.evaluate(tmp_path / "run", data=[tmp_path], settings=["baselines=none"])
    last = {
        score.name: score
        for score in workbench.evaluate(tmp_path / "run", data=[tmp_path / "Daily-train.csv"]).scores
    }
    assert last["owa"].value == pytest.approx(scores["owa"].value)
    with pytest.raises(BadInput, match="test part"):
        workbench.evaluate(tmp_path / "run", data=[tmp_path / "Daily-test.csv"])


def test_the_plain_network_of_the_benchmark_computes_the_same(tmp_path: Path) -> None:
    given = Namespace(recipe="tiny-forecast", data=series_file(tmp_path / "s.csv"), set=[])
    run, material = series_speed.resolved(given)
    learner, plain = series_speed.both(run, material)
    batch = run.data.plan(material.train.rows, run).batch(0)
    series_speed.same_work(learner, plain, batch)
    with torch.no_grad():
        next(plain.network.parameters()).mul_(1.5)
    with pytest.raises(RunFailed, match="not timed"):
        series_speed.same_work(learner, plain, batch)


def test_drawn_windows_come_first_and_beside_the_others() -> None:
    codec = SeriesCodec("forecast", ("value",), cycle=7, horizon=HORIZON, histories=(HISTORY,))
    rows, _ = training_windows(table(*(np.arange(30.0) + 50 * n for n in range(4))), codec, HORIZON, 10)
    drawn = synthetic_windows(rows, SyntheticConfig(share=0.25, first=0.5, count=20), seed=1, steps=10)
    assert drawn is not None and drawn.until == 5 and np.isfinite(drawn.rows.table.values).all()
    plan, plain = ForecastPlan(rows, 16, 1, None, drawn), ForecastPlan(rows, 16, 1)
    straight = [int((plan.batch(step)["values"].diff(dim=1, n=2).abs().amax(1) < 1).sum()) for step in (0, 9)]
    assert straight[1] > straight[0] and plan.batch(9)["values"].shape == (16, HISTORY)
    assert torch.equal(plan.batch(3)["values"], plan.batch(3)["values"])
    assert synthetic_windows(rows, SyntheticConfig(), 1, 10) is None and plain.batch(0)["values"].shape[0] == 16


def test_copied_windows_are_named_and_scored_apart(tmp_path: Path) -> None:
    """Two of eight series go on as another one did, at another level; ridge regression stands in the table."""
    rng = np.random.default_rng(2)
    paths = [50 + rng.normal(size=60).cumsum() for _ in range(8)]
    paths[1][-8:], paths[5][-8:] = 3 * paths[0][20:28], 0.1 * paths[4][10:18]
    lines = [f"S{n}," + ",".join(f"{value:.6f}" for value in path) for n, path in enumerate(paths)]
    (tmp_path / "walks.csv").write_text("id" + "".join(f",v{n}" for n in range(60)) + "\n" + "\n".join(lines))
    settings = ["data.horizon=8", "data.season=1"]
    record = workbench.train(
        "tiny-forecast", data=[tmp_path / "walks.csv"], out=tmp_path / "run", settings=settings
    )
    scores = {score.name: score for score in record.scores}
    assert scores["owa"].n == 8 and scores["owa.without_copies"].n == 6
    assert any("2 of 8 windows begin as another series goes on: S1, S5" in note for note in record.notes)
    assert "ridge on lags" in {row.name for row in record.systems}


def test_the_median_learns_the_score_itself() -> None:
    """Half sMAPE and half MASE as they are measured, the size of the forecast included."""
    codec = SeriesCodec("forecast", ("v",), horizon=HORIZON, histories=(6,), naive_smape=0.1, naive_mase=2.0)
    values = 20 + np.random.default_rng(0).normal(size=40).cumsum()
    train, _ = training_windows(table(values), codec, 0, recent=10)
    chosen = np.arange(5)
    batch, median = train.batch(chosen), torch.randn(1, 5, HORIZON, generator=torch.Generator().manual_seed(0))
    window, truth = scaled(train.histories(chosen, 6), 0.0), train.futures(chosen, HORIZON)
    points = window.back(median[0].numpy())
    wanted = smape(truth, points) / 100 / 0.1 + mase(truth, points, train.unit[train.series[chosen]]) / 2.0
    np.testing.assert_allclose(weighted_error(batch, median)[0].mean(1), wanted / 2, rtol=1e-4)


@pytest.mark.parametrize("unit", [2.0**-80, 2.0**-40, 2.0**60])
def test_windows_weigh_the_same_in_any_unit(unit: float) -> None:
    """To the bit: a unit that is a power of two changes no digit of what a network learns from."""
    values = np.random.default_rng(0).normal(size=60).cumsum()
    plain, other = (
        training_windows(table(factor * values), CODEC, 0, recent=10)[0].batch(np.arange(9))
        for factor in (1.0, unit)
    )
    assert plain.keys() == other.keys() and all(torch.equal(plain[name], other[name]) for name in plain)
    assert (unit_costs(plain) > 0).all()


@given(st.integers(1, 400), st.integers(1, 60))
def test_members_see_histories_of_their_own_at_any_frequency(cycle: int, horizon: int) -> None:
    """As many of a cycle as is said, never below two horizons, and different where a base is long enough."""
    shares = SeriesData().histories
    found = lengths_of(shares, cycle, horizon)
    assert all(one >= max(2 * horizon, share * cycle) for one, share in zip(found, shares, strict=True))
    assert all(one <= np.ceil(share * max(2 * horizon, cycle)) for one, share in zip(found, shares, strict=True))
    assert list(found) == sorted(found) and (max(cycle, 2 * horizon) < 25 or len(set(found)) == len(shares))
