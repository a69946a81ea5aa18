"""`linnet data check` for arithmetic: what a data set holds and what is wrong with it, with first rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from linnet.domains.arithmetic.files import Line, Row, lines_of, read_line
from linnet.domains.arithmetic.problems import Task, canonical, groups_of, solve
from linnet.domains.arithmetic.steps import false_steps
from linnet.errors import BadInput
from linnet.records import DataRecord

MOST_COMMON = 10  # answers that are listed by themselves


def check(paths: Sequence[Path], task: Task | None = None) -> DataRecord:
    """Rows, lengths, label and carry balance, and every kind of problem with its count and first row.

    Files without a `split` column count as the split that their name says.
    """
    rows: list[Row] = []
    faults: dict[str, list[str]] = defaultdict(list)
    sizes: Counter[str] = Counter()
    for line in lines_of(paths):
        sizes[str(line.path)] += 1
        try:
            rows.append(read_line(line, task))
        except BadInput as error:
            faults["unreadable rows"].append(str(error))
    if not sizes:
        raise BadInput(f"{', '.join(map(str, paths))} has no rows")
    for row in rows:
        _check_row(row, faults)
    _check_repeats(rows, faults)
    _check_shared(rows, faults)
    counts = _balance(rows)
    kinds = ("unreadable rows", "wrong answers", "rows with false steps", "duplicates", *_SHARED)
    counts["problems"] = {kind: len(faults[kind]) for kind in kinds}
    return DataRecord(
        path=", ".join(map(str, paths)),
        rows=dict(sizes),
        counts=counts,
        problems=tuple(f"{len(faults[kind])} {kind}; first: {faults[kind][0]}" for kind in kinds if faults[kind]),
        refused=any(faults[kind] for kind in kinds if kind != "duplicates"),
    )


def _check_row(row: Row, faults: dict[str, list[str]]) -> None:
    right = solve(row.task, row.question)
    if row.answer != right:
        faults["wrong answers"].append(f"{row.line.where}: {row.question}={row.answer} (right: {right})")
    false = false_steps(row.task, row.question, row.steps)
    if false:
        faults["rows with false steps"].append(f"{row.line.where}: step {false[0][0] + 1}: {false[0][1]}")


def _check_repeats(rows: Sequence[Row], faults: dict[str, list[str]]) -> None:
    seen: dict[tuple[Path, str], Line] = {}
    for row in rows:
        first = seen.setdefault((row.line.path, row.question), row.line)
        if first is not row.line:
            faults["duplicates"].append(f"{row.line.where}: {row.question} is also row {first.number}")


_SHARED = tuple(
    f"{part} rows that occur in train{how}" for part in ("test", "validation") for how in ("", ", in any order")
)


def _check_shared(rows: Sequence[Row], faults: dict[str, list[str]]) -> None:
    train = [row for row in rows if _split(row) == "train"]
    exact = {row.question: row.line for row in reversed(train)}
    anyhow = {canonical(row.task, row.question): row.line for row in reversed(train)}
    for row in rows:
        kind = f"{_split(row)} rows that occur in train"
        if _split(row) not in ("test", "validation"):
            continue
        if row.question in exact:
            faults[kind].append(f"{row.line.where}: {row.question} is also {exact[row.question].where}")
        problem = canonical(row.task, row.question)
        if problem in anyhow:
            faults[f"{kind}, in any order"].append(
                f"{row.line.where}: {row.question} is also {anyhow[problem].where}"
            )


def _split(row: Row) -> str | None:
    return row.split or row.line.split


def _balance(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Histograms; lengths are characters of `question=answer`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    numbers: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        counts["tasks"][row.task] += 1
        counts["splits"][_split(row) or "none"] += 1
        counts["answers"][row.answer] += 1
        numbers["lengths"][len(row.question) + 1 + len(row.answer)] += 1
        for name, group in groups_of(row.task, row.question).items():
            if isinstance(group, int):
                numbers[name][group] += 1
            else:
                counts[name][group] += 1
    common = dict(counts["answers"].most_common(MOST_COMMON))
    common["others"] = len(rows) - sum(common.values())
    listed = {name: dict(found) for name, found in counts.items()} | {"answers": common}
    return listed | {name: {str(n): found[n] for n in sorted(found)} for name, found in numbers.items()}
