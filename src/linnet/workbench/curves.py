"""Learning curves: the loss of training and of validation over the steps of a run, as numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from linnet.errors import BadInput
from linnet.records import AnalysisRecord, Grid
from linnet.training.checkpoint import RunFolder
from linnet.untrusted import lines_of, parse_object, shown

POINTS = 60  # of a curve: each is the mean over its share of the steps
READ = 20_000  # step lines at most; of a longer log every second, third, ... is read
HEIGHT = 10  # lines of a chart
TRAINING, VALIDATION = ".", "o"

Point = tuple[float, float]  # step, loss


def curve_of(folder: RunFolder) -> AnalysisRecord | None:
    """The curves of a run; None before its first step."""
    training, validation = _read(folder) if folder.metrics.is_file() else ([], [])
    if not training:
        return None
    means = list(_means(training))
    further = [_grid("validation", validation)] if validation else []
    return AnalysisRecord(
        kind="curve",
        title=folder.path.name,
        axes=("step",),
        labels={"step": tuple(f"{step:g}" for step, _ in means)},
        values=[loss for _, loss in means],
        unit="training",
        further=tuple(further),
    )


def _grid(name: str, points: Sequence[Point]) -> Grid:
    labels = {"step": tuple(f"{step:g}" for step, _ in points)}
    return Grid(name=name, axes=("step",), labels=labels, values=[loss for _, loss in points])


def _read(folder: RunFolder) -> tuple[list[Point], list[Point]]:
    lines = list(lines_of(folder.metrics))
    every = max(1, len(lines) // READ)
    training, validation = list[Point](), list[Point]()
    for number, line in enumerate(lines, 1):
        if '"validation"' not in line and number % every:
            continue
        where = f"{folder.metrics}, line {number}"
        record = parse_object(line, where)
        if record.get("kind") == "step":
            training.append(_point(record, "loss", where))
        elif record.get("kind") == "validation":
            name = "loss" if record.get("ema_loss") is None else "ema_loss"
            validation.append(_point(record, name, where))
    return training, validation


def _point(record: dict[str, Any], name: str, where: str) -> Point:
    step, loss = record.get("step"), record.get(name)
    loss = math.nan if loss is None else loss  # JSON has no word for what is no number
    for key, value in (("step", step), (name, loss)):
        if not isinstance(value, int | float) or abs(value) >= 1e30:
            raise BadInput(f"{where}: {key} is {shown(value)}, not a number")
    return float(step), float(loss)  # type: ignore[arg-type]


def _means(points: Sequence[Point]) -> Iterator[Point]:
    """So many means, each over neighbours."""
    size = -(-len(points) // POINTS)
    for first in range(0, len(points), size):
        some = points[first : first + size]
        yield some[-1][0], sum(loss for _, loss in some) / len(some)


def chart(record: AnalysisRecord) -> list[str]:
    """The curves as lines of text: `.` is training, `o` validation."""
    curves = [
        (mark, list(zip(map(float, grid.labels["step"]), grid.values, strict=True)))
        for mark, grid in zip((TRAINING, VALIDATION), record.grids, strict=False)
    ]
    points = [(step, loss, mark) for mark, curve in curves for step, loss in curve if math.isfinite(loss)]
    if not points:
        return []
    low, high = min(loss for _, loss, _ in points), max(loss for _, loss, _ in points)
    first, last = min(step for step, _, _ in points), max(step for step, _, _ in points)
    rows = [[" "] * (POINTS + 1) for _ in range(HEIGHT)]
    for step, loss, mark in points:
        column = round(POINTS * (step - first) / ((last - first) or 1))
        row = round((HEIGHT - 1) * (high - loss) / ((high - low) or 1))
        rows[row][column] = mark
    labels = [f"{high:.4g}", *[""] * (HEIGHT - 2), f"{low:.4g}"]
    width = max(map(len, labels))
    lines = [f"{label:>{width}} |{''.join(row).rstrip()}" for label, row in zip(labels, rows, strict=True)]
    ends = f"{first:g}" + f"{last:g}".rjust(POINTS + 1 - len(f"{first:g}"))
    legend = f"loss over steps: {TRAINING} training" + (f", {VALIDATION} validation" if len(curves) > 1 else "")
    return [*lines, f"{'':>{width}} +{'-' * (POINTS + 1)}", f"{'':>{width}}  {ends}", legend]
