"""Arithmetic files, plain or `.gz`, and folders of them.

A row is an `a+b=c` line or a JSON line with `input`, `gold` (and `steps`, `split`), or `expr`, `result`.
Reading is strict: a row that cannot be used is named with its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from linnet.domains.arithmetic.problems import TASKS, Task, guess_task, read_value
from linnet.errors import BadInput
from linnet.untrusted import lines_of as lines_of_file
from linnet.untrusted import parse_object

SPLITS = {"train": "train", "dev": "validation", "val": "validation", "valid": "validation"}
SPLITS |= {"validation": "validation", "test": "test"}
TASK_NAMES: dict[str, Task] = {task: task for task in TASKS}
TASK_NAMES |= {"mul": "multiply", "base_convert": "base", "poly_expand": "polynomial"}
_ENDINGS = (".txt", ".jsonl", ".json")
_KEYS = (("input", "gold"), ("expr", "result"))


@dataclass(frozen=True)
class Line:
    """A line of a file before it is read; `split` is what the file's name says, `listed` that a folder held it."""

    path: Path
    number: int
    text: str
    split: str | None
    listed: bool

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class Row:
    """A problem as a file has it, in canonical spelling. `split` is None where nothing names one."""

    line: Line
    task: Task
    question: str
    answer: str
    split: str | None
    steps: tuple[str, ...] = ()


def split_name(word: str) -> str:
    """`validation` for dev, val and so on."""
    if word not in SPLITS:
        raise BadInput(f"{word!r} is not a split; there is {', '.join(SPLITS)}")
    return SPLITS[word]


def lines_of(paths: Sequence[Path]) -> Iterator[Line]:
    """All lines that are not blank, of files and of folders (there: .txt and .jsonl, also .gz)."""
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.removesuffix(".gz").endswith(_ENDINGS))
            if not found:
                raise BadInput(f"{path} holds no .txt or .jsonl file (plain or .gz)")
            for file in found:
                yield from _lines(file, True)
        else:
            yield from _lines(path, False)


def _lines(path: Path, listed: bool) -> Iterator[Line]:
    words = re.split(r"[^a-z]+", path.name.split(".")[0].lower())
    split = next((SPLITS[word] for word in words if word in SPLITS), None)
    for number, text in enumerate(lines_of_file(path), start=1):
        if text.strip():
            yield Line(path, number, text.strip(), split, listed)


def read_line(line: Line, task: Task | None) -> Row:
    """The problem on a line; without a task, the one that it names or the narrowest that it belongs to."""
    try:
        return _read_json(line, task) if line.text.startswith("{") else _row(line, task, line.text, None, ())
    except BadInput as error:
        raise BadInput(f"{line.where}: {error}") from None


def read_rows(paths: Sequence[Path], task: Task | None) -> list[Row]:
    return [read_line(line, task) for line in lines_of(paths)]


def _read_json(line: Line, task: Task | None) -> Row:
    stored = parse_object(line.text, "the line")
    for question_key, answer_key in _KEYS:
        if question_key in stored and answer_key in stored:
            text = f"{stored[question_key]}={stored[answer_key]}"
            break
    else:
        raise BadInput(f"the row has the keys {', '.join(stored)}; it needs input and gold, or expr and result")
    steps, split = stored.get("steps") or (), stored.get("split")
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise BadInput("steps has to be a list of texts")
    named_task = stored.get("task")
    task = task or (TASK_NAMES.get(named_task) if isinstance(named_task, str) else None)
    return _row(line, task, text, None if split is None else split_name(str(split)), tuple(steps))


def reads(task: Task, text: str) -> bool:
    """Whether this is a problem of the task."""
    try:
        read_value(task, True, text)
    except BadInput:
        return False
    return True


def _row(line: Line, task: Task | None, text: str, split: str | None, steps: tuple[str, ...]) -> Row:
    belongs = guess_task(text.partition("=")[0].replace(" ", ""))
    try:
        question, answer = read_value(task or belongs, True, text)
    except BadInput as error:
        fits = task not in (None, belongs) and reads(belongs, text)
        hint = f"; for such rows set data.task={belongs}" if fits else ""
        raise BadInput(f"{error}{hint}") from None
    if not answer:
        raise BadInput(f"{text[:60]!r} has no answer; a row is question=answer")
    return Row(line, task or belongs, question, answer, split or (line.split if line.listed else None), steps)
