"""Which files of a folder are series to learn from, and which are the test part.

A file with the word test in its name is the test part: training never reads it, and `eval` scores it. Of the
others, those that share their columns and together hold most bytes are read; the rest is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from linnet.domains.series.sources import ARCHIVE, PARQUET, TABLES
from linnet.errors import BadInput
from linnet.untrusted import lines_of

READABLE = (*TABLES, *PARQUET, *ARCHIVE)


@dataclass(frozen=True)
class Files:
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def chosen_files(paths: Iterable[Path]) -> Files:
    """Files as they are given, and those of folders by the rule above."""
    train: list[Path] = []
    test: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(READABLE))
            if not inside:
                raise BadInput(f"{path} holds no table of series ({', '.join(READABLE)})")
            test += [file for file in inside if is_test(file)]
            found, left = _largest_kind([file for file in inside if not is_test(file)])
            train += found
            if left:
                notes.append(f"{path}: not read as series: {', '.join(file.name for file in left)}")
        else:
            (test if is_test(path) else train).append(path)
    return Files(tuple(train), tuple(test), tuple(notes))


def is_test(file: Path) -> bool:
    return "test" in re.split(r"[^a-z]+", file.name.lower())


def _largest_kind(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files of the kind that holds most bytes, and the others."""
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(_kind(file), []).append(file)
    if not kinds:
        return [], []
    best = max(kinds, key=lambda kind: sum(file.stat().st_size for file in kinds[kind]))
    return kinds[best], [file for file in files if file not in kinds[best]]


def _kind(file: Path) -> str:
    """Its headings, or its format where it has none."""
    if not file.name.endswith(TABLES):
        return "archive" if file.name.endswith(ARCHIVE) else "parquet"
    return next(lines_of(file), "")
