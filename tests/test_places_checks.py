"""What a person reads and gets from `data check`, `data make visits` and `eval`: refusals, settings, clusters."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.domains.places import recipes
from linnet.domains.places.cleaning import ingest
from linnet.domains.places.data import PlacesData
from linnet.domains.places.samples import CHECK_INS, PUBLISHED, GivenRecipe
from linnet.training.settings import changed, parse, to_toml
from places_tables import random_visits

READ = ["data.recipe.by=time", "data.recipe.same_part=false", "data.recipe.skip_days=0", "data.recipe.least=1"]


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def table(
    path: Path, *, users: tuple[int, ...] = (0, 1, 2), columns: str = "user,start,end,place,lon,lat"
) -> Path:
    """Stays of some of five people; the columns are chosen by name."""
    visits = random_visits(1, users=5, visits=80)
    start, end = (np.datetime_as_string(time.astype("datetime64[s]")) for time in (visits.start, visits.end))
    lon, lat = visits.lonlat[visits.place].T  # type: ignore[index]
    split = np.array(["train", "test"])[(visits.user * 0 + np.arange(len(visits)) % 75 > 55).astype(int)]
    known = {"user": visits.users[visits.user], "start": start, "end": end, "place": visits.place, "lon": lon,
             "lat": lat, "split": split}  # fmt: skip
    names = columns.split(",")
    rows = [
        ",".join(str(known[name][row]) for name in names) for row in np.flatnonzero(np.isin(visits.user, users))
    ]
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def check(*arguments: str | Path) -> tuple[int, list[str]]:
    said = linnet("data", "check", "places", *arguments, "--json")
    return said.exit_code, json.loads(said.stdout)["problems"]


def test_a_check_ends_as_training_would(tmp_path: Path) -> None:
    good = table(tmp_path / "good.csv")
    assert check(good, *(f"--set={key}" for key in READ)) == (0, [])
    lines = good.read_text().splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([*lines, lines[5]]) + "\n")
    code, said = check(tmp_path / "twice.csv", *(f"--set={key}" for key in READ))
    assert code == 0 and any("duplicate rows: 1" in problem for problem in said)
    code, said = check(good, "--columns", "time=tss")
    assert code == 2 and 'has no column "tss"' in said[0]
    code, said = check(good, "--tz", "Mars/Olympus")
    assert code == 2 and "Mars/Olympus" in said[0]
    late = [
        lines[0] + ",split",
        *(f"{line},{'test' if row % 5 else 'train'}" for row, line in enumerate(lines[1:])),
    ]
    (tmp_path / "leak.csv").write_text("\n".join(late) + "\n")
    code, said = check(tmp_path / "leak.csv")
    assert code == 2 and any(problem.startswith("leak:") for problem in said)


def test_a_part_that_nobody_wrote_is_named_with_the_rows_of_each(tmp_path: Path) -> None:
    path = table(tmp_path / "v.csv", columns="user,start,end,place,split")
    code, said = check(path)
    assert code == 2
    assert said[0].startswith("empty split: the validation part has no samples (visits: train ")
    assert said[0].endswith("validation 0, test 57): no row of the split column says validation")
    assert "all_parts=false" not in "".join(said), "that would give no validation rows either"
    refused = linnet("train", "tiny-places", "--data", path, "--out", tmp_path / "run")
    assert refused.exit_code == 2 and "no row of the split column says validation" in refused.stderr
    code, said = check(table(tmp_path / "w.csv"), "--set", "recipe.by=time", "--set", "recipe.least=60")
    assert code == 2 and "would give" in said[0] and "data.recipe.least=1" in said[0]


def test_what_was_repaired_stands_beside_a_refusal(tmp_path: Path) -> None:
    text = table(tmp_path / "v.csv", columns="user,start,end,lon,lat").read_text().splitlines()
    far = [line.rsplit(",", 2)[0] + f",{row / 10},{row / 20}" for row, line in enumerate(text[1:], 1)]
    (tmp_path / "noise.csv").write_text("\n".join([text[0], *far]) + "\n")
    refused = linnet("train", "tiny-places", "--data", tmp_path / "noise.csv", "--out", tmp_path / "run")
    assert refused.exit_code == 2 and f"none of the {len(far)} rows is left" in refused.stderr
    assert f"stays in no cluster: {len(far)} (noise.csv line 2" in refused.stderr


def test_wrong_arithmetic_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"task": "add", "expr": "1+2", "result": "4"}\n')
    wrong = linnet("data", "check", "arithmetic", tmp_path / "train.jsonl", "--json")
    assert wrong.exit_code == 2 and "1 wrong answers" in json.loads(wrong.stdout)["problems"][0]
    (tmp_path / "train.jsonl").write_text('{"task": "add", "expr": "1+2", "result": "3"}\n')
    assert linnet("data", "check", "arithmetic", tmp_path / "train.jsonl").exit_code == 0
    (tmp_path / "test.jsonl").write_text('{"task": "add", "expr": "1+2", "result": "3"}\n')
    leaking = linnet("data", "check", "arithmetic", tmp_path, "--json")
    assert leaking.exit_code == 2 and json.loads(leaking.stdout)["refused"]


def test_a_recipe_is_set_field_by_field() -> None:
    run = changed(recipes.places(), [("data.recipe.calendar", "local"), ("most", 5)])
    assert isinstance(run.data, PlacesData)
    assert run.data.recipe == GivenRecipe(calendar="local", most=5)
    assert run.data.recipe.over(PUBLISHED) == PUBLISHED.model_copy(update={"calendar": "local", "most": 5})
    again = parse(tomllib.loads(to_toml(run)), "run.toml")
    assert again.data == run.data
    assert GivenRecipe(most=0).over(CHECK_INS).most is None, "0 is no bound"


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_written_visits_are_read_as_the_same(tmp_path: Path, ending: str) -> None:
    raw = table(tmp_path / "raw.csv", columns="user,start,end,lon,lat,split")
    made = linnet("data", "make", "visits", "--data", raw, "--local", "+08:00", "--out", tmp_path / f"v.{ending}")
    assert made.exit_code == 0 and "numbers of clusters" in made.stdout
    first = ingest([raw]).visits
    again = ingest([tmp_path / f"v.{ending}"]).visits
    assert again.places.tolist() == first.places.tolist() and (again.place == first.place).all()
    assert (again.start == first.start).all() and (again.end == first.end).all() and (again.offset == 28800).all()
    assert again.part is not None and (again.part == first.part).all()
    assert all((again.cells[level] == ids).all() for level, ids in first.cells.items())
    assert linnet("data", "make", "visits", "--data", raw, "--out", tmp_path / f"v.{ending}").exit_code == 2


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on coordinates alone, and its table."""
    folder = tmp_path_factory.mktemp("clustered")
    path = table(folder / "stays.csv", columns="user,start,end,lon,lat")
    workbench.train(
        "tiny-places", out=folder / "run", data=[path], steps=2, settings=[*READ, "eval_every=2", "batch=32"]
    )
    return folder / "run", path


def test_numbers_of_other_clusters_are_refused(clustered: tuple[Path, Path], tmp_path: Path) -> None:
    run, path = clustered
    assert linnet("eval", run, "--data", path, "--split", "validation").exit_code == 0
    other = table(tmp_path / "other.csv", users=(3, 4), columns="user,start,end,lon,lat")
    refused = linnet("eval", run, "--data", other, "--split", "validation")
    assert refused.exit_code == 2
    assert "numbers are another place than in training" in refused.stderr and "make visits" in refused.stderr
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    warned = linnet("eval", run, "--data", copy, "--split", "validation", "--json")
    assert warned.exit_code == 0 and "warning: copy.csv names no places" in warned.stderr


@pytest.mark.parametrize("verb", [["eval"], ["inspect", "misses"]])
def test_scoring_says_what_was_repaired(clustered: tuple[Path, Path], tmp_path: Path, verb: list[str]) -> None:
    run, path = clustered
    lines = path.read_text().splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([*lines, lines[5]]) + "\n")
    said = linnet(*verb, run, "--data", tmp_path / "twice.csv", "--split", "validation", "--json")
    assert said.exit_code == 0, said.stderr
    assert "duplicate rows: 1 (twice.csv line" in said.stderr and "guessed: " in said.stderr
    assert all(json.loads(line)["kind"] in ("scores", "miss") for line in said.stdout.splitlines())
