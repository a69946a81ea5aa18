"""Runs on places in use: predictions, misses and maps, forgetting, copies that tell less, the verbs, the bench."""

from __future__ import annotations

import io
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from bench.places import bench_places
from faults import tree
from linnet import workbench
from linnet.cli.app import build
from linnet.cli.pictures import draw
from linnet.domains.places.cleaning import Reading, ingest
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.sample_files import read_histories, sample_lines
from linnet.domains.places.samples import PUBLISHED, divide, make_samples
from linnet.domains.places.use import (
    departure_text,
    disclosure,
    forget,
    kernels,
    misses,
    places_run,
    predict,
    users_of_places,
)
from linnet.domains.places.verbs import visit_table
from linnet.domains.places.visits import legacy_ids, mark_of
from linnet.errors import BadInput, RunFailed
from linnet.files import write_lines
from linnet.records import BenchRecord
from linnet.training.checkpoint import RunFolder
from places_tables import random_visits
from tiny_runs import Killed, Watching, bits, damage


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def linnet_table(record: BenchRecord) -> str:
    out = io.StringIO()
    draw([record], out)
    return out.getvalue()


@pytest.fixture(scope="module")
def stays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Visits with coordinates of places: user, start, end, place, lon, lat."""
    visits = random_visits(1, users=5, visits=80)
    path = tmp_path_factory.mktemp("use") / "stays.csv"
    start, end = (np.datetime_as_string(time.astype("datetime64[s]")) for time in (visits.start, visits.end))
    lon, lat = visits.lonlat[visits.place].T  # type: ignore[index]
    rows = zip(
        visits.users[visits.user].tolist(), start, end, visits.places[visits.place].tolist(), lon, lat, strict=True
    )
    path.write_text("user,start,end,place,lon,lat\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def runs(stays: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("tiny-places", "places-gru"):
        asked = ["data.recipe={by='time', same_part=false, skip_days=0, least=1}", "eval_every=3", "batch=32"]
        asked.append("training.snapshots=2")
        workbench.train(recipe, out=folder / recipe, data=[stays], steps=3, settings=asked)
    return {recipe: folder / recipe for recipe in ("tiny-places", "places-gru")}


VISITS = [
    {"place": 2, "start": "2024-05-31T08:05:00", "duration": 50},
    {
        "place": "somewhere new",
        "start": "2024-05-31T12:00:00Z",
        "end": "2024-05-31T13:00:00Z",
        "lon": 116.0,
        "lat": 40.0,
    },
    {"place": 4, "time": 1717180000},
]


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    path = tmp_path / "histories.jsonl"
    lines = [{"id": "a", "visits": VISITS}, {"id": 7, "user": 101, "visits": VISITS[:1]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_history_without_an_id_is_shown_without_one(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"visits": [{"place": 1, "start": "2024-05-31 18:05:00"}]}\n')
    shown = linnet("predict", runs["tiny-places"], "--file", tmp_path / "h.jsonl", "-k", "1")
    assert re.fullmatch(r"\d+ \d+\.\d%\n", shown.stdout), shown.stdout


def test_predictions_are_probabilities_of_places(runs: dict[str, Path], histories: Path) -> None:
    first, second = predict(runs["tiny-places"], histories, k=50)
    assert (first.id, second.id) == ("a", 7)
    assert {"somewhere new", 2, 4} <= {candidate.value for candidate in first.candidates}
    for record in (first, second):
        shares = [candidate.probability for candidate in record.candidates]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6
    dense, _ = predict(runs["places-gru"], histories, k=3)
    assert len(dense.candidates) == 3
    hard, _ = predict(runs["places-gru"], histories, k=3, settings=("filter=hard",))
    assert len(hard.candidates) == 3
    with pytest.raises(BadInput, match='filter is none, hard or soft, not "warm"'):
        list(predict(runs["places-gru"], histories, settings=("filter=warm",)))
    warm = [
        predict(runs["places-gru"], histories, settings=(f"temperature={two}",)).records for two in ("2", "2.0")
    ]
    assert warm[0] == warm[1]
    for wrong, words in (("0", "must be above 0"), ("warm", "needs a number")):
        with pytest.raises(BadInput, match=words):
            predict(runs["places-gru"], histories, settings=(f"temperature={wrong}",))
    with pytest.raises(BadInput, match='unknown key "filter"'):
        list(predict(runs["tiny-places"], histories, settings=("filter=hard",)))


@pytest.mark.parametrize("recipe", ["tiny-places", "places-gru"])
def test_weights_that_are_no_numbers_give_no_answers(
    runs: dict[str, Path], stays: Path, histories: Path, tmp_path: Path, recipe: str
) -> None:
    shutil.copytree(runs[recipe], tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(RunFailed, match="weights that are not finite numbers"):
        predict(tmp_path / "run", histories)
    with pytest.raises(RunFailed, match="weights that are not finite numbers"):
        workbench.evaluate(tmp_path / "run", data=[stays])


def test_a_history_does_not_depend_on_the_other_lines(
    runs: dict[str, Path], histories: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.jsonl"
    alone.write_text(histories.read_text().splitlines()[1] + "\n")
    (one,) = predict(runs["tiny-places"], alone, k=4)
    _, two = predict(runs["tiny-places"], histories, k=4)
    assert [c.value for c in one.candidates] == [c.value for c in two.candidates]
    np.testing.assert_allclose(
        [c.probability for c in one.candidates], [c.probability for c in two.candidates], atol=1e-5
    )


def test_published_samples_are_histories(runs: dict[str, Path], tmp_path: Path) -> None:
    visits = random_visits(1, users=5, visits=80)
    part = divide(visits, PUBLISHED)
    samples = make_samples(visits, part, PUBLISHED)
    write_lines(tmp_path / "s.jsonl", sample_lines(visits, samples, legacy_ids(visits, part)))
    _, _, codec = places_run(runs["tiny-places"])
    found = read_histories(tmp_path / "s.jsonl", codec, Reading())
    order = np.argsort(samples.part, kind="stable")
    for index in range(0, len(order), 17):
        one = samples.rows[samples.starts[order[index]] : samples.starts[order[index] + 1]]
        two = found.samples.rows[found.samples.starts[index] : found.samples.starts[index + 1]]
        assert [visits.places[p] for p in visits.place[one]] == found.visits.places[
            found.visits.place[two]
        ].tolist()
        assert (visits.weekday(local=False)[one] == found.visits.weekday()[two]).all()
        assert (np.diff(visits.start[one]) == np.diff(found.visits.start[two])).all()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ('{"id": 1}', 'needs "visits"'),
        ('{"visits": [{"start": 5}]}', "rows without place: 1"),
        ('{"visits": [{"place": 5}]}', "rows without a time: 1"),
        ('{"visits": [{"place": 5, "start": "soon"}]}', "times that cannot be read: 1"),
        ('{"visits": [{"place": 5, "start": 9, "end": 5}]}', "stays that end before they begin: 1"),
        ('{"visits": [{"place": 5, "start": 9, "lon": 95, "lat": 100}]}', "impossible coordinates: 1"),
        ("", "holds no history"),
    ],
)
def test_broken_histories_are_named(runs: dict[str, Path], tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(BadInput, match=said):
        list(predict(runs["tiny-places"], path))


@pytest.mark.parametrize("recipe", ["tiny-places", "places-gru"])
def test_a_forgotten_user_is_gone(runs: dict[str, Path], tmp_path: Path, recipe: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[recipe], run)
    opened, _, before = places_run(run)
    number = before.users.index(102) + FIRST
    mine = set(before.moves.stays[before.moves.stays[:, 0] == number, 1].tolist())
    rest = set(before.moves.stays[before.moves.stays[:, 0] != number, 1].tolist())
    assert list((run / "snapshots").iterdir()), "weights of earlier steps hold the user, too"
    said = forget(run, "102")
    assert not (run / "snapshots").exists()
    opened, _, codec = places_run(run)
    assert (
        102 not in codec.users and number not in codec.moves.pairs[:, 0] and number not in codec.moves.stays[:, 0]
    )
    assert (codec.moves.stays[:, 0] != number).all()
    for place in mine - rest:
        assert codec.places[place - FIRST] is None
    weights = RunFolder(run).tensors(opened.step, "weights.safetensors")
    if "user.weight" in weights:
        assert not weights["user.weight"][number].any() and weights["user.weight"].any()
    assert RunFolder(run).tensors(opened.step, "loop.safetensors") == {}
    assert "is forgotten" in said.text
    before = tree(run)
    assert forget(run, "102").text == "user 102 was forgotten before"
    assert tree(run) == before
    stored = tomllib.loads((run / "run.toml").read_text())["data"]
    del stored["paths"]  # a folder may have any number
    assert all(re.fullmatch("[0-9a-f]+:[0-9a-f]{32}", mark) for mark in stored.pop("forgotten"))
    assert "102" not in json.dumps(stored)
    with pytest.raises(BadInput, match="is not in this run"):
        forget(run, "999")


SPLIT = ("data.recipe={by='time', same_part=false, skip_days=0, least=1}", "eval_every=3", "batch=32")


@pytest.mark.parametrize("recipe", ["tiny-places", "places-gru"])
def test_a_forgotten_user_does_not_come_back(stays: Path, histories: Path, tmp_path: Path, recipe: str) -> None:
    """Resuming a run that was not finished ends with the bits of one that never met this user."""
    run, without = tmp_path / "run", tmp_path / "without.csv"
    with pytest.raises(Killed):
        workbench.train(recipe, out=run, data=[stays], steps=9, settings=SPLIT, progress=Watching(8))
    assert RunFolder(run).steps() == [3, 6]
    said = forget(run, "102")
    assert "linnet resume trains this run from its beginning, without this user" in said.text
    assert len(RunFolder(run).steps()) == 1 and next(iter(predict(run, histories))), "meanwhile it can be used"
    workbench.resume(run)
    rows = stays.read_text().splitlines(keepends=True)
    without.write_text("".join(row for row in rows if not row.startswith("102,")))
    workbench.train(recipe, out=tmp_path / "never", data=[without], steps=9, settings=SPLIT)
    assert bits(run) == bits(tmp_path / "never")
    assert (run / "codec.json").read_bytes() == (tmp_path / "never" / "codec.json").read_bytes()
    assert "102" not in places_run(run)[2].users


def test_samples_of_a_forgotten_user_are_left_out(stays: Path, tmp_path: Path) -> None:
    table = visit_table([stays], SPLIT[:1], "", "", "").table()
    path, without = tmp_path / "samples.jsonl", tmp_path / "without.jsonl"
    legacy = legacy_ids(table.visits, table.part)
    write_lines(path, sample_lines(table.visits, table.samples, legacy))
    lines = path.read_text().splitlines(keepends=True)
    without.write_text("".join(line for line in lines if json.loads(line)["user"] != 102))

    def fingerprint(file: Path, *marks: str) -> str:
        return PlacesData(paths=(str(file),), forgotten=marks).load(0).train.rows.fingerprint()

    marks = (mark_of("102", "salt"), mark_of("nobody", "pepper"))
    assert fingerprint(path, *marks) == fingerprint(without) != fingerprint(path)


def test_copies_tell_less(runs: dict[str, Path], stays: Path, tmp_path: Path) -> None:
    _, _, codec = places_run(runs["places-gru"])
    few = int((users_of_places(codec) < 4).sum())
    assert any(f"{few} by fewer than 4" in line for line in disclosure(codec, 4))
    kept = workbench.export_run(runs["places-gru"], tmp_path / "kept", to="run", settings=["fewer_than=4"])
    assert "5 users by name" in kept.notes[1]
    for rare in ("drop", "coarsen"):
        out = tmp_path / rare
        record = workbench.export_run(runs["places-gru"], out, to="run", settings=[f"rare={rare}", "fewer_than=4"])
        assert "0 users by name" in record.notes[1] and f"{few} places visited by fewer than 4" in record.notes[2]
        _, _, less = places_run(out)
        assert set(less.users) == {None}
        rows = np.flatnonzero(users_of_places(codec) < 4)
        for place in rows.tolist():
            assert (less.places[place] is None) == (rare == "drop")
            assert all(less.cell_of_place[level][place] == 1 for level in less.levels[1:])
        for level in less.levels:
            held = [name is not None for name in less.cells[level]]
            assert held == [at in less.cell_of_place[level] for at, _ in enumerate(held, FIRST)]
        lost = f"lost the names of {few} places" in " ".join(workbench.evaluate(out, data=[stays]).notes)
        assert lost == (rare == "drop")
    weights = RunFolder(tmp_path / "drop").tensors(3, "weights.safetensors")
    assert not weights["user.weight"][FIRST:].any()
    assert not weights["embed.tables.3.weight"][torch.from_numpy(rows) + FIRST].any()


def test_days_that_are_numbers_are_not_shown_as_dates(tmp_path: Path) -> None:
    rows = [
        f"{user},{day},{600 + 10 * user},{day},{700 + 10 * user},p{day % 3},3"
        for user in (1, 2)
        for day in (5, 12)
    ]
    table = "user,start_day,start_min,end_day,end_min,place,weekday\n" + "\n".join(rows)
    (tmp_path / "days.csv").write_text(table)
    visits = ingest([tmp_path / "days.csv"]).visits
    assert [departure_text(visits, row) for row in range(4)] == [
        "day 0 (Thu) 11:50", "day 7 (Thu) 11:50", "day 0 (Thu) 12:00", "day 7 (Thu) 12:00",
    ]  # fmt: skip


def test_misses_and_their_map(runs: dict[str, Path], stays: Path, tmp_path: Path) -> None:
    found = misses(runs["tiny-places"], [stays], n=5)
    assert 0 < len(found) <= 5
    assert [miss.expected_probability for miss in found] == sorted(
        (m.expected_probability for m in found), reverse=True
    )
    assert all(miss.expected != miss.went for miss in found)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", miss.left) for miss in found)
    pytest.importorskip("folium")
    page = tmp_path / "misses.html"
    misses(runs["tiny-places"], [stays], n=5, map_file=page)
    assert "crimson" in page.read_text()
    with pytest.raises(BadInput, match="exists"):
        misses(runs["tiny-places"], [stays], n=5, map_file=page)
    with pytest.raises(BadInput, match="runs of the scorer"):
        misses(runs["places-gru"], [stays])


def test_kernels_of_the_likeliest_places(runs: dict[str, Path], histories: Path, tmp_path: Path) -> None:
    whole = kernels(runs["tiny-places"], histories, k=1000)
    shares = np.array(whole.values)
    assert shares.shape == (whole.facts["candidates"], len(whole.labels["kernel"])) and (shares >= 0).all()
    assert (shares.sum(0) <= 1).all() and shares.sum(0).max() > 0.9  # shares of what all visits get
    predicted = next(iter(predict(runs["tiny-places"], histories, k=3)))
    best = kernels(runs["tiny-places"], histories, user="a", k=3)
    assert best.labels["candidate"] == tuple(f"{one.value} {one.probability:.1%}" for one in predicted.candidates)
    np.testing.assert_array_equal(best.values, shares[:3])
    for run, options, message in (
        ("tiny-places", {"user": "b"}, "no history 'b'"),
        ("tiny-places", {"member": 3}, "the last member of this run is 0"),
        ("places-gru", {}, "only runs of the scorer"),
    ):
        with pytest.raises(BadInput, match=message):
            kernels(runs[run], histories, **options)
    shown = linnet("inspect", "kernels", runs["tiny-places"], "--file", histories, "-k", 2)
    assert shown.exit_code == 0 and "share of a kernel" in shown.stdout


def test_the_verbs(runs: dict[str, Path], stays: Path, histories: Path, tmp_path: Path) -> None:
    checked = linnet("data", "check", "places", stays, "--json")
    assert json.loads(checked.stdout)["rows"]["users"] == 5
    assert "columns (stays): user=user" in linnet("data", "check", "places", stays).stdout
    made = linnet("data", "make", "places", "--out", tmp_path / "c.csv", "--users", 3, "--visits", 9, "--json")
    assert json.loads(made.stdout)["rows"]["visits"] == 27
    said = linnet("predict", runs["tiny-places"], "--file", histories, "-k", 2, "--json")
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["prediction"] * 2 and len(lines[0]["candidates"]) == 2
    assert "2 histories, " in said.stderr and "ms a prediction" in said.stderr
    assert "somewhere new" in linnet("predict", runs["tiny-places"], "--file", histories).stdout
    assert "went to" in linnet("inspect", "misses", runs["tiny-places"], "--data", stays, "-n", 3).stdout
    wrong = linnet("generate", runs["tiny-places"], "x")
    assert wrong.exit_code == 2 and "use predict, eval and the verbs of its domain" in wrong.stderr
    shown = linnet("show", runs["tiny-places"])
    assert shown.exit_code == 0


def test_the_bench_compares_before_it_measures(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    write_check_ins(path, generate(Process(users=4, visits=30, own=5, venues=40)))
    small = [("model.places", 0), ("model.cells", [0, 0, 0]), ("batch", 8)]
    found = list(bench_places([path], small, repeats=1))
    assert found[0].ours <= 1e-7 and set(found[0].peers) >= {"copy", "frequency", "recency", "hard filter"}
    assert set(found[1].peers) == {"one-hot", "loops"}
    for name, seconds in found[1].peers.items():
        assert seconds is not None and found[1].ratios[name] == pytest.approx(found[1].ours / seconds, rel=0.5)
    assert "less is better" in linnet_table(found[1]) and "less is better" not in linnet_table(found[2])
    assert [record.unit for record in found[2:]] == ["histories/s", "histories/s", "ms"]


def test_runs_on_places_resume(stays: Path, tmp_path: Path) -> None:
    asked = ["data.recipe={by='time', same_part=false, skip_days=0, least=1}", "eval_every=2", "batch=32"]
    whole = workbench.train("tiny-places", out=tmp_path / "whole", data=[stays], steps=4, settings=asked)
    workbench.train("tiny-places", out=tmp_path / "cut", data=[stays], steps=4, settings=asked)
    cut = RunFolder(tmp_path / "cut")
    shutil.rmtree(cut.at(4))
    cut.record.unlink()
    resumed = workbench.resume(tmp_path / "cut")
    one, two = (RunFolder(tmp_path / name).tensors(4, "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [score.value for score in resumed.scores] == [score.value for score in whole.scores]


def test_codecs_of_places_come_back() -> None:
    visits = random_visits(2)
    codec = PlacesCodec.of(visits, divide(visits, PUBLISHED))
    gone = codec.forget(101).codec
    assert PlacesCodec.from_json(json.loads(json.dumps(gone.to_json()))).to_json() == gone.to_json()
    assert codec.decode(codec.encode(f"{codec.places[0]} nowhere").ids) == f"{codec.places[0]} <unseen>"


def test_predictions_and_misses_name_their_checkpoint(runs: dict[str, Path], stays: Path, histories: Path) -> None:
    run = runs["tiny-places"]
    assert list(predict(run, histories, checkpoint=3)) == list(predict(run, histories))
    asked = ("predict", run, "--file", histories), ("inspect", "misses", run, "--data", stays)
    for arguments in asked:
        refused = linnet(*arguments, "--checkpoint", "1")
        assert refused.exit_code == 2 and "has no checkpoint of step 1; there is 3" in refused.stderr
