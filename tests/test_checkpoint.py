"""The run folder: written whole or not at all, read only when it is what was written, and never unpickled."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faults import Fails, Killed, disk, failing_at, full_from, killed_at
from linnet import files
from linnet.errors import BadInput, RunFailed
from linnet.training.checkpoint import RUN, Checkpoint, LoopState, RunFolder, load_weights

SOURCE = Path(__file__).parents[1] / "src" / "linnet"
FILES = ["weights.safetensors", "ema.safetensors", "loop.safetensors", "loop.json"]


def checkpoint_of(step: int, size: int = 6, **loop: float) -> Checkpoint:
    """A small checkpoint whose values follow from its step."""
    values = torch.arange(size, dtype=torch.float32) / 7 + step
    state = LoopState(step=step, tokens=100 * step, best_loss=1 / 3, best_step=step, data="abc")
    return Checkpoint(
        {"embedding.weight": values.view(2, -1), "final_norm.weight": values.view(3, -1).T},
        {"embedding.weight": values.view(2, -1) * 2, "final_norm.weight": values.view(3, -1).T * 2},
        {"adamw/embedding.weight/exp_avg": -values, "adamw/embedding.weight/step": torch.tensor(float(step))},
        replace(state, **loop),
    )


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    assert one.ema is not None and other.ema is not None
    pairs = [(one.weights, other.weights), (one.ema, other.ema), (one.optim, other.optim)]
    return one.loop == other.loop and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.settings.write_text("format = 1\n")
    return made


def test_a_checkpoint_comes_back_as_it_was(folder: RunFolder) -> None:
    folder.save(checkpoint_of(20))
    assert equal(folder.read(20), checkpoint_of(20))
    assert names(folder.checkpoints) == ["000020", *(f"000020/{name}" for name in sorted(FILES))]


def test_the_same_values_have_the_same_bytes(folder: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    folder.save(checkpoint_of(20))
    other.save(checkpoint_of(20))
    for name in FILES:
        assert (folder.at(20) / name).read_bytes() == (other.at(20) / name).read_bytes(), name


def test_weights_have_at_most_one_metadata_key(folder: RunFolder) -> None:
    folder.save(checkpoint_of(20))
    for name in FILES[:3]:
        content = (folder.at(20) / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert len(header.get("__metadata__", {})) <= 1


def test_nothing_is_ever_unpickled() -> None:
    """Neither by name nor through a function that unpickles unseen."""
    forbidden = re.compile(
        r"\b(import|from) pickle|\bpickle\.|torch\.load\b|torch\.save\b|allow_pickle|"
        r"joblib|\bdill\b|shelve|marshal|"
        r"(broadcast|gather|scatter|send|recv)_object|read_pickle"
    )
    for path in SOURCE.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not forbidden.search(line.partition("#")[0]), f"{path.name}, line {number}: {line.strip()}"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "altered", "swapped", "a folder"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    folder: RunFolder, name: str, damage: str
) -> None:
    folder.save(checkpoint_of(20))
    folder.save(checkpoint_of(40))
    path = folder.at(40) / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "altered":
            path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "swapped":
            shutil.copy(folder.at(20) / name, path)
        case "a folder":
            path.mkdir()
    notes: list[str] = []
    found = folder.newest(notes.append)
    assert found is not None and equal(found, checkpoint_of(20))
    assert len(notes) == 1 and str(folder.at(40)) in notes[0] and "left aside" in notes[0]
    assert name == "loop.json" or name in notes[0]


@settings(max_examples=60)
@given(name=st.sampled_from(FILES), position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_altered_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, position: float, flip: int
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("flips") / "run")
    folder.save(checkpoint_of(20))
    path = folder.at(20) / name
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    found = folder.newest(lambda text: None)
    assert found is None or (name == "loop.json" and equal(found, checkpoint_of(20))), "white space may change"


def test_without_a_whole_checkpoint_there_is_none(folder: RunFolder) -> None:
    assert folder.newest(pytest.fail) is None
    for step in (20, 40):
        folder.save(checkpoint_of(step))
        (folder.at(step) / "loop.json").write_text("[]")
    notes: list[str] = []
    assert folder.newest(notes.append) is None
    assert [str(folder.at(step)) in text for step, text in zip((40, 20), notes, strict=True)] == [True, True]


def test_the_newest_and_the_best_stay(folder: RunFolder) -> None:
    for step in (10, 20, 30, 40, 50):
        folder.save(checkpoint_of(step, best_step=min(step, 20)))
        folder.prune(2, step, min(step, 20))
    assert folder.steps() == [20, 40, 50]
    assert folder.best() == 20


def test_a_broken_checkpoint_does_not_push_out_whole_ones(folder: RunFolder) -> None:
    """A run that went on from step 20 because 40 was broken keeps what it writes."""
    for step in (20, 40):
        folder.save(checkpoint_of(step))
    (folder.at(40) / "weights.safetensors").write_bytes(b"")
    folder.save(checkpoint_of(30))
    folder.prune(1, 30, 20)
    found = folder.newest(lambda text: None)
    assert found is not None and found.loop.step == 30


def test_the_best_checkpoint_may_be_gone(folder: RunFolder) -> None:
    assert folder.best() is None
    folder.save(checkpoint_of(30, best_step=10))
    assert folder.best() == 30


@pytest.mark.parametrize("form", [".000040.0123abcd.part", ".000040.123"])
def test_what_a_killed_save_leaves_behind_is_not_a_checkpoint(folder: RunFolder, form: str) -> None:
    folder.save(checkpoint_of(20))
    half = folder.checkpoints / form
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert folder.steps() == [20]
    folder.save(checkpoint_of(60))
    assert not half.exists()


@pytest.mark.parametrize("fails", [failing_at, full_from])
def test_a_failing_write_leaves_the_last_checkpoint_and_no_half_one(
    folder: RunFolder, fails: Callable[[int], Fails]
) -> None:
    folder.save(checkpoint_of(20))
    for step in range(1, 100):
        before = names(folder.path)
        with disk(fails(step)):
            try:
                folder.save(checkpoint_of(40))
                break
            except RunFailed as error:
                assert "step 40 could not be written" in str(error)
                assert f"the last good checkpoint is {folder.at(20)}" in str(error)
        files.tidy_within(folder.checkpoints)
        assert names(folder.path) == before
        assert equal(folder.read(20), checkpoint_of(20))
    assert step > 12
    assert equal(folder.read(40), checkpoint_of(40))


def test_a_save_that_is_killed_at_any_operation_leaves_old_or_new(folder: RunFolder) -> None:
    """Also where a checkpoint of the same step, broken or from before, is replaced."""
    folder.save(checkpoint_of(20))
    folder.save(checkpoint_of(40, worse=1))
    for step in range(1, 100):
        with disk(killed_at(step)):
            try:
                folder.save(checkpoint_of(40, worse=2))
                break
            except Killed:
                pass
        assert folder.steps() == [20, 40]
        found = folder.newest(pytest.fail)
        assert found is not None and found.loop.step == 40 and found.loop.worse in (1, 2)
        folder.save(checkpoint_of(40, worse=1))
        assert names(folder.checkpoints)[:1] == ["000020"]
    assert step > 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_no_half_one(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run")
    folder.save(checkpoint_of(20, size=6000))
    before = names(folder.path)
    with pytest.raises(RunFailed, match=r"No space left on device.*the last good checkpoint is .*000020"):
        folder.save(checkpoint_of(40, size=12000))
    assert names(folder.path) == before
    assert equal(folder.read(20), checkpoint_of(20, size=6000))


def test_everything_that_a_run_may_hold_is_known(folder: RunFolder) -> None:
    """So that --force replaces runs, and nothing that somebody put into one."""
    folder.save(checkpoint_of(20))
    for name in ("codec.json", "metrics.jsonl", "report.md", "record.json", "generation.json"):
        (folder.path / name).write_text("")
    (folder.path / "tensorboard").mkdir()
    (folder.path / "tensorboard" / "events.out.tfevents.1700000000.host.1.0").write_text("")
    files.refuse_existing(folder.path, force=True, layout=RUN)
    (folder.at(20) / "notes.txt").write_text("")
    with pytest.raises(BadInput, match=r"files that linnet did not write \(checkpoints/000020/notes.txt\)"):
        files.refuse_existing(folder.path, force=True, layout=RUN)


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    """The superuser may write anywhere, except where nobody may."""
    if os.getuid():
        tmp_path.chmod(0o500)
    else:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(tmp_path)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"a disk that may only be read cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(BadInput, match=r"cannot write into .*run: no permission at"):
            files.refuse_existing(tmp_path / "run", force=False, layout=RUN)
    finally:
        if os.getuid():
            tmp_path.chmod(0o700)
        else:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"there is no run .*in {tmp_path}"):
        RunFolder.open(tmp_path)
    with pytest.raises(BadInput, match="there is no folder"):
        RunFolder.open(tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_named() -> None:
    module = torch.nn.Linear(2, 3)
    with pytest.raises(BadInput, match=r"the weights in here do not fit.*missing bias; unknown bjas"):
        load_weights(module, {"weight": torch.zeros(3, 2), "bjas": torch.zeros(3)}, "here")
    with pytest.raises(BadInput, match=r"weight has the shape \[2, 3\], not \[3, 2\]"):
        load_weights(module, {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, "here")
