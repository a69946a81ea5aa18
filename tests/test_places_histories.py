"""Predicting from histories after users were forgotten or dropped, and what wrong or repaired ones are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.domains.places.codec import FIRST
from linnet.domains.places.use import Follower, forget, places_run, predict
from linnet.errors import BadInput
from linnet.workbench import load


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def neighbours(path: Path, *, numbers: bool = False) -> Path:
    """Three people who share no place and no cell: user a goes round a0, a1, a2, and so on."""
    lines = ["user,start,duration,place,lon,lat"]
    for who, name in enumerate("abc"):
        for step in range(60):
            when = np.datetime64("2024-01-01T08:00") + np.timedelta64(7 * step, "h")
            place = (100 * who + step % 3) if numbers else f"{name}{step % 3}"
            lines.append(f"{who if numbers else name},{when},60,{place},{116 + who + 0.3 * (step % 3)},{40 + who}")
    path.write_text("\n".join(lines) + "\n")
    return path


ASKED = ["data.recipe={by='time', same_part=false, skip_days=0, least=1}", "eval_every=3", "batch=32"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("neighbours")
    table = neighbours(folder / "stays.csv")
    workbench.train("tiny-places", out=folder / "alone", data=[table], steps=3,
                    settings=[*ASKED, "data.suggestions=0"])  # fmt: skip
    workbench.train("places-gru", out=folder / "gru", data=[table], steps=3, settings=ASKED)
    numbers = neighbours(folder / "numbers.csv", numbers=True)
    workbench.train("tiny-places", out=folder / "numbers", data=[numbers], steps=3, settings=ASKED)
    return {name: folder / name for name in ("alone", "gru", "numbers")}


def visit(place: object, start: object, **more: object) -> dict[str, object]:
    return {"place": place, "start": start, "duration": 60, **more}


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def named(run: Path, file: Path, k: int = 20) -> list[dict[object, float]]:
    return [{c.value: c.probability for c in record.candidates} for record in predict(run, file, k=k)]


@pytest.mark.parametrize("fresh", [0, 1, 30])
def test_forgetting_one_user_leaves_the_predictions_of_others(
    runs: dict[str, Path], tmp_path: Path, fresh: int
) -> None:
    file = write(
        tmp_path / "h.jsonl",
        {"id": 1, "user": "b", "visits": [visit(f"b{n % 3}", 86_400 + 7200 * n) for n in range(8)]},
        *[{"id": n, "visits": [visit(f"new{n}", 0), visit("c1", 7200)]} for n in range(fresh)],
    )
    shutil.copytree(runs["alone"], tmp_path / "run")
    before = named(tmp_path / "run", file)
    forget(tmp_path / "run", "a")
    after = named(tmp_path / "run", file)
    assert [set(one) for one in before] == [set(one) for one in after]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose([two[place] for place in one], list(one.values()), atol=1e-5)
    for number, one in enumerate(after[1:]):
        assert set(one) == {f"new{number}", "c1"}


@pytest.mark.parametrize("recipe", ["alone", "gru"])
def test_exports_without_rare_places_predict(runs: dict[str, Path], tmp_path: Path, recipe: str) -> None:
    """Every place here is known to one user alone, so all of them lose their names."""
    workbench.export_run(runs[recipe], tmp_path / "less", to="run", settings=["rare=drop"])
    file = write(tmp_path / "h.jsonl", {"id": 1, "visits": [visit("a0", 0), visit("gym", 7200)]})
    said = linnet("predict", tmp_path / "less", "--file", file)
    assert said.exit_code == 0, said.stderr
    assert "forgotten" not in said.stdout and "None" not in said.stdout
    (only,) = named(tmp_path / "less", file)
    assert set(only) == {"a0", "gym"} if recipe == "alone" else only["<unseen>"] == pytest.approx(1)


def test_forgotten_cells_hold_no_place_without_coordinates(runs: dict[str, Path]) -> None:
    _, _, codec = places_run(runs["alone"])
    less = codec.forget("a").codec
    for level in less.levels:
        assert less.cell_ids(level, np.zeros(3, np.uint64)).tolist() == [1, 1, 1]
    assert (codec.cell_ids(codec.levels[-1], codec.cells_of_places(codec.levels[-1])) >= FIRST).all()


GOOD = visit("a", "2024-03-01T08:00:00")
LISTS = {"h_place": [1], "h_start_min": [5], "h_duration": [5], "h_day_diff": [0], "h_weekday": [1]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"visits": [{**GOOD, "lon": 116.3214, "lat": [1]}]},
            "visit 1, lat: a text or a number is needed, not a list",
        ),
        ({"visits": [{**GOOD, "lon": 39.9, "lat": 116.3214}]}, "longitude and latitude look swapped"),
        ({"visits": [{**GOOD, "place": ["a"]}]}, "visit 1, place: a text or a number is needed, not a list"),
        ({"visits": [{**GOOD, "place": None}]}, "rows without place: 1 (h.jsonl line 1, visit 1); refused"),
        ({"visits": [{**GOOD, "place": 1.5}]}, "place ids with a fraction: 1 (h.jsonl line 1, visit 1)"),
        ({"visits": [{**GOOD, "place": " "}]}, "rows without place: 1"),
        ({"user": {"a": 1}, "visits": [GOOD]}, "line 1, user: a text or a number is needed, not an object"),
        ({"id": [1], "visits": [GOOD]}, "line 1, id: a text or a whole number is needed"),
        ({"visits": [7]}, "line 1, visit 1: a visit is an object, not an integer"),
        ({"visits": [visit("a", 1e30)]}, "times that cannot be read: 1 (h.jsonl line 1, visit 1)"),
        ({"visits": [visit("a", [5])]}, "visit 1, start: a text or a number is needed, not a list"),
        ({"visits": [visit("a", True)]}, "visit 1, start: a text or a number is needed, not true or false"),
        ({"visits": [visit("a", 10**30)]}, "visit 1, start: a number of 31 digits is too large"),
        ({**LISTS, "h_place": [1, 2]}, "differ in length"),
        ({**LISTS, "h_start_min": ["x"]}, "h_start_min.0 is 'x', not an integer"),
    ],
)
def test_wrong_fields_are_named_and_coordinates_are_not_shown(
    runs: dict[str, Path], tmp_path: Path, line: dict[str, object], said: str
) -> None:
    shown = linnet("predict", runs["alone"], "--file", write(tmp_path / "h.jsonl", line))
    assert shown.exit_code == 2 and said in shown.stderr and "h.jsonl line 1" in shown.stderr, shown.stderr
    assert "116.3214" not in shown.stderr


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        ({"lon": "116.3214E", "lat": 40}, "coordinates that are no numbers: 1 (h.jsonl line 1, visit 2)"),
        ({"duration": "long"}, "durations that are no numbers of minutes: 1 (h.jsonl line 1, visit 2)"),
        ({"duration": 1e300}, "durations that are no numbers of minutes: 1 (h.jsonl line 1, visit 2)"),
        ({"end": "later"}, "end times that cannot be read: 1 (h.jsonl line 1, visit 2)"),
        ({"place": None}, "rows without place: 1 (h.jsonl line 1, visit 2)"),
    ],
)
def test_one_wrong_field_of_several_visits_is_noted(
    runs: dict[str, Path], tmp_path: Path, wrong: dict[str, object], note: str
) -> None:
    second = visit("b", "2024-03-01T18:00:00")
    third = {**visit("a", "2024-03-02T08:00:00"), "lon": 116.5, "lat": 40}
    file = write(tmp_path / "h.jsonl", {"visits": [GOOD, {**second, **wrong}, third]})
    shown = linnet("predict", runs["alone"], "--file", file)
    assert shown.exit_code == 0 and note in shown.stderr and "116." not in shown.stderr, shown.stderr


@pytest.mark.parametrize("time", [float("nan"), 10**30, "2024-01-01", True])
def test_a_follower_refuses_what_is_no_time(runs: dict[str, Path], time: Any) -> None:
    follower = Follower.of(load(runs["numbers"]))
    for times in ((time,), (0, time)):
        with pytest.raises(BadInput, match="seconds since 1970"):
            follower.visit(1, 2, *times)
    with pytest.raises(BadInput, match="nothing is known"):
        follower.next(1)


def test_a_follower_reads_numbers_of_numpy_and_moments_of_a_clock(runs: dict[str, Path]) -> None:
    follower, other = Follower.of(load(runs["numbers"])), Follower.of(load(runs["numbers"]))
    follower.visit(np.int64(1), np.int32(2), np.float64(7200.9))  # type: ignore[arg-type]
    other.visit(1, 2, 7200)
    assert follower.next(1) == other.next(1)
    with pytest.raises(BadInput, match="the place: an id is a text or a whole number, not '  '"):
        other.visit(1, "  ", 9000)


def test_a_follower_and_predictions_agree(runs: dict[str, Path], tmp_path: Path) -> None:
    """Suggestions too: what a follower was told in local seconds is what the history says."""
    told = [(place, 86_400 + 7200 * at) for at, place in enumerate((100, 101, 100, "gym", 101))]
    file = write(tmp_path / "h.jsonl", {"user": 0, "visits": [visit(place, start) for place, start in told]})
    (wanted,) = named(runs["numbers"], file, k=50)
    follower = Follower.of(load(runs["numbers"]))
    for place, start in told:
        follower.visit("0", str(place), start, start + 3600)  # read as the numbers that the run knows
    assert {c.value: c.probability for c in follower.next(0, k=50)} == pytest.approx(wanted, abs=2e-5)
    assert set(wanted) > {100, 101, "gym"}, "some places are suggested"


def test_ids_are_read_as_the_run_writes_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    told = [
        {"user": user, "visits": [visit(place, 86_400), visit(other, 90_000)]}
        for user, place, other in ((1, 100, 101), ("1", "100", "101"), (1.0, "100.0", " 101 "))
    ]
    one, *others = named(runs["numbers"], write(tmp_path / "h.jsonl", *told))
    assert {100, 101} <= set(one)
    for other in others:
        assert other == pytest.approx(one)
    (texts,) = named(runs["alone"], write(tmp_path / "t.jsonl", {"visits": [visit(7, 0)]}))
    assert set(texts) == {"7"}


def test_histories_are_repaired_by_the_rules_of_tables_with_a_note(runs: dict[str, Path], tmp_path: Path) -> None:
    clean = [visit("a0", 0), visit("a1", 7200), visit("a2", 14_400)]
    messy = [clean[1], {**clean[0], "duration": 600}, clean[2], dict(clean[2])]
    wanted = write(tmp_path / "w.jsonl", {"visits": [{**clean[0], "duration": 120}, *clean[1:]]})
    file = write(tmp_path / "m.jsonl", {"visits": messy})
    assert named(runs["alone"], file) == [pytest.approx(named(runs["alone"], wanted)[0])]
    said = linnet("predict", runs["alone"], "--file", file).stderr
    for words in (
        "rows out of the order of time: 1 (m.jsonl line 1, visit 2); sorted by user and start",
        "duplicate rows: 1 (m.jsonl line 1, visit 4); the first one kept",
        "overlapping stays: 1 (m.jsonl line 1, visit 2); the earlier stay ends when the later begins",
        "ms a prediction",
    ):
        assert words in said
    assert "rows" not in linnet("predict", runs["alone"], "--file", wanted).stderr
