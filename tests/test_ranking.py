"""How runs are listed: their ranks within recipe, score and data, and the settings that differ."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from linnet import workbench
from linnet.errors import BadInput
from linnet.records import ListedRunRecord
from linnet.workbench.runs import differing_keys, rises
from tiny_runs import TINY, Killed, Watching, train_tiny


def test_runs_are_ranked_with_the_settings_that_differ(tmp_path: Path) -> None:
    for name, settings in {"b": ("lr=0.02",), "a": ("lr=1e-5",), "c": ("lr=0.02", "model.depth=2")}.items():
        train_tiny(tmp_path / "runs" / name, *settings, steps=8)
    with pytest.raises(Killed):
        train_tiny(tmp_path / "runs" / "stopped", progress=Watching(5), steps=8)
    (tmp_path / "runs" / "no run").mkdir()
    listed = workbench.runs([tmp_path / "runs"])
    assert [row.rank for row in listed] == [1, 2, 3, None]
    assert Path(listed[-1].path).name == "stopped" and listed[-1].value is None
    assert [row.state for row in listed] == ["finished"] * 3 + ["unfinished"]
    assert [row.step for row in listed] == [8, 8, 8, 4]
    values = [row.value for row in listed[:3]]
    assert values == sorted(values, reverse=True) and {row.score for row in listed[:3]} == {"exact"}
    assert {tuple(row.settings) for row in listed} == {("model.depth", "optim.lr")}
    by_name = {Path(row.path).name: row.settings for row in listed}
    assert by_name["c"] == {"model.depth": 2, "optim.lr": 0.02}
    only = workbench.runs([tmp_path / "runs" / "a", tmp_path / "runs" / "b"])
    assert {tuple(row.settings) for row in only} == {("optim.lr",)}
    assert all(isinstance(row, ListedRunRecord) for row in only)


def test_runs_of_other_recipes_are_ranked_apart(tmp_path: Path) -> None:
    for name, lr in {"a": 0.01, "b": 0.02}.items():
        train_tiny(tmp_path / name, f"lr={lr}", steps=8)
    workbench.train("arithmetic", out=tmp_path / "other", settings=TINY, steps=8)
    rows = {Path(row.path).name: row for row in workbench.runs([tmp_path])}
    assert sorted((rows["a"].rank or 0, rows["b"].rank or 0)) == [1, 2] and rows["other"].rank == 1
    assert list(rows["a"].settings) == ["optim.lr"], "what differs between recipes would be nearly everything"
    assert rows["other"].settings == {}


def test_a_run_is_ranked_by_its_first_score_that_is_a_number(tmp_path: Path) -> None:
    for name, lr in {"a": 0.01, "b": 0.02}.items():
        train_tiny(tmp_path / name, f"lr={lr}", steps=8)
        path = tmp_path / name / "record.json"
        record = json.loads(path.read_text())
        kept = len(record["scores"]) if name == "b" else 1
        for score in record["scores"][:kept]:
            score.update(value=None, low=None, high=None)
        path.write_text(json.dumps(record))
    first, last = workbench.runs([tmp_path])
    assert (first.rank, last.rank, last.value) == (1, None, None) and first.value is not None
    assert math.isnan(workbench.show(tmp_path / "a").scores[0].value)


def test_runs_with_other_tokens_are_ranked_by_their_characters(tmp_path: Path) -> None:
    for name, (token, character) in {"long": (5.0, 1.5), "short": (3.0, 2.5)}.items():
        train_tiny(tmp_path / name, steps=8)
        path = tmp_path / name / "record.json"
        record = json.loads(path.read_text())
        values = {"nats_per_token": token, "nats_per_char": character}
        scores = [record["scores"][0] | {"name": key, "value": value} for key, value in values.items()]
        path.write_text(json.dumps(record | {"scores": scores}))
    found = [(Path(row.path).name, row.score, row.value) for row in workbench.runs([tmp_path])]
    assert found == [("long", "nats_per_char", 1.5), ("short", "nats_per_char", 2.5)]


def test_a_folder_without_runs_has_none(tmp_path: Path) -> None:
    assert workbench.runs([tmp_path]) == []
    with pytest.raises(BadInput, match="there is no folder .*nowhere"):
        workbench.runs([tmp_path / "nowhere"])


def test_likelihoods_are_better_when_they_are_low() -> None:
    assert [rises(name) for name in ("exact", "exact.depth=2", "acc@1", "mrr")] == [True] * 4
    assert [rises(name) for name in ("nats_per_char", "bits_per_byte", "smape", "ece")] == [False] * 4


def test_a_setting_that_only_some_runs_have_differs() -> None:
    assert differing_keys([{"a": 1, "recipe": "x"}, {"a": 1, "b": None, "recipe": "y"}, {"a": 1, "b": 2}]) == ["b"]
