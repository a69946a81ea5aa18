"""Every verb that writes, with a disk that fails, and a process that is killed, at each of its operations in turn.

Afterwards there is the old one or the new one, whole, and the same command does its work.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import tiny_runs
from faults import HIDDEN, Fails, Killed, disk, failing_at, full_from, killed_at, tree, visible
from linnet import files, workbench
from linnet.cli.app import build
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.use import places_run
from linnet.errors import LinnetError
from linnet.search.saving import read_saved
from linnet.training.checkpoint import RunFolder
from text_corpora import corpus
from tiny_runs import Watching, bits, logged, train_tiny

Content = dict[str, bytes]
FAULTS = pytest.mark.parametrize("fails", [killed_at, failing_at, full_from])
TWO_FAULTS = pytest.mark.parametrize("fails", [killed_at, failing_at])  # where each takes long


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


def faulty(
    fails: Callable[[int], Fails], before: Path, act: Callable[[Path], bool]
) -> Iterator[tuple[Path, bool]]:
    """Copies of a folder in which an act met each fault in turn, with whether it ended well nonetheless."""
    for step in range(1, 2000):
        folder = before.parent / f"step{step}"
        shutil.copytree(before, folder)
        with disk(fails(step)) as used:
            try:
                done = act(folder)
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
    for folder, done in faulty(fails, before, lambda folder: linnet(folder, *words)):
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


@TWO_FAULTS
@pytest.mark.parametrize("to", ["hf", "gguf", "run"])
def test_export(before: Path, run: Path, to: str, fails: Callable[[int], Fails]) -> None:
    out = "out.gguf" if to == "gguf" else "out"
    assert linnet(before, "export", run, out, "--to", to, "--checkpoint", "2")
    check(fails, before, "export", run, out, "--to", to, "--force")


@pytest.mark.parametrize(("again", "fails"), [(True, killed_at), (True, failing_at), (False, killed_at)])
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


@TWO_FAULTS
def test_search(before: Path, run: Path, fails: Callable[[int], Fails]) -> None:
    """A saved tree holds times, so it is compared by its rollouts; it is whole where it can be gone on with."""
    words = ("search", run, "1+2=", "--reward", "exact", "--out", "tree", "--samples", "0")
    assert linnet(before, *words, "--rollouts", "4")
    new = (*words, "--rollouts", "6", "--force")
    for folder, done in faulty(fails, before, lambda folder: linnet(folder, *new)):
        rollouts = read_saved(folder / "tree").counts["rollouts"]
        assert rollouts in (4, 6) and (not done or rollouts == 6)
        assert linnet(folder, "search", "--resume", "tree", "--rollouts", "2", "--samples", "0")
        assert read_saved(folder / "tree").counts["rollouts"] == rollouts + 2
        assert tree(folder).keys() == visible(folder).keys(), "nothing is left under hidden names"


# Runs. What is in them is not the same bytes twice, since they hold times; their weights are.

SETTINGS = ("eval_every=1", "keep=1", "data.instances=24", "batch=8", "model.width=16", "model.depth=1")


def train(folder: Path, **options: Any) -> bool:
    return succeeds(
        lambda: workbench.train("tiny-arithmetic", out=folder / "out", steps=2, settings=SETTINGS, **options)
    )


def resume(folder: Path) -> bool:
    return succeeds(lambda: workbench.resume(folder / "out"))


def succeeds(act: Callable[[], object]) -> bool:
    try:
        act()
    except LinnetError:
        return False
    return True


def check_run(folder: Path, wanted: Content) -> None:
    """A whole run, nothing else, and no step listed twice or left out."""
    assert bits(folder / "out") == wanted and os.listdir(folder) == ["out"]
    assert not re.search(HIDDEN, "\n".join(tree(folder)))
    assert [record["step"] for record in logged(folder / "out")] == [1, 2]
    assert (folder / "out" / "record.json").is_file() and (folder / "out" / "report.md").is_file()


@pytest.mark.parametrize(("again", "fails"), [(True, killed_at), (True, failing_at), (False, killed_at)])
def test_train(before: Path, again: bool, fails: Callable[[int], Fails]) -> None:
    assert train(before.parent)
    wanted = bits(before.parent / "out")
    if again:
        assert train(before, seed=7)
    old = visible(before)
    for folder, done in faulty(fails, before, lambda folder: train(folder, force=True)):
        found = visible(folder)
        assert found != old or not done
        assert train(folder, force=True) if found == old else resume(folder)
        check_run(folder, wanted)


@TWO_FAULTS
def test_resume(before: Path, fails: Callable[[int], Fails]) -> None:
    assert train(before.parent)
    wanted = bits(before.parent / "out")
    with pytest.raises(tiny_runs.Killed):
        train(before, progress=Watching(2))
    assert RunFolder(before / "out").steps() == [1]
    for folder, _ in faulty(fails, before, resume):
        assert resume(folder)
        check_run(folder, wanted)


@TWO_FAULTS
def test_resume_beyond_the_end(before: Path, fails: Callable[[int], Fails]) -> None:
    def lengthen(folder: Path) -> bool:
        return succeeds(lambda: workbench.resume(folder / "out", steps=2))

    settings = [*SETTINGS, "schedule=constant"]
    for folder, steps in ((before.parent, 2), (before, 1)):
        workbench.train("tiny-arithmetic", out=folder / "out", steps=steps, settings=settings)
    wanted = bits(before.parent / "out")
    for folder, _ in faulty(fails, before, lengthen):
        assert workbench.show(folder / "out").state in ("finished", "unfinished")
        assert lengthen(folder)
        check_run(folder, wanted)


@TWO_FAULTS
def test_forget(before: Path, fails: Callable[[int], Fails]) -> None:
    write_check_ins(before / "visits.csv", generate(Process(users=5, visits=40, own=5, venues=40)))
    words = ("train", "tiny-places", "--data", "visits.csv", "--out", "out", "--steps", "2")
    assert linnet(before, *words, "--set", "eval_every=1", "--set", "keep=2")
    forget = ("forget", "out", "--user", "u00002")
    shutil.copytree(before, reference := before.parent / "reference")
    assert linnet(reference, *forget)
    wanted = tree(reference)
    del wanted["out/run.toml"]  # a mark of a user is drawn
    for folder, _ in faulty(fails, before, lambda folder: linnet(folder, *forget)):
        assert linnet(folder, "show", "out") and places_run(folder / "out")
        assert linnet(folder, *forget)
        found = tree(folder)
        assert b"forgotten" in found.pop("out/run.toml")
        assert found == wanted
