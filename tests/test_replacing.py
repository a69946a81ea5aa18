"""What a run leaves behind when it does not begin, what it replaces, and who may write it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import tree
from linnet import workbench
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.errors import BadInput
from linnet.training import sinks
from linnet.training.learner import Learner
from linnet.training.sinks import Sink
from text_corpora import corpus
from tiny_runs import Killed, Watching, agree, train_tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    train_tiny(path)
    return path


class Watched(Watching):
    """Sees what is in a folder when the first step is shown."""

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        super().__init__(1, error)
        self.folder = folder
        self.before: dict[str, bytes] = {}

    def write(self, record: object) -> None:
        if record.kind == "note":
            self.before = tree(self.folder)
        super().write(record)


def failing_before_its_first_step() -> dict[str, tuple[type[BaseException], str, Callable[[Path, bool], object]]]:
    """Ways in which a run does not come to its first step."""

    def beyond_memory(out: Path, force: bool) -> None:
        train_tiny(out, "model.width=100000000", force=force)

    def no_tracker(out: Path, force: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "wandb", None)
            train_tiny(out, 'training.sinks=["wandb"]', force=force)

    def bad_data(out: Path, force: bool) -> None:
        (out.parent / "bad.txt").write_text("no sums at all")
        train_tiny(out, data=[out.parent / "bad.txt"], force=force)

    def nameless_data(out: Path, force: bool) -> None:
        (file := out.parent / os.fsdecode(b"caf\xe9.txt")).write_text("1+1=2\n" * 30)
        try:
            train_tiny(out, data=[file], force=force)
        finally:
            file.unlink()

    def defect(out: Path, force: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "step", lambda *_: 1 / 0)
            train_tiny(out, force=force)

    def interrupted(out: Path, force: bool) -> None:
        # A process that a shell starts in the background ignores this signal; then Python does not raise.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ArithmeticData, "load", lambda *_: signal.raise_signal(signal.SIGINT))
                train_tiny(out, force=force)
        finally:
            signal.signal(signal.SIGINT, before)

    return {
        "beyond the memory": (BadInput, "make the model smaller", beyond_memory),
        "a missing tracker": (BadInput, "pip install", no_tracker),
        "bad data": (BadInput, "bad.txt", bad_data),
        "a file whose name is not UTF-8": (BadInput, "is no UTF-8, so no run can remember it", nameless_data),
        "a defect": (ZeroDivisionError, "", defect),
        "an interrupt": (KeyboardInterrupt, "", interrupted),
    }


@pytest.mark.parametrize("name", failing_before_its_first_step())
def test_a_run_that_does_not_begin_replaces_nothing(tmp_path: Path, finished: Path, name: str) -> None:
    error, words, attempt = failing_before_its_first_step()[name]
    out = tmp_path / "run"
    with pytest.raises(error, match=words or None):
        attempt(out, False)
    assert out.exists() == (name == "an interrupt"), "what is left after an interrupt can be resumed"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(finished, out)
    before = tree(out)
    with pytest.raises(error, match=words or None):
        attempt(out, True)
    assert tree(out) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "bad.txt"}


def test_a_run_is_replaced_when_the_new_one_has_done_a_step(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    old, watched = tree(out), Watched(out)
    with pytest.raises(Killed):
        train_tiny(out, progress=watched, force=True, seed=2)
    assert watched.before == old, "until then the old one is as it was"
    assert sorted(tree(out)) == ["codec.json", "metrics.jsonl", "run.toml"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    workbench.resume(out)
    train_tiny(tmp_path / "other", seed=2)
    agree(out, tmp_path / "other")


def test_a_tracker_that_fails_brings_the_old_run_back(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is installed, and cannot be opened when the first step is done."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = tree(out)
    pytest.importorskip("tensorboard")

    def refuses(*_: object) -> Sink:
        raise ConnectionError("no network")

    monkeypatch.setitem(sinks.TRACKERS, "tensorboard", refuses)
    with pytest.raises(ConnectionError, match="no network"):
        train_tiny(out, 'training.sinks=["tensorboard"]', force=True)
    assert tree(out) == before and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_only_resumed_once_at_a_time(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"

    class Meddling(Watching):
        def write(self, record: object) -> None:
            if record.kind == "step":
                for use in (lambda: workbench.resume(out), lambda: train_tiny(out, force=True)):
                    with pytest.raises(BadInput, match="(run|new) is in use: another process is writing it"):
                        use()
            super().write(record)

    with pytest.raises(Killed):
        train_tiny(out, progress=Watching(5))
    with pytest.raises(Killed):
        workbench.resume(out, progress=Meddling(10))
    workbench.resume(out)
    agree(out, finished)
    out = tmp_path / "new"
    for force in (False, True):
        with pytest.raises(Killed):
            train_tiny(out, progress=Meddling(2), force=force)


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("data.validation_paths", "metrics.jsonl"),
        ("data.tokenizer.file", "codec.json"),
        ("data.store", "checkpoints"),
    ],
)
def test_what_a_run_reads_is_not_replaced_by_it(tmp_path: Path, finished: Path, key: str, file: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = tree(out)
    value = f"['{out / file}']" if key.endswith("paths") else f"'{out / file}'"
    with pytest.raises(
        BadInput, match=f"run would be replaced, and {out / file}, which is to be read, lies in it"
    ):
        workbench.train(
            "tiny-text", out=out, force=True, data=[corpus(tmp_path / "text")], settings=[f"{key}={value}"]
        )
    assert tree(out) == before
