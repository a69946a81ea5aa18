"""Labels of series: windows and their majority, parts cut by group, the classifier; predictions of both kinds."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import workbench
from linnet.cli.face import Face
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.convolution import Convolution
from linnet.domains.series.filters import fixed_filters, invariants, with_invariants
from linnet.domains.series.forecasts import Forecasts
from linnet.domains.series.labelling import probabilities, scored_labels, standardised
from linnet.domains.series.labels import LabelPlan, Variation, labelled_windows, normalised, split
from linnet.domains.series.residual import Residual
from linnet.domains.series.scaling import scaled
from linnet.domains.series.settings import ConvolutionConfig, ResidualConfig
from linnet.domains.series.tables import LARGEST, Series, SeriesTable
from linnet.domains.series.use import sampled_paths
from linnet.domains.series.windows import inputs_of
from linnet.errors import BadInput, RunFailed
from linnet.figures import save_series
from linnet.model.contract import Network
from linnet.records import ForecastRecord, PredictionRecord
from tiny_runs import Killed, Watching, agree, damage

LABELS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), min_size=1, max_size=5)
CODEC = SeriesCodec("classes", ("x",), classes=("a", "b", "c"), length=4)


def table(labels: list[list[str]], groups: list[str] | None = None) -> SeriesTable:
    series = [
        Series(
            f"S{n}", 1.0 * np.arange(len(one))[:, None], f"row {n}", np.array(one, object), (groups or [""] * 9)[n]
        )
        for n, one in enumerate(labels)
    ]
    return SeriesTable.of(series, ("x",))


@settings(max_examples=50, deadline=None)
@given(labels=LABELS, stride=st.integers(1, 5))
def test_a_window_has_the_label_of_most_of_its_steps(labels: list[list[str]], stride: int) -> None:
    rows = labelled_windows(table(labels), CODEC, stride)
    wanted = []
    for one in labels:
        for first in range(0, max(0, len(one) - 4) + 1, stride):
            counts = Counter(one[first : first + 4])
            wanted.append(max("abc", key=lambda label: counts[label]))
    assert [CODEC.classes[index] for index in rows.truth] == wanted
    plan = LabelPlan(rows, 8, seed=1, stride=stride)
    batch = plan.batch(0)
    sizes = [plan.batch(step).rows for step in range(plan.steps_per_epoch)]
    assert sum(sizes) == len(rows) and max(sizes) <= 8 and max(sizes) - min(sizes) <= 1
    assert all(torch.equal(batch[name], plan.batch(0)[name]) for name in batch)
    assert torch.isfinite(batch["values"]).all() and (batch["observed"].sum(1) == batch["lengths"]).all()


@settings(max_examples=30, deadline=None)
@given(labels=LABELS, share=st.sampled_from([0.0, 0.2, 0.5]), grouped=st.booleans(), seed=st.integers(0, 9))
def test_no_group_is_in_both_parts(labels: list[list[str]], share: float, grouped: bool, seed: int) -> None:
    groups = [f"person {n // 2}" for n in range(len(labels))] if grouped else None
    rows = labelled_windows(table(labels, groups), CODEC, 2)
    learned, kept = split(rows, share, seed)
    assert sorted([*learned, *kept]) == list(range(len(rows)))
    assert not set(rows.groups[learned]) & set(rows.groups[kept])
    assert len(learned) > 0


@pytest.mark.parametrize("level", [0.0, 1e6, -1e6])
def test_windows_are_scaled_at_any_level_and_constants_become_zero(level: float) -> None:
    random = np.random.default_rng(0)
    windows = random.normal(size=(3, 50, 2))
    found = normalised(windows + level, CODEC)
    np.testing.assert_allclose(found, normalised(windows, CODEC), atol=1e-6)
    np.testing.assert_allclose(found.std(1), 1, atol=1e-9)
    np.testing.assert_array_equal(normalised(np.full((1, 9, 1), level), CODEC), 0)


@given(
    values=st.lists(st.floats(-LARGEST, LARGEST) | st.just(np.nan), min_size=2, max_size=9),
    mean=st.floats(-LARGEST, LARGEST),
    deviation=st.floats(1e-300, LARGEST),
)
def test_windows_are_numbers_of_float32_whatever_the_values(
    values: list[float], mean: float, deviation: float
) -> None:
    window = np.array(values)[None, :, None]
    for codec in (CODEC, replace(CODEC, means=(mean,), deviations=(deviation,))):
        found = normalised(window, codec).astype(np.float32)
        assert (np.isfinite(found) == np.isfinite(window)).all() and (
            np.abs(found[np.isfinite(found)]) <= 1e9
        ).all()


def test_a_label_that_a_run_does_not_know_is_named() -> None:
    with pytest.raises(BadInput, match='row 1: this run knows no class "d"'):
        labelled_windows(table([["a"], ["d", "b"]]), CODEC, 0)


def test_fixed_filters_find_what_they_are_named_for() -> None:
    for filters in fixed_filters((2, 8, 32)):
        rise, fall, _ = filters[:, 0]
        torch.testing.assert_close(filters.sum(-1), torch.zeros(3, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(rise, -fall)
        assert float((rise * torch.arange(len(rise))).sum()) > 0


def classifier(members: int = 2, inputs: int = 1) -> Convolution:
    torch.manual_seed(0)
    return Convolution(
        ConvolutionConfig(
            inputs=inputs, classes=3, window=20, kernels=(3,), fixed=(2,), width=4, kernel=3, members=members
        )
    )


@pytest.mark.parametrize("size", [1, 3])
def test_probabilities_do_not_depend_on_the_batch(size: int) -> None:
    rows = labelled_windows(table([list("aabbccabc"), list("abcab"), list("cc"), list("b" * 20)]), CODEC, 3)
    model = classifier()
    model.train()(rows.batch(rows.first, rows.count))  # moves the running statistics
    whole = probabilities(model.eval(), rows, 64, nullcontext)
    np.testing.assert_allclose(probabilities(model, rows, size, nullcontext), whole, atol=1e-6)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("triples", [1, 2, 3])
def test_turning_a_sensor_changes_nothing_that_is_read_of_triples(triples: int) -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    values = torch.randn(2, 40, triples, 3, generator=torch.Generator().manual_seed(2))
    found = [with_invariants(turned.flatten(2), triples) for turned in (values, values @ rotation)]
    assert found[0].shape == (2, 3 * triples + invariants(triples), 40)
    torch.testing.assert_close(*[one[:, 3 * triples :] for one in found], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(*[one[:, : 3 * triples] for one in found])


def test_the_rate_of_turning_about_the_vertical_is_read_from_any_position() -> None:
    """A sensor that hangs anyhow, turned at rate 2 about the vertical while it shakes about other axes."""
    random = torch.Generator().manual_seed(3)
    position = torch.linalg.qr(torch.randn(3, 3, generator=random))[0]
    shake = 5 * torch.sin(2 * torch.pi * torch.arange(64) / 8)
    gravity = torch.tensor([0.0, 0.0, 9.8]).expand(64, 3)
    rates = torch.stack([shake, -shake, torch.full((64,), 2.0)], 1)
    found = with_invariants(torch.cat([gravity @ position, rates @ position], 1)[None], 2)[0, 6:]
    inside = found[:, 8:-8]
    torch.testing.assert_close(inside[0], torch.full((48,), 9.8), atol=1e-3, rtol=0)
    torch.testing.assert_close(inside[4].abs(), torch.full((48,), 2.0), atol=0.9, rtol=0)
    torch.testing.assert_close(inside[5], inside[4].abs())


@pytest.mark.parametrize(("channels", "apart"), [(3, 1), (4, 1), (3, 100)])
def test_units_of_triples_keep_zero_and_one_size_of_three_axes(channels: int, apart: int) -> None:
    """Four channels are no axes, nor are three of very different sizes."""
    values = np.random.default_rng(0).normal(5, 2, size=(30, channels)) * (1 + apart * np.arange(channels))
    labels = np.array(list("abc") * 10, object)
    names = [f"{channel}" for channel in range(channels)]
    cases = SeriesTable.of([Series("one", values, "row 1", labels)], names)
    codec = replace(CODEC, channels=tuple(names))
    found = standardised(codec, labelled_windows(cases, codec, 4), turned=True)
    if (channels, apart) == (3, 1):
        assert found.means == (0, 0, 0) and len(set(found.deviations)) == 1
    else:
        assert min(found.means) > 0 and len(set(found.deviations)) == channels


def write_cases(path: Path, count: int, seed: int) -> Path:
    """Slow and fast waves, one a row."""
    random, lines = np.random.default_rng(seed), ["label," + ",".join(f"v{i}" for i in range(32))]
    for index in range(count):
        period = 16 if index % 2 else 4
        wave = np.sin(2 * np.pi * (np.arange(32) / period + random.random())) + 0.1 * random.normal(size=32)
        lines.append(f"{'slow' if index % 2 else 'fast'}," + ",".join(f"{value:.4f}" for value in wave))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind, as `classes` and `forecast`, and the files that they learned from."""
    folder = tmp_path_factory.mktemp("series")
    write_cases(folder / "waves_TRAIN.csv", 60, 0)
    write_cases(folder / "waves_TEST.csv", 40, 1)
    workbench.train("tiny-classify", data=[folder / "waves_TRAIN.csv"], out=folder / "classes", steps=80)
    steps = np.arange(40)
    lines = ["id,time,value"] + [f"{n},{t},{n + t + np.sin(t)}" for n in range(4) for t in steps]
    (folder / "long.csv").write_text("\n".join(lines))
    settings = ["data.horizon=5", "data.season=6"]
    workbench.train(
        "tiny-forecast", data=[folder / "long.csv"], out=folder / "forecast", steps=8, settings=settings
    )
    return folder


@pytest.mark.parametrize("name", ["classes", "forecast"])
def test_weights_that_are_no_numbers_give_no_answers(runs: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(runs / name, tmp_path / "run")
    damage(tmp_path / "run")
    data = runs / ("waves_TEST.csv" if name == "classes" else "long.csv")
    with pytest.raises(RunFailed, match="weights that are not finite numbers"):
        list(workbench.predict(tmp_path / "run", data))
    with pytest.raises(RunFailed, match="weights that are not finite numbers"):
        workbench.evaluate(tmp_path / "run", data=[data])


STORED = (
    replace(CODEC, means=(1.0,), deviations=(2.0,)).to_json(),
    SeriesCodec("forecast", ("x",), horizon=3, histories=(6,), typical=0.5).to_json(),
)
ODD = st.sampled_from(
    [None, 0, -1, 1, 2**40, 0.5, 1e400, np.nan, "", "a", [], ["a"], ["a", "a"], [0.0], [np.nan], {}]
)


@given(st.sampled_from(STORED).flatmap(lambda one: st.tuples(st.just(one), st.sampled_from(sorted(one)))), ODD)
def test_a_stored_codec_is_refused_or_has_all_that_its_task_needs(
    stored: tuple[dict[str, Any], str], wrong: object
) -> None:
    right, key = stored
    assert SeriesCodec.from_json(right).to_json() == right
    lacking = {name: value for name, value in right.items() if name != key}
    for changed in (lacking, {**right, key: wrong}):
        with contextlib.suppress(BadInput):
            codec = SeriesCodec.from_json(changed)
            assert codec.channels and len(codec.means) == len(codec.deviations) in (0, len(codec.channels))
            assert np.isfinite([codec.typical, codec.naive_smape, codec.naive_mase, *codec.means]).all()
            assert all(0 < value < np.inf for value in codec.deviations)
            assert codec.length and codec.classes if codec.task == "classes" else codec.horizon and codec.histories


@pytest.mark.parametrize(("key", "wrong"), [("means", [1.0, 2.0]), ("deviations", [1.0] * 3), ("season", 0)])
def test_a_codec_whose_parts_do_not_fit_together_is_named(key: str, wrong: object) -> None:
    with pytest.raises(BadInput, match=key):
        SeriesCodec.from_json({**STORED[0], key: wrong})


@pytest.mark.parametrize(
    ("name", "key", "wrong", "message"),
    [
        ("classes", "classes", ["fast", "slow", "still"], "model.classes is 2, and the codec has 3 classes"),
        ("classes", "channels", ["a", "b"], "model.inputs is 1, and the codec has 2 channels"),
        ("forecast", "horizon", 9, "and the codec has 9 steps"),
        ("forecast", "histories", [3], "histories of the codec end at 3 steps"),
    ],
)
def test_a_codec_of_another_network_is_refused(
    runs: Path, tmp_path: Path, name: str, key: str, wrong: object, message: str
) -> None:
    shutil.copytree(runs / name, tmp_path / "run")
    file = tmp_path / "run" / "codec.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "means": [], "deviations": [], key: wrong}))
    with pytest.raises(BadInput, match=message):
        list(workbench.predict(tmp_path / "run", runs / "waves_TEST.csv"))


@pytest.mark.parametrize("channels", [2, 3])
def test_series_of_other_channels_are_refused(runs: Path, tmp_path: Path, channels: int) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"values": [[1, 2, 3, 5]] * channels}) + "\n")
    with pytest.raises(BadInput, match=f"{channels} channels, and the run has 1"):
        list(workbench.predict(runs / "classes", tmp_path / "more.jsonl"))


def test_a_classifier_tells_slow_from_fast(runs: Path) -> None:
    found = {
        score.name: score for score in workbench.evaluate(runs / "classes", data=[runs / "waves_TEST.csv"]).scores
    }
    assert found["accuracy"].value > 0.9 and found["accuracy"].n == 40
    assert found["nats"].value < 0.4
    records = list(workbench.predict(runs / "classes", runs / "waves_TEST.csv", k=1))
    assert len(records) == 40 and all(isinstance(record, PredictionRecord) for record in records)
    named = [record.candidates[0].value for record in records]  # type: ignore[attr-defined]
    assert (
        np.mean([name == ("slow" if n % 2 else "fast") for n, name in enumerate(named)]) == found["accuracy"].value
    )


def test_forecasts_of_lines_have_any_history_and_horizon(runs: Path, tmp_path: Path) -> None:
    lines = [{"id": "one", "values": [5]}, {"id": "gap", "values": [1, None, 3.5]}, {"values": list(range(500))}]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = list(workbench.predict(runs / "forecast", path, settings=("horizon=12", "paths=3")))
    assert [record.id for record in found] == ["one", "gap", "3"]  # type: ignore[attr-defined]
    for record in found:
        assert isinstance(record, ForecastRecord) and len(record.mean) == 12
        assert {len(values) for values in record.quantiles.values()} == {12}
        assert [len(path) for path in record.paths] == [12] * 3
        assert record.mean == record.quantiles["0.5"]
    path.write_text('{"id": 1, "values": [1, "much"]}')
    with pytest.raises(BadInput, match='line 1, value 2: "much" is no number'):
        workbench.predict(runs / "forecast", path)


def test_a_forecast_is_drawn_with_its_band(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = next(iter(workbench.predict(runs / "forecast", runs / "long.csv")))
    Face(sys.stdout, json=False).show(record)
    drawn = capsys.readouterr().out
    assert "0.975" in drawn and "median" in drawn and len(drawn.splitlines()) == 3
    tiny = record.model_copy(update={"mean": tuple(1e-15 * value for value in record.mean)})
    Face(sys.stdout, json=False).show(tiny)
    drawn = capsys.readouterr().out.splitlines()[1].partition("median")[2]
    assert float(drawn.split(",")[0]) == pytest.approx(tiny.mean[0], rel=1e-3)


def test_sampled_futures_follow_the_quantiles() -> None:
    levels = (0.025, 0.1, 0.5, 0.9, 0.975)
    quantiles = np.array([-2.0, -1, 0, 1, 3]) * np.array([1.0, 2, 4])[:, None] + 7
    paths = sampled_paths(Forecasts(quantiles[None], levels), 4000, seed=0)[0]
    for index, level in enumerate(levels[1:-1], 1):
        share = (paths <= quantiles[:, index]).mean(0)
        np.testing.assert_allclose(share, level, atol=0.03)
    assert (paths >= quantiles[:, 0]).all() and (paths <= quantiles[:, -1]).all()
    steps = (paths - 7) / np.array([1.0, 2, 4])
    assert np.corrcoef(steps[:, 1], steps[:, 2])[0, 1] > 0.7


def test_runs_without_a_series_are_refused(runs: Path, tmp_path: Path) -> None:
    workbench.train("tiny-arithmetic", out=tmp_path / "sums", steps=1, settings=["data.instances=20"])
    with pytest.raises(BadInput, match="predict is for runs on places, rationales, series; use linnet generate"):
        workbench.predict(tmp_path / "sums", runs / "long.csv")


def test_forecasts_are_drawn_into_reports_and_files(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "forecasts.svg" in (runs / "forecast" / "report.md").read_text()
    records = [
        one for one in workbench.predict(runs / "forecast", runs / "long.csv") if isinstance(one, ForecastRecord)
    ]
    for name in ("a.svg", "b.svg", "c.png"):
        save_series(records, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="has to end in .svg, .png"):
        save_series(records, tmp_path / "d.jpg")


def test_turning_keeps_lengths_and_angles_between_triples() -> None:
    values = np.random.default_rng(0).normal(size=(4, 9, 6))
    turned = Variation(np.random.default_rng(1), 40.0).turned(values)
    assert not np.allclose(turned, values)
    both, after = values.reshape(4, 9, 2, 3), turned.reshape(4, 9, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(after, axis=-1), np.linalg.norm(both, axis=-1))
    np.testing.assert_allclose((after[:, :, 0] * after[:, :, 1]).sum(-1), (both[:, :, 0] * both[:, :, 1]).sum(-1))
    np.testing.assert_array_equal(Variation(np.random.default_rng(1), 0.0).turned(values), values)


@pytest.mark.parametrize("name", ["forecast", "classes"])
def test_networks_keep_the_contract(name: str) -> None:
    """Costs count the parameters, every tap can be read and replaced, and each parameter has a role."""
    model: Network = classifier()
    rows = labelled_windows(table([list("aabbccabc"), list("abcab")]), CODEC, 3)
    inputs = dict(rows.batch(rows.first, rows.count))
    if name == "forecast":
        model = Residual(ResidualConfig(lengths=(6, 9), outputs=3, blocks=2, layers=1, width=8)).eval()
        window = scaled(np.random.default_rng(0).normal(size=(4, 9)), 0.1)
        inputs = inputs_of(window)
    assert model.costs().parameters == sum(parameter.numel() for parameter in model.parameters())
    kept = model(inputs, keep=tuple(model.taps())).kept
    for tap, axes in model.taps().items():
        assert kept[tap].ndim == len(axes), tap
        edited = model(inputs, edit=((tap, torch.zeros_like),))
        assert edited.hidden.shape == model(inputs).hidden.shape
    groups = model.groups()
    named = [name for part in (groups.matrices, groups.embeddings, groups.vectors) for name, _ in part]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("recipe", ["tiny-forecast", "tiny-classify"])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(runs: Path, tmp_path: Path, recipe: str) -> None:
    data = runs / ("long.csv" if recipe == "tiny-forecast" else "waves_TRAIN.csv")
    options = {"data": [data], "steps": 6, "settings": ["eval_every=2"]}
    if recipe == "tiny-forecast":
        options["settings"] += ["data.horizon=5", "data.season=6"]
    workbench.train(recipe, out=tmp_path / "whole", **options)
    with pytest.raises(Killed):
        workbench.train(recipe, out=tmp_path / "killed", progress=Watching(kill_at=5), **options)
    workbench.resume(tmp_path / "killed")
    agree(tmp_path / "killed", tmp_path / "whole")


def test_scores_of_one_group_say_nothing_of_others() -> None:
    found = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    truth, systems = np.array([0, 1, 1, 0]), {"ours": found, "other": found[::-1]}
    alone, apart = (scored_labels(systems, truth, np.array(units)) for units in ([0, 0, 0, 0], [0, 0, 1, 1]))
    assert {(one.low, one.high) for one in alone.scores if one.name in ("accuracy", "macro_f1", "ece")} == {(0, 1)}
    assert "of one group" in alone.notes[0] and not apart.notes
