"""Where exported files land: beside their place under a dot name, and renamed when they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from linnet.errors import BadInput
from linnet.training.checkpoint import sync


def refuse(path: Path, *, force: bool, marker: str) -> None:
    """Say at once why nothing can be written there. `force` replaces a folder only if it has the file `marker`."""
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
        raise BadInput(f"cannot write into {path}: no permission at {above}")
    if not above.is_dir():
        raise BadInput(f"cannot write into {path}: {above} is not a folder")
    if above != path or not any(path.iterdir()):
        return
    if not force:
        raise BadInput(f"{path} exists and is not empty; name another folder, or replace it with --force")
    if not (path / marker).is_file():
        raise BadInput(f"{path} exists and has no {marker}, so --force does not replace it")


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """An empty hidden folder that gets its name when the block ends well, and goes away when it does not."""
    refuse(path, force=force, marker=marker)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        yield hidden
        for file in hidden.rglob("*"):
            sync(file)
        if path.exists():
            shutil.rmtree(path)
        hidden.replace(path)
        sync(path.absolute().parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """The same for one file."""
    if path.exists() and (not force or path.is_dir()):
        raise BadInput(f"{path} exists; {'it is a folder' if path.is_dir() else 'replace it with --force'}")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from None
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield hidden
        sync(hidden)
        hidden.replace(path)
        sync(path.absolute().parent)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
