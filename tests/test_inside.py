"""The causal verbs of `linnet inspect`, as a person types them: records, pictures, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.workbench.causal import edge_record
from tiny_runs import train_tiny

APP = build()


def linnet(*words: object) -> Result:
    return CliRunner().invoke(APP, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inside") / "run"
    train_tiny(out, "model.depth=2", "eval_every=9", "data.padded=false", steps=9)
    return out


def record(*words: object) -> dict[str, Any]:
    result = linnet("inspect", *words, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_attributions_add_up(run: Path) -> None:
    found = record("attribute", run, "1+2=", "--answer", "3", "--wrong", "4")
    assert found["kind"] == "attribution" and found["axes"] == ["part", "answer"]
    assert found["labels"]["part"] == [
        "embed",
        "head.0.0",
        "head.0.1",
        "mlp.0",
        "head.1.0",
        "head.1.1",
        "mlp.1",
        "bias",
    ]
    total = np.array(found["values"]).sum(0).mean()
    assert total == pytest.approx(found["facts"]["logit of the model"], abs=1e-4)
    assert len(found["tokens"]) == len(found["labels"]["answer"]) - 1 + 5


@pytest.mark.parametrize("what, shape", [("head", (2, 2)), ("residual", (2,)), ("neuron", (2, 64))])
def test_patches_of_a_pair(run: Path, what: str, shape: tuple[int, ...]) -> None:
    pair = ("1+2=", "1+5=", "--answer", "3", "--wrong", "6")
    found = record("patch", run, *pair, "--what", what)
    assert np.array(found["values"]).shape == shape and found["axes"][0] == "layer"
    by_position = record("patch", run, *pair, "--what", what, "--by-position")
    assert np.array(by_position["values"]).shape == (*shape, len(found["tokens"]))
    if what == "residual":
        assert found["values"][0] == pytest.approx(1, abs=1e-4)


def test_paths_into_a_reader(run: Path) -> None:
    found = record("patch", run, "--into", "v.1.0", "--direct", "-n", 8)
    assert found["kind"] == "path_patching" and found["labels"]["part"][0] == "embed"
    assert found["values"][-3:] == [0, 0, 0]  # nothing behind a reader is on a path into it


@pytest.mark.parametrize("what, parts", [("head", 4), ("part", 6), ("layer", 2), ("neuron", 64)])
def test_ablations(run: Path, what: str, parts: int) -> None:
    layer = ("--layer", 1) if what == "neuron" else ()
    found = record("ablate", run, "--what", what, "-n", 8, "--by", "resample", *layer)
    assert len(found["values"]) == len(found["labels"]["part"]) == parts and found["facts"]["n"] == 8
    scored = record("ablate", run, "--what", what, "-n", 8, "--metric", "score", *layer)
    assert scored["unit"] == "change of the score" and min(scored["further"][0]["values"]) > 0.3
    late = record("ablate", run, "--what", what, "-n", 8, "--by", "resample", "--layer", 1)
    chosen = [name.split(".")[1] == "1" for name in found["labels"]["part"]]
    assert late["values"] == pytest.approx([v for v, one in zip(found["values"], chosen, strict=True) if one])


def test_edges_stand_beside_their_approximations(run: Path) -> None:
    found = record("edges", run, "-n", 8, "--method", "eap", "--method", "acdc")
    names = [grid["name"] for grid in found["further"]]
    assert names[2:] == ["eap", "acdc"] and len(found["values"]) == 46
    facts = found["facts"]
    assert -1 <= facts["rank correlation of eap with exact"] <= 1 and "area of faithfulness (CPR) of acdc" in facts
    short = record("edges", run, "-n", 8, "--method", "eap", "--no-curves")
    assert short["values"] == pytest.approx(found["values"], abs=1e-5)


def test_subsets_and_their_values(run: Path) -> None:
    found = record("subsets", run, "-n", 8)
    table = found["further"][1]["values"]
    assert len(table) == 64 and len(found["values"]) == 6
    assert sum(found["values"]) == pytest.approx(table[-1] - table[0], abs=1e-5)
    some = record("subsets", run, "-n", 8, "--part", "heads", "--part", "mlp.1")
    assert some["labels"]["part"] == ["head.0.0", "head.0.1", "head.1.0", "head.1.1", "mlp.1"]
    drawn = record("subsets", run, "-n", 8, "--orders", 20)
    assert drawn["facts"]["orders"] == 20 and sum(drawn["values"]) == pytest.approx(sum(found["values"]), abs=1e-3)


def test_cases_come_from_a_file_and_records_go_into_files(run: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    lines = [
        {"clean": "1+2=", "corrupt": "1+3=", "answer": "3", "wrong": "4"},
        {"clean": "2+2=", "corrupt": "5+3="},
    ]
    cases.write_text("\n".join(json.dumps(line) for line in lines[:1] * 2))
    found = record("patch", run, "--file", cases)
    assert found["facts"]["n"] == 2
    out = tmp_path / "patch.npz"
    assert linnet("inspect", "patch", run, "--file", cases, "--out", out).exit_code == 0
    np.testing.assert_allclose(np.load(out)["values"], found["values"], rtol=1e-5)
    assert linnet("inspect", "patch", run, "--file", cases, "--out", out).exit_code == 2
    shown = linnet("inspect", "patch", run, "--file", cases).stdout
    assert "head of the clean run in the corrupt run" in shown and "half of the 95 % interval" in shown


def test_pieces_of_text_are_cases_too(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"the {word} cat sat on the mat, and then it went home again.\n" for word in "abcdefgh" * 4)
    )
    workbench.train("tiny-text", out=tmp_path / "run", data=[text], steps=2, settings=["eval_every=2"])
    found = record("ablate", tmp_path / "run", "--data", text, "-n", 4)
    assert found["facts"]["n"] == 4 and len(found["tokens"]) == 16


def test_a_recurrent_layer_shows_what_is_left_of_each_position(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", "model.mixer=gru", "eval_every=4", steps=4)
    found = record("attention", tmp_path / "run", "1+2=")
    values = np.array(found["values"])
    tokens = len(found["tokens"])
    assert values.shape == (1, 1, tokens, tokens) and not np.triu(values[0, 0], 1).any()
    assert ((values.sum(-1) > 0) & (values.sum(-1) <= 1 + 1e-6)).all()
    shown = linnet("inspect", "attention", tmp_path / "run", "1+2=").stdout
    assert "head mean of the channels" in shown and shown.startswith("share of each earlier candidate")
    refused = linnet("inspect", "attention", tmp_path / "run", "1+2=", "--head", 0)
    assert refused.exit_code == 2 and "has no heads" in refused.stderr
    parts = record("ablate", tmp_path / "run", "-n", 4)
    assert parts["labels"]["part"] == ["mixer.0", "mlp.0"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("patch", "1+2=", "1+22="), "the clean prompt has"),
        (("patch", "1+2="), "this analysis compares two prompts"),
        (("patch", "1+2=", "1+2=", "--answer", "3", "--wrong", "3"), "no effect to divide by"),
        (("patch", "--into", "v.7.0", "-n", 4), 'no reader "v.7.0"'),
        (("subsets", "-n", 4, "--part", "head.0.9"), 'no part "head.0.9"; did you mean "head.0.'),
        (("subsets", "-n", 4, "--part", "mlp.0"), "at least two parts"),
        (("edges", "-n", 4, "--method", "eapig"), 'no method "eapig"'),
        (("ablate", "-n", 4, "--what", "neuron", "--layer", 2), "there is no layer 2"),
        (("ablate", "1+2=", "--data", "sums.txt"), "leave it out beside a prompt"),
        (("ablate", "--answer", "3"), "give the clean prompt too"),
        (("patch", "--direct"), "name one with --into"),
        (("patch", "--into", "v.1.0", "--estimate"), "leave out --what, --by-position and --estimate"),
        (("ablate", "1+2=", "--file", "x.jsonl"), "exclude each other"),
        (("ablate", "1+2=", "--by", "resample"), "one prompt has no other one"),
        (("ablate", "1+2="), "the mean of one prompt is that prompt"),
        (("ablate", "1+2=", "--out", "a.pdf"), "has to end in .npz"),
    ],
)
def test_what_cannot_be_asked_is_said(run: Path, words: tuple[object, ...], message: str) -> None:
    result = linnet("inspect", words[0], run, *words[1:])
    assert result.exit_code == 2 and message in result.stderr, result.stderr


@pytest.mark.parametrize(
    "lines, message",
    [
        (["{}"], 'line 1: a case needs a "clean" prompt'),
        (['{"clean": "1+2=", "corupt": "1+3="}'], 'unknown key "corupt"; did you mean "corrupt"'),
        ([""], "has no cases"),
        (['{"clean": "1+2=", "answer": "3"}', '{"clean": "1+2=", "answer": "34"}'], "need one length"),
    ],
)
def test_a_wrong_file_of_cases_is_named(run: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(lines))
    result = linnet("inspect", "attribute", run, "--file", cases)
    assert result.exit_code == 2 and message in result.stderr, result.stderr


def test_known_edges_give_the_area_under_the_curve(run: Path) -> None:
    import torch

    from linnet.workbench.cases import analysis_of

    analysis = analysis_of(run, needs_corrupt=True, n=4)
    true = torch.zeros(46, dtype=torch.bool)
    true[:3] = True
    facts = edge_record(analysis.subject, ["eap"], true=true, curves=False).facts
    assert 0 <= float(facts["AUROC of exact"]) <= 1 and "AUROC of eap" in facts
