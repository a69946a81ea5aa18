"""Runs that are given away, and the verbs: a cleaned copy does what the run does; nothing is replaced unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from foreign_models import CORPUS, folder_of
from linnet import workbench
from linnet.cli.app import build
from linnet.domains.places.generated import Process, write_check_ins
from linnet.domains.places.generated import generate as make_check_ins
from linnet.errors import BadInput
from linnet.exchange.hf import read_folder
from linnet.training.checkpoint import RunFolder
from linnet.workbench.copies import paths_of, without_paths
from tiny_runs import Killed, Watching, train_tiny


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adder with averaged weights whose best checkpoint is not its last."""
    path = tmp_path_factory.mktemp("given") / "adder"
    train_tiny(path, "ema=0.9", "data.reverse=none", "data.padded=false", steps=12)
    return path


def test_a_cleaned_copy_does_what_the_run_does(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    record = workbench.export_run(run, copy, to="run")
    prompts = ["12+34=", "7+8=", "99+1="]
    for asked in ({"temperature": 0}, {"n": 3, "seed": 5}):
        given = list(workbench.generate(run, prompts, **asked))  # type: ignore[arg-type]
        assert list(workbench.generate(copy, prompts, **asked)) == given  # type: ignore[arg-type]
    ours, theirs = workbench.evaluate(run, settings=["n=40"]), workbench.evaluate(copy, settings=["n=40"])
    assert ours.scores == theirs.scores
    assert workbench.show(copy).scores == workbench.show(run).scores
    assert workbench.resume(copy).scores == workbench.resume(run).scores
    assert workbench.show(copy).checkpoints == (record.checkpoint,) == (RunFolder(run).best(),)
    checkpoint = RunFolder(copy).at(record.checkpoint)
    assert load_file(checkpoint / "loop.safetensors") == {}, "no optimiser state"
    assert not (checkpoint / "ema.safetensors").exists(), "averaged weights became the weights"
    averaged = load_file(RunFolder(run).at(record.checkpoint) / "ema.safetensors")
    kept = load_file(checkpoint / "weights.safetensors")
    assert kept.keys() == averaged.keys()
    assert all(torch.equal(kept[name], averaged[name]) for name in kept)


def test_a_cleaned_copy_names_no_path_of_the_machine(tmp_path: Path) -> None:
    text = tmp_path / "secret place" / "titles.txt"
    text.parent.mkdir()
    text.write_text("\n".join(f"{line} {i}" for i in range(20) for line in CORPUS), encoding="utf-8")
    kept = text.parent / "own.json"
    asked = [f"data.tokenizer.file={json.dumps(str(kept))}", f"data.store={json.dumps(str(text.parent / 'st'))}"]
    run = tmp_path / "secret place" / "run"
    workbench.train("tiny-text", out=run, data=[text], steps=2, settings=[*asked, "data.tokenizer.vocabulary=400"])
    copy = tmp_path / "copy"
    workbench.export_run(run, copy, to="run")
    for file in copy.rglob("*"):
        if file.is_file():
            assert b"secret place" not in file.read_bytes(), file
            assert str(tmp_path).encode() not in file.read_bytes(), file
    assert 'paths = [\n    "elsewhere/titles.txt",\n]' in (copy / "run.toml").read_text()
    assert "step" in (copy / "metrics.jsonl").read_text()
    prompts = ["The quick", "Größe"]
    ours = list(workbench.generate(run, prompts, temperature=0, max_tokens=8))
    assert list(workbench.generate(copy, prompts, temperature=0, max_tokens=8)) == ours
    # The text that it learned from is not there, so its n-grams are not either; the score is the same.
    mine, theirs = (workbench.evaluate(path, data=[text]).scores[0] for path in (run, copy))
    assert mine.value == theirs.value
    assert (mine.baseline.name, theirs.baseline.name) == ("5-gram", "unigram of the scored text")


def test_only_whole_paths_are_cut() -> None:
    settings = {"a": "/home/p/x.txt", "b": ["hf:name", "relative/y", "/z/w"], "c": {"d": 3, "e": "and/or"}}
    cut = {"a": "elsewhere/x.txt", "b": ["hf:name", "relative/y", "elsewhere/w"], "c": {"d": 3, "e": "and/or"}}
    assert without_paths(settings) == cut
    assert paths_of(settings) == ["/home/p/x.txt", "/z/w"]


def test_a_run_that_did_not_finish_can_be_given_away(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_tiny(tmp_path / "killed", steps=12, progress=Watching(kill_at=7))
    workbench.export_run(tmp_path / "killed", tmp_path / "copy", to="run")
    record = workbench.resume(tmp_path / "copy")
    assert (record.steps, record.path, record.scores) == (4, str(tmp_path / "copy"), ())
    assert json.loads((tmp_path / "copy/record.json").read_text())["path"] == "copy"  # of nobody's folders


def test_other_checkpoints_can_be_written(run: Path, tmp_path: Path) -> None:
    first, *_ = RunFolder(run).steps()
    for to in ("hf", "gguf", "run"):
        record = workbench.export_run(run, tmp_path / to, to=to, checkpoint=first)  # type: ignore[arg-type]
        assert record.checkpoint == first
    opened = workbench.load(run, checkpoint=first)
    brought = read_folder(tmp_path / "hf").model
    assert torch.equal(brought.weights["embedding.weight"], opened.model.embedding.weight)
    with pytest.raises(BadInput, match="no checkpoint of step 999"):
        workbench.export_run(run, tmp_path / "none", checkpoint=999)


def test_nothing_is_replaced_unasked_and_only_what_was_exported(run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for to in ("hf", "run"):
        with pytest.raises(BadInput, match="exists; choose another name, or replace it with --force"):
            workbench.export_run(run, precious, to=to)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="so --force does not replace it"):
            workbench.export_run(run, precious, to=to, force=True)  # type: ignore[arg-type]
        workbench.export_run(run, tmp_path / to, to=to)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="replace it with --force"):
            workbench.export_run(run, tmp_path / to, to=to)  # type: ignore[arg-type]
        workbench.export_run(run, tmp_path / to, to=to, force=True)  # type: ignore[arg-type]
    # A folder may gather GGUF files of several types; each is one that exists or not.
    workbench.export_run(run, precious, to="gguf", types=["f16", "q8_0"])
    with pytest.raises(BadInput, match=r"adder-F16.gguf exists; choose another name, or replace it with --force"):
        workbench.export_run(run, precious, to="gguf", types=["f16"])
    workbench.export_run(run, precious, to="gguf", types=["f16"], force=True)
    with pytest.raises(BadInput, match="is the run itself"):
        workbench.export_run(run, run, to="run", force=True)
    with pytest.raises(BadInput, match="exists; choose another name, or replace it with --force"):
        workbench.import_run(tmp_path / "hf", precious)
    with pytest.raises(BadInput, match="thesis.txt is not a folder"):
        workbench.export_run(run, precious / "thesis.txt" / "x", to="hf")
    names = {"thesis.txt", "adder-F16.gguf", "adder-Q8_0.gguf"}
    assert {file.name for file in precious.iterdir()} == names, "no half-written file is left"


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", "model.positions=learned", "model.mixer=gru", steps=1)
    before = sorted(tmp_path.rglob("*"))
    for to in ("hf", "gguf"):
        with pytest.raises(BadInput, match=r"model.mixer: layer 0 of this model: gru.*model.positions=learned"):
            workbench.export_run(tmp_path / "run", tmp_path / "deep" / "out", to=to)  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before
    workbench.export_run(tmp_path / "run", tmp_path / "copy", to="run")
    assert list(workbench.generate(tmp_path / "copy", ["1+1="])) == list(
        workbench.generate(tmp_path / "run", ["1+1="])
    )


def test_the_verbs(run: Path, tmp_path: Path) -> None:
    result = linnet("export", run, tmp_path / "hf", "--type", "bf16", "--json")
    (record,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert (record["kind"], record["to"], record["family"]) == ("export", "hf", "llama")
    assert record["files"]["model.safetensors"] == (tmp_path / "hf" / "model.safetensors").stat().st_size
    result = linnet("export", run, tmp_path / "one.gguf", "--type", "q8_0")
    assert result.exit_code == 0, result.stderr
    assert "one.gguf" in result.stdout and (tmp_path / "one.gguf").read_bytes()[:4] == b"GGUF"
    assert "no tokenizer is written" in result.stdout
    for source in ("hf", "one.gguf"):
        result = linnet("import", tmp_path / source, "--out", tmp_path / f"run of {source}", "--json")
        (record,) = [json.loads(line) for line in result.stdout.splitlines()]
        assert (record["kind"], record["family"]) == ("import", "llama")
        assert linnet("show", record["path"]).exit_code == 0
    assert "imported" in linnet("runs", tmp_path).stdout
    for wrong, said in (
        (["export", run, tmp_path / "x", "--type", "q8_0"], "a Hugging Face folder has weights of one type"),
        (["export", run, tmp_path / "x", "--to", "run", "--type", "f16"], "--type is for hf and gguf"),
        (["export", run, tmp_path / "x.gguf", "--to", "gguf", "--type", "f16", "--type", "f32"], "is one file"),
        (["export", tmp_path / "none", tmp_path / "x"], "there is no folder"),
        (["import", tmp_path / "none", "--out", tmp_path / "x"], "there is no folder"),
        (["import", tmp_path / "none.gguf", "--out", tmp_path / "x"], "there is no file"),
        (["import", tmp_path / "hf" / "config.json", "--out", tmp_path / "x"], "is not a folder"),
    ):
        result = linnet(*wrong)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
        assert not (tmp_path / "x").exists()


def test_an_import_finds_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "fox")
    assert workbench.import_run("fox").path == "runs/fox"
    with pytest.raises(BadInput, match="exists; choose another name, or replace it with --force"):
        workbench.import_run("fox")
    assert workbench.import_run("fox", force=True).family == "llama"


def test_a_network_of_places_can_be_given_away_but_is_no_llama(tmp_path: Path) -> None:
    visits = tmp_path / "check-ins.csv"
    write_check_ins(visits, make_check_ins(Process(users=8, visits=40, own=6, venues=60)))
    run, copy = tmp_path / "run", tmp_path / "copy"
    workbench.train("places-gru", out=run, data=[visits], steps=1)
    for to in ("hf", "gguf"):
        with pytest.raises(BadInput, match="its network points at past visits"):
            workbench.export_run(run, tmp_path / "out", to=to)  # type: ignore[arg-type]
    record = workbench.export_run(run, copy, to="run")
    assert record.parameters == workbench.resume(run).parameters
    assert str(tmp_path) not in (copy / "run.toml").read_text()
    ours, theirs = (workbench.evaluate(path, data=[visits], split="test") for path in (run, copy))
    assert ours.scores == theirs.scores
