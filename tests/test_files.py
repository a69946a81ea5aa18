"""One writer of files: old or new and whole at any moment, whatever the disk does and whoever is killed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Fails, Killed, disk, failing_at, full_from, killed_at, tree, visible
from linnet import files
from linnet.errors import BadInput, LinnetError, RunFailed
from linnet.files import Layout, foreign_files, locked, new_file, new_files, new_folder, refuse_existing, remove


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug of this machine, so a test need not wait for its disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


MODEL = Layout("a model", "config.json", ("config.json", "parts/[0-9]*"))


def make_folder(path: Path, text: str) -> None:
    with new_folder(path, MODEL, force=True) as new:
        new.write("config.json", text.encode())
        (new.path / "parts").mkdir()
        for number in range(3):
            (new.path / "parts" / str(number)).write_text(text * number)


def folder_of(text: str) -> dict[str, bytes]:
    return {"config.json": text.encode()} | {f"parts/{n}": text.encode() * n for n in range(3)}


def make_files(path: Path, text: str) -> None:
    with new_files([path / "one", path / "two"]) as hidden:
        for file in hidden:
            file.write_text(text)


WRITERS: dict[str, tuple[Callable[[Path, str], None], Callable[[str], dict[str, bytes]]]] = {
    "a file": (lambda path, text: files.write_atomically(path, text.encode()), lambda text: {"": text.encode()}),
    "lines": (
        lambda path, text: files.write_lines(path, (f"{text}\n" for _ in range(3))),
        lambda text: {"": f"{text}\n".encode() * 3},
    ),
    "a folder": (make_folder, folder_of),
}


def content(path: Path) -> dict[str, bytes]:
    return {"": path.read_bytes()} if path.is_file() else tree(path)


def operations(write: Callable[[Path, str], None], path: Path, *, swaps: bool) -> int:
    with disk(swaps=swaps) as counted:
        write(path, "new")
    return len(counted.done)


@pytest.mark.parametrize("swaps", [True, False], ids=["names can be exchanged", "names cannot be exchanged"])
@pytest.mark.parametrize("before", ["old", None])
@pytest.mark.parametrize("kind", WRITERS)
def test_whoever_is_killed_at_any_operation_leaves_old_or_new(
    tmp_path: Path, kind: str, before: str | None, swaps: bool
) -> None:
    write, expected = WRITERS[kind]
    for step in range(1, 1000):
        path = tmp_path / str(step) / "out"
        path.parent.mkdir()
        if before:
            write(path, before)
        with disk(killed_at(step), swaps=swaps):
            try:
                write(path, "new")
            except Killed:
                pass
            else:
                break
        files.tidy(path)  # as the next call does
        assert set(os.listdir(path.parent)) <= {"out"}
        found = content(path) if path.exists() else None
        assert found in ([expected("old"), expected("new")] if before else [None, expected("new")]), step
        write(path, "third")
        assert content(path) == expected("third")
    assert 5 < step < 100, "every operation failed once"


@pytest.mark.parametrize("fails", [failing_at, full_from])
@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fails_at_any_operation_leaves_old_or_new(
    tmp_path: Path, kind: str, swaps: bool, fails: Callable[[int], Fails]
) -> None:
    write, expected = WRITERS[kind]
    for step in range(1, 1000):
        path = tmp_path / str(step) / "out"
        path.parent.mkdir()
        write(path, "old")
        done = False
        with disk(fails(step), swaps=swaps) as used:
            try:
                write(path, "new")
                done = True
            except LinnetError as error:
                assert str(path) in str(error)
        if not os.path.lexists(path):
            files.tidy(path)
        assert content(path) in (expected("old"), expected("new")), step
        if done:
            assert content(path) == expected("new")
        if done and len(used.done) < step:
            break
        write(path, "third")
        assert content(path) == expected("third")
        assert os.listdir(path.parent) == ["out"]


def test_of_several_files_none_changes_before_all_are_whole(tmp_path: Path) -> None:
    make_files(tmp_path, "old")
    for step in range(1, 100):
        with disk(killed_at(step)) as used:
            try:
                make_files(tmp_path, "new")
            except Killed:
                pass
            else:
                break
        if "replace" not in used.done[:-1]:
            assert set(visible(tmp_path).values()) == {b"old"}
        assert set(visible(tmp_path).values()) <= {b"old", b"new"}
        make_files(tmp_path, "old")
        assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    with pytest.raises(ZeroDivisionError), new_files([tmp_path / "one", tmp_path / "three"]) as hidden:
        hidden[0].write_text("half")
        _ = 1 / 0
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_process_that_is_killed_for_real_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    make_folder(path, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from linnet.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as new:\n"
        "    new.write('half', b'x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert content(path) == folder_of("old")
    assert len(os.listdir(tmp_path)) == 2
    refuse_existing(path, force=True, layout=MODEL)
    assert os.listdir(tmp_path) == ["out"], "what it left is removed by the next call"


def test_what_a_living_process_builds_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with new_folder(path) as first:
        first.write("one", b"1")
        with new_folder(path) as second:
            second.write("two", b"2")
        assert content(path) == {"two": b"2"}
    assert content(path) == {"one": b"1"}


def test_a_folder_that_is_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    make_folder(path, "old")
    with locked(path):
        with pytest.raises(BadInput, match="out is in use: another process"):
            refuse_existing(path, force=True, layout=MODEL)
        with pytest.raises(BadInput, match="out is in use"), locked(path):
            pass
        with pytest.raises(BadInput, match="out is in use"):
            make_folder(path, "new")
    assert content(path) == folder_of("old")
    with locked(path):
        pass


def test_what_was_replaced_comes_back_when_the_rest_fails(tmp_path: Path) -> None:
    for swaps in (True, False):
        path = tmp_path / f"out{swaps}"
        make_folder(path, "old")
        with disk(swaps=swaps), pytest.raises(ZeroDivisionError), new_folder(path, MODEL, force=True) as new:
            new.write("config.json", b"new")
            new.install()
            assert new.path.name == path.name and content(path) == {"config.json": b"new"}
            _ = 1 / 0
        assert content(path) == folder_of("old")
    assert sorted(os.listdir(tmp_path)) == ["outFalse", "outTrue"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    for mask, file, folder in ((0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)):
        before = os.umask(mask)
        try:
            path = tmp_path / oct(mask)
            with new_folder(path) as new:
                new.write("one", b"1")
                with open(os.open(new.path / "two", os.O_CREAT | os.O_WRONLY, 0o600), "w") as strict:
                    strict.write("as the writer of safetensors does")
            files.write_atomically(path / "three", b"3")
        finally:
            os.umask(before)
        assert {stat.S_IMODE((path / name).stat().st_mode) for name in ("one", "two", "three")} == {file}
        assert stat.S_IMODE(path.stat().st_mode) == folder


@pytest.mark.parametrize("form", ["a file", "a folder"])
def test_a_link_is_followed(tmp_path: Path, form: str) -> None:
    write, expected = WRITERS[form]
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk" / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk" / "real") == expected("new")


# What is refused


def test_force_replaces_only_what_linnet_wrote(tmp_path: Path) -> None:
    path = tmp_path / "out"
    make_folder(path, "old")
    with pytest.raises(BadInput, match="out exists; choose another name, or replace it with --force"):
        refuse_existing(path, force=False, layout=MODEL)
    refuse_existing(path, force=True, layout=MODEL)
    for name in ("thesis.tex", "parts/figure.png", "deep/er/notes"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("years of work")
    (path / "link").symlink_to(tmp_path)
    (path / "parts" / "1x").mkdir()
    before = tree(path)
    with pytest.raises(
        BadInput, match=r"holds files that linnet did not write \(link, thesis.tex, .*notes"
    ) as why:
        make_folder(path, "new")
    assert "figure.png" in str(why.value)
    assert tree(path) == before
    assert sorted(foreign_files(path, MODEL)) == ["deep/er/notes", "link", "parts/figure.png", "thesis.tex"]


def test_what_has_no_marker_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / "1").write_text("1")
    (tmp_path / "file").write_text("text")
    for name in ("out", "file"):
        with pytest.raises(BadInput, match=f"{name} exists and is not a model, so --force does not replace it"):
            refuse_existing(tmp_path / name, force=True, layout=MODEL)
    with pytest.raises(BadInput, match="out exists and is a folder, so --force does not replace it"):
        refuse_existing(tmp_path / "out", force=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="pipe exists and is no plain file"):
        refuse_existing(tmp_path / "pipe", force=True)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / ".config.json.0123abcd.part").write_text("half")
    refuse_existing(path, force=False, layout=MODEL)
    with new_folder(path, MODEL) as new:
        new.write("config.json", b"{}")
    assert content(path) == {"config.json": b"{}"}


def test_names_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = {
        tmp_path / "file" / "below" / "out": "file is not a folder",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / os.fsdecode(b"caf\xe9"): "is no name in UTF-8",
        Path(""): "is no name for a model",
        tmp_path / "..": "is no name for a model",
    }
    for path, why in wrong.items():
        with pytest.raises(BadInput, match=why):
            make_folder(path, "new")
    with pytest.raises(BadInput, match="file exists; choose another name"):
        refuse_existing(tmp_path / "file", force=False, option="--counts")
    assert os.listdir(tmp_path) == ["file"]


def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "out", "old")
    monkeypatch.chdir(tmp_path / "out" / "parts")
    with pytest.raises(BadInput, match="is the folder you are in"):
        make_folder(tmp_path / "out", "new")


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "parts" / "1")
    files.refuse_within(tmp_path / "out", [tmp_path / "outer", tmp_path])
    for source in (tmp_path / "out", tmp_path / "link", tmp_path / "out" / "parts" / "2"):
        with pytest.raises(
            BadInput, match=f"out would be replaced, and {source}, which is to be read, lies in it"
        ):
            files.refuse_within(tmp_path / "out", [source])


def test_leftovers_that_cannot_be_removed_are_named(tmp_path: Path) -> None:
    leftover = tmp_path / ".out.01234567.part"
    leftover.mkdir()
    (leftover / "file").write_text("x")
    with disk(failing_at(1, 1)), pytest.raises(BadInput, match=r"\.out\.01234567\.part was left by .*; remove it"):
        refuse_existing(tmp_path / "out", force=False)


def test_a_name_like_a_leftover_of_ours_is_not_removed(tmp_path: Path) -> None:
    kept = [".out.part", ".out.123", ".out.0123abcx.part", ".outer.0123abcd.part", "out.0123abcd.part"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    files.write_atomically(tmp_path / "out", b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "out"])


# Errors in words


def test_errors_about_other_files_stay_theirs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), new_file(tmp_path / "out"):
        (tmp_path / "nowhere").read_bytes()
    assert os.listdir(tmp_path) == []


class RustError(Exception):
    pass


def test_a_full_disk_that_a_library_met_is_a_failed_run(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailed, match="could not write .*out: No space left on device"),
        new_folder(tmp_path / "out"),
    ):
        raise RustError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert os.listdir(tmp_path) == []


# Removing


def test_nobody_ever_finds_half_of_what_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for step in range(1, 100):
        make_folder(path, "old")
        with disk(killed_at(step)):
            try:
                remove(path)
            except Killed:
                pass
            else:
                break
        assert not path.exists() or content(path) == folder_of("old")
    assert os.listdir(tmp_path) == []
    remove(path)


def test_a_log_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for kept, before, after in (
        (0, None, b""),
        (0, b"one\ntwo\n", b""),
        (4, b"one\ntwo\n", b"one\n"),
        (100, b"one\ntwo\nhal", b"one\ntwo\n"),
        (100, b"hal", b""),
    ):
        if before is not None:
            path.write_bytes(before)
        handle = files.open_log(path, kept)
        files.append(handle, b"more\n")
        os.close(handle)
        assert path.read_bytes() == after + b"more\n"
