"""Settings of runs on places that a network has not, and what is said of runs whose scores need a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.places import drawn, prepared
from linnet import workbench
from linnet.cli.app import build
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.settings import CopyConfig
from linnet.domains.places.use import Follower
from linnet.domains.places.verbs import visit_table
from linnet.errors import BadInput
from linnet.training.resolve import parameters
from linnet.training.settings import changed
from linnet.workbench.open import load
from linnet.workbench.train import made


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def check_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "check-ins.csv"
    write_check_ins(path, generate(Process(users=8, visits=40, own=5, venues=80)))
    return path


@pytest.fixture(scope="module")
def runs(check_ins: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("tiny-places", "places-gru"):
        workbench.train(recipe, out=folder / recipe, data=[check_ins], steps=2, settings=["eval_every=2"])
    return {recipe: folder / recipe for recipe in ("tiny-places", "places-gru")}


IDLE = ("data.jitter=120", "data.suggestions=3", "data.cut=1", "data.every_visit=false")


def test_the_scorer_has_no_filter(runs: dict[str, Path], check_ins: Path, tmp_path: Path) -> None:
    history = tmp_path / "h.jsonl"
    history.write_text('{"visits": [{"place": "gym", "start": 0}]}\n')
    run, out = runs["tiny-places"], tmp_path / "out"
    verbs: tuple[tuple[str | Path, ...], ...] = (
        ("train", "tiny-places", "--data", check_ins, "--out", out, "--steps", "1"),
        ("eval", run, "--data", check_ins, "--split", "test"),
        ("predict", run, "--file", history),
    )
    for verb in verbs:
        refused = linnet(*verb, "--set", "filter=soft")
        assert refused.exit_code == 2 and 'unknown key "filter"' in " ".join(refused.stderr.split()), (
            refused.stderr
        )


def test_levels_of_cells_can_be_set_for_the_scorer() -> None:
    assert changed(made("places"), [("levels", [11, 13])]).data.levels == (11, 13)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "setting", ["stays.metres=0", "stays.minutes=-5", "clusters.metres=-3", "clusters.least=0"]
)
def test_rules_of_stays_and_places_have_limits(setting: str) -> None:
    with pytest.raises(BadInput, match="has to be"):
        visit_table([], [setting], "", "", "")


def test_copying_networks_name_the_three_coarsest_levels(tmp_path: Path) -> None:
    rows = [f"{user},2024-01-{day:02},p{day % 3},8.{day % 3},47.5" for user in "ab" for day in range(1, 30)]
    (tmp_path / "t.csv").write_text("user,time,place,lon,lat\n" + "\n".join(rows))
    levels = ["data.levels=[5,9,11,13]"]
    record = workbench.train("places-gru", out=tmp_path / "g", data=[tmp_path / "t.csv"], steps=1, settings=levels)
    names = {score.name for score in record.scores}
    assert {"cell5.acc@1", "cell9.acc@1", "cell11.acc@1"} <= names and "cell13.acc@1" not in names


def test_three_weights_of_levels_are_one_too_few() -> None:
    with pytest.raises(BadInput, match="level_weights: four weights are needed: of three levels of cells, coarse"):
        changed(made("places-gru"), [("model.level_weights", [0.1, 0.2, 0.3])])
    with pytest.raises(BadInput, match="a list of four numbers is needed, each with a digit before its point"):
        changed(made("places-gru"), [("model.level_weights", "[.1, .2, .3, .4]")])


@pytest.mark.parametrize("setting", IDLE)
def test_settings_that_change_nothing_are_refused(check_ins: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(
        BadInput, match=f"does not use {setting.partition('=')[0]}: .* reads places and cells of the history"
    ):
        workbench.train("places-gru", out=tmp_path / "r", data=[check_ins], settings=[setting])
    assert not (tmp_path / "r").exists()


def test_full_information_is_not_read_by_copying_networks(runs: dict[str, Path], check_ins: Path) -> None:
    for recipe, said in (("places-gru", True), ("tiny-places", False)):
        shown = linnet("eval", runs[recipe], "--data", check_ins, "--set", "information=full")
        assert ("its own scores are those of data.information=same" in " ".join(shown.stderr.split())) == said


def test_a_copy_without_names_says_that_its_scores_differ(
    runs: dict[str, Path], check_ins: Path, tmp_path: Path
) -> None:
    copied = workbench.export_run(runs["tiny-places"], tmp_path / "copy", to="run", settings=["rare=coarsen"])
    assert "scores of the people it was trained on change" in copied.notes[-1]
    before = workbench.evaluate(runs["tiny-places"], data=[check_ins], split="test").notes
    *read, note = workbench.evaluate(tmp_path / "copy", data=[check_ins], split="test").notes
    assert tuple(read) == before
    assert "this run has lost the names of its users" in note


def test_show_counts_the_parameters(runs: dict[str, Path]) -> None:
    for run in runs.values():
        network = load(run).network
        shown = workbench.show(run)
        assert shown.parameters == sum(parameter.numel() for parameter in network.parameters()) > 0
        said = linnet("show", run).stdout
        assert f"{shown.parameters:,}" in said and "FLOPs" not in said and "training memory" not in said


def test_followers_refuse_copying_networks(runs: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="a follower needs the scorer"):
        Follower.of(load(runs["places-gru"]))


def test_the_bench_draws_what_its_networks_hold() -> None:
    with drawn(()) as files:
        run, material = prepared(files, ())
    assert isinstance(run.model, CopyConfig) and run.model.places == 1190
    assert material.train.rows is not None and len(material.train.rows) < 4000


def test_the_bench_takes_tables_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    write_check_ins(path, generate(Process(users=300, visits=40, venues=3000)))
    run, _ = prepared([path], ())
    assert parameters(run) > made("places-gru").training.most_parameters  # type: ignore[operator]
