"""Every verb that writes, with a disk that fails, and a process that is killed, at each of its operations in turn.

Afterwards there is the old one or the new one, whole, and the same command does its work.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from faults import Fails, Killed, disk, failing_at, full_from, killed_at, tree, visible
from linnet import files
from linnet.cli.app import build
from text_corpora import corpus
from tiny_runs import train_tiny

FAULTS = pytest.mark.parametrize("fails", [killed_at, failing_at, full_from])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug of this machine, so a test need not wait for its disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "adder"
    train_tiny(path, "eval_every=2", steps=4)
    return path


@functools.cache
def command_line() -> Any:
    return get_command(build())  # building it takes longer than most of what is done here


def linnet(folder: Path, *words: str | Path) -> bool:
    """Whether the command line does this in a folder; what goes wrong is said in words."""
    text = io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(text), redirect_stderr(text):
        code = command_line().main(list(map(str, words)), "linnet", standalone_mode=False)
    assert "defect of linnet" not in text.getvalue() and "Traceback" not in text.getvalue(), text.getvalue()
    return not code


def faulty(fails: Callable[[int], Fails], before: Path, *words: str | Path) -> Iterator[tuple[Path, bool]]:
    """Copies of a folder in which a command met each fault in turn, with whether it ended well nonetheless."""
    for step in range(1, 2000):
        folder = before.parent / f"step{step}"
        shutil.copytree(before, folder)
        with disk(fails(step)) as used:
            try:
                done = linnet(folder, *words)
            except Killed:
                done = False
        if len(used.done) < step:
            assert done and step > 4
            return
        for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            files.tidy_within(inside)  # as the next call that writes there does
        yield folder, done
        shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError("there is no end")


def check(fails: Callable[[int], Fails], before: Path, *words: str | Path, by_file: bool = False) -> None:
    """Old or new after every fault. `by_file`: a verb that writes several files into a folder that is not its own
    leaves each of them old or new."""
    shutil.copytree(before, reference := before.parent / "reference")
    assert linnet(reference, *words)
    old, new = visible(before), visible(reference)
    assert old != new or "--force" in words
    for folder, done in faulty(fails, before, *words):
        found = visible(folder)
        if by_file:
            assert old.keys() <= found.keys() <= new.keys()
            assert all(content in (old.get(name), new[name]) for name, content in found.items())
        else:
            assert found in (old, new), sorted(found)
        assert not done or found == new
        assert linnet(folder, *words, *([] if "--force" in words or found == old else ["--force"]))
        assert tree(folder) == new, "the same command does its work, and nothing is left under hidden names"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    folder = tmp_path / "before"
    folder.mkdir()
    return folder


@FAULTS
@pytest.mark.parametrize("to", ["hf", "gguf", "run"])
def test_export(before: Path, run: Path, to: str, fails: Callable[[int], Fails]) -> None:
    out = "out.gguf" if to == "gguf" else "out"
    assert linnet(before, "export", run, out, "--to", to, "--checkpoint", "2")
    check(fails, before, "export", run, out, "--to", to, "--force")


@FAULTS
@pytest.mark.parametrize("again", [True, False])
def test_import(before: Path, run: Path, again: bool, fails: Callable[[int], Fails]) -> None:
    model = before.parent / "model"
    assert linnet(before, "export", run, model)
    if again:
        assert linnet(before, "export", run, before.parent / "older", "--checkpoint", "2")
        assert linnet(before, "import", before.parent / "older", "--out", "out")
    check(fails, before, "import", model, "--out", "out", *(["--force"] if again else []))


@FAULTS
@pytest.mark.parametrize(
    "words",
    [
        ("arithmetic", "--out", "out", "--instances", "20"),
        ("places", "--out", "out.csv", "--users", "3", "--visits", "20"),
        ("samples", "--data", "visits.csv", "--out", "out.jsonl.gz"),
        ("visits", "--data", "visits.csv", "--out", "out.csv.gz"),
        ("visits", "--data", "visits.csv", "--out", "out.parquet"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}" if words[0] == "visits" else words[0],
)
def test_data_make(before: Path, words: tuple[str, ...], fails: Callable[[int], Fails]) -> None:
    assert linnet(before, "data", "make", "places", "--out", "visits.csv", "--users", "4", "--visits", "40")
    command = ("data", "make", *words)
    if words[0] in ("arithmetic", "places"):
        assert linnet(before, *command, "--seed", "7")
    else:
        (before / words[-1]).write_text("old")
    check(fails, before, *command, "--force", by_file=words[0] == "arithmetic")


@FAULTS
def test_tokenizer_train(before: Path, fails: Callable[[int], Fails]) -> None:
    corpus(before / "corpus.txt", 40)
    for name in ("tokenizer.json", "counts.tsv"):
        (before / name).write_text("old")
    words = ("tokenizer", "train", "--data", "corpus.txt", "--out", "tokenizer.json", "--counts", "counts.tsv")
    check(fails, before, *words, "--vocabulary", "300", "--force", by_file=True)


@FAULTS
def test_inspect(before: Path, run: Path, fails: Callable[[int], Fails]) -> None:
    (before / "out.npz").write_text("old")
    check(fails, before, "inspect", "attention", run, "1+2=", "--out", "out.npz", "--force")
