"""A disk that fails: every operation of `linnet.files` that changes it is counted, and one of them goes wrong."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from linnet import files

CHANGING = ("write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "makedirs", "chmod", "ftruncate")

HIDDEN = r"(^|/)\.[^/]*\.[0-9a-f]{8}\.(part|old)(/|$)"
Fails = Callable[[int, str], BaseException | None]


class Killed(BaseException):
    """The process is gone: nothing that it would have done afterwards is done."""


class Disk:
    """`os` as `linnet.files` sees it. `fails` decides what operation k (counted from 1) of some name raises."""

    def __init__(self, fails: Fails) -> None:
        self.done: list[str] = []
        self._fails = fails
        self._dead = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING and name != "open":
            return real

        def operation(*given: Any, **named: Any) -> Any:
            if name == "open" and not given[1] & os.O_CREAT:
                return real(*given, **named)
            self.count(name)
            return real(*given, **named)

        return operation

    def exchange(self, real: Callable[[Path, Path], bool]) -> Callable[[Path, Path], bool]:
        def operation(one: Path, other: Path) -> bool:
            self.count("exchange")
            return real(one, other)

        return operation

    def count(self, name: str) -> None:
        if self._dead:
            raise Killed
        self.done.append(name)
        error = self._fails(len(self.done), name)
        if error is not None:
            self._dead = isinstance(error, Killed)
            raise error


@contextmanager
def disk(fails: Fails = lambda number, name: None, *, swaps: bool = True) -> Iterator[Disk]:
    """Files are written to this disk meanwhile; without `swaps` it cannot exchange two names in one step."""
    made = Disk(fails)
    real = files.exchange if swaps else lambda one, other: False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", made)
        patch.setattr(files, "exchange", made.exchange(real))
        yield made


def killed_at(step: int) -> Fails:
    return lambda number, name: Killed() if number == step else None


def failing_at(step: int, code: int = errno.EIO) -> Fails:
    return lambda number, name: OSError(code, os.strerror(code)) if number == step else None


def full_from(step: int) -> Fails:
    """A disk that is full from this operation on: names may change and go away, nothing new gets there."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return lambda number, name: error if number >= step and name in ("write", "fsync", "open", "mkdir") else None


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def visible(folder: Path) -> dict[str, bytes]:
    """The same without what is on its way under hidden names."""
    return {name: content for name, content in tree(folder).items() if not re.search(HIDDEN, name)}
