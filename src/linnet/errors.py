"""Errors that a person reads: what was wrong, where, and what would be right.

`BadInput` ends a command with exit code 2, `RunFailed` with 1. Anything else is a defect of ours.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Iterable
from typing import Any


class LinnetError(Exception):
    """A message for the person at the keyboard; the command line shows it without a traceback."""

    exit_code = 1


class BadInput(LinnetError):
    """What was asked for, or handed in, cannot be used."""

    exit_code = 2


class RunFailed(LinnetError):
    """The work started and could not be finished."""


def counted(count: int, what: str) -> str:
    """Such as `1 file`, `1,200 files` or `3 series`."""
    return f"{count:,} {what}{'s' * (count != 1 and not what.endswith('series'))}"


def nearest(wrong: str, right: Iterable[str]) -> str:
    """A hint such as `; did you mean "depth"?`, or the list of what exists when nothing is close."""
    names = sorted(right)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; there is {', '.join(names)}" if names else ""


def refuse_unknown(name: str, known: Collection[str], words: str) -> None:
    """Refuse a name that is none of the known ones; `words` are such as `there is no metric`."""
    if name not in known:
        raise BadInput(f'{words} "{name}"{nearest(name, known)}')


def library(name: str, needed: str, extra: str) -> Any:
    """A library of an extra, or the command that installs it; `needed` is such as `tables need polars`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(f"{needed}: pip install 'linnet-sequences[{extra}]'") from None
