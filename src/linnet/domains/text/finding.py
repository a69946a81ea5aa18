"""Which files are the corpus: those that are named, and those of folders that hold text.

What is left out of a folder is counted and named, because a file that is missing from a corpus is seen by nobody.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from linnet.errors import BadInput, counted

ROWS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")  # those of a folder are often about its texts
READABLE = (".txt", ".txt.gz", ".text", ".text.gz", *ROWS, ".parquet")  # in folders
WHAT_IS_READ = "text is read from .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet and, by name, .csv and .tsv"
ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "makefile")  # files that are about data
NAMED = 5  # files that are left out and named
Form = Literal["text", "jsonl", "csv", "parquet", "hf"]


class Source(NamedTuple):
    """A file, or `hf:NAME[#CONFIG][@SPLIT]`, a data set of the Hugging Face hub or a folder in its layout."""

    name: str
    form: Form

    @property
    def size(self) -> int:
        """Bytes as stored; a data set of the hub has none."""
        return 0 if self.form == "hf" else Path(self.name).stat().st_size

    @property
    def modified(self) -> int:
        return 0 if self.form == "hf" else Path(self.name).stat().st_mtime_ns


class Found(NamedTuple):
    """The files that are read, in order, and what a person should know about the others."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...]


def find(names: Sequence[str | Path]) -> Found:
    """Every readable file behind these names, folders in the order of their paths."""
    sources: list[Source] = []
    notes: list[str] = []
    for name in names:
        path = Path(name)
        if str(name).startswith("hf:"):
            sources.append(Source(str(name), "hf"))
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
            read = [p for p in inside if not _hidden(p, path) and holds_text(p.name)]
            if not read:
                raise BadInput(f"no text in folder {path}: {_content(inside)}; {WHAT_IS_READ}")
            sources += [_source(p) for p in read]
            notes += _left_out([p for p in inside if p not in set(read)], path)
        elif path.is_file():
            sources.append(_source(path))
            notes += _unknown_kind(path)
        else:
            raise BadInput(f"there is no file or folder {path}")
    if not sources:
        raise BadInput("no data named: give at least one file or folder with --data")
    return Found(tuple(sources), tuple(notes))


def holds_text(name: str) -> bool:
    """Whether a file of a folder belongs to the corpus: by its ending, or by having none (as WikiExtractor's).

    A README or a LICENSE is about the data, whatever its ending; citations.txt is not. Names such as _SUCCESS
    are marks that other programs leave.
    """
    low = name.lower()
    bare = "." not in low and not low.startswith("_")
    return low.split(".")[0] not in ABOUT and (bare or low.endswith(READABLE))


@functools.cache
def hub_version(name: str) -> str:
    """What tells two states of an `hf:` data set apart: its files with their times, or the revision on the hub.

    Nothing where that cannot be found out, as without a network.
    """
    folder, config, _ = hub_name(name)
    try:
        import datasets

        builder = datasets.load_dataset_builder(folder, config)
    except (ImportError, ValueError, OSError, ConnectionError):
        return ""
    files: dict[Any, Any] = builder.config.data_files or {}
    states = {
        str(split): (list(map(str, some)), [tuple(map(str, entry)) for entry in some.origin_metadata])
        for split, some in files.items()
    }
    return str(datasets.fingerprint.Hasher.hash(states)) if states else ""


def hub_name(name: str) -> tuple[str, str | None, str]:
    """Name, config and split of `hf:NAME[#CONFIG][@SPLIT]`."""
    found, _, split = name.removeprefix("hf:").partition("@")
    found, _, config = found.partition("#")
    return found, config or None, split or "train"


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _source(path: Path) -> Source:
    forms: dict[Form, tuple[str, ...]] = {"parquet": (".parquet",), "csv": TABLES, "jsonl": ROWS}
    name = path.name.lower()
    return Source(str(path), next((form for form, ends in forms.items() if name.endswith(ends)), "text"))


def _left_out(others: Sequence[Path], folder: Path) -> list[str]:
    """One note on the files of a folder that were not read; hidden ones are counted, and not named."""
    named = [str(p.relative_to(folder)) for p in others if not _hidden(p, folder)]
    if not named:
        return []
    also = f" (and {hidden:,} hidden)" if (hidden := len(others) - len(named)) else ""
    shown = ", ".join(named[:NAMED]) + (", ..." if len(named) > NAMED else "")
    return [f"not read: {counted(len(named), 'file')} of {folder}{also}: {shown}; {WHAT_IS_READ}"]


def _unknown_kind(path: Path) -> list[str]:
    if "." not in path.name or path.name.lower().endswith((*READABLE, *TABLES, ".gz")):
        return []
    rows = "; rows of JSON are known by the ending .jsonl" if ".json" in path.name.lower() else ""
    return [f'{path} is read as plain text, since the ending "{path.suffix}" names no kind that is known{rows}']


def _content(inside: Sequence[Path]) -> str:
    kinds = Counter(p.suffix or p.name for p in inside).most_common(5)
    return "it holds " + ", ".join(f"{n:,} {kind}" for kind, n in kinds) if kinds else "it is empty"
