"""The progress line of a training run: a sink that shows records instead of storing them.

On a terminal one line is rewritten in place and never wider than the screen; elsewhere a plain line is
written every few seconds. `render` is a pure function of what is known, so that tests read the line as a
person does. It is not a log: every step is in `metrics.jsonl`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from linnet.records import NoteRecord, Record, StepRecord, ValidationRecord

WIDEST_BAR = 24
NARROWEST_BAR = 8


@dataclass(frozen=True)
class Course:
    """What a run knows before its first step of this process."""

    steps: int  # of the whole run
    first: int  # steps that were done before this process
    rows: int  # of one batch, all micro-batches and processes together
    flops_per_token: float  # of training: forward and backward
    device: str  # cpu or cuda, and
    precision: str  # float32, bfloat16 or float16: which matmul peak to compare with


@dataclass(frozen=True)
class Moment:
    """What the line shows beside the course: the last step, the last validation, and the clock."""

    step: StepRecord
    validation: ValidationRecord | None
    elapsed: float  # seconds since the first step of this process began
    peak: float | None  # measured FLOP/s of large matrix products at this precision


def short(number: float) -> str:
    """At most four characters and a unit: 987, 12.3k, 4.56M."""
    for unit, scale in (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9)):
        scaled = number / scale
        if scaled < 999.5:
            digits = 0 if not unit or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f}{unit}"
    return f"{number / 1e12:.3g}T"


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def share_done(course: Course, moment: Moment) -> float:
    return min(moment.step.step / course.steps, 1.0) if course.steps else 1.0


def remaining(course: Course, moment: Moment) -> float | None:
    """Seconds to go, at the mean pace of this process; None before its first step has ended."""
    here = moment.step.step - course.first
    return moment.elapsed / here * (course.steps - moment.step.step) if here > 0 else None


def facts(course: Course, moment: Moment) -> list[tuple[int, str]]:
    """What the line says, in order, each with a rank: where space is short the highest rank leaves first."""
    step, validation = moment.step, moment.validation
    eta = remaining(course, moment)
    said = [
        (0, f"{step.step}/{course.steps}"),
        (1, f"{100 * share_done(course, moment):.0f}%"),
        (0, f"loss {step.loss:.4g}"),
    ]
    if validation is not None:
        averaged = "" if validation.ema_loss is None else f" ema {validation.ema_loss:.4g}"
        said.append((2, f"val {validation.loss:.4g}{averaged}"))
    said += [
        (6, f"lr {step.lr:.2e}"),
        (7, f"norm {step.grad_norm:.3g}"),
        (3, f"{short(step.tokens_per_second)} tok/s"),
        (10, f"batch {course.rows}"),
        (8, f"{step.ms:.3g} ms" if step.ms < 1000 else f"{step.ms:.0f} ms"),
    ]
    if moment.peak:
        said.append((5, f"{100 * step.tokens_per_second * course.flops_per_token / moment.peak:.0f}% of peak"))
    said.append((9, memory(step.memory_mb)))
    if step.gpu_memory_mb is not None:
        use = "" if step.gpu_use is None else f" {100 * step.gpu_use:.0f}%"
        said.append((9, f"gpu {memory(step.gpu_memory_mb)}{use}"))
    said.append((4, clock(moment.elapsed) + ("" if eta is None else f" eta {clock(eta)}")))
    return said


def bar(done: float, cells: int) -> str:
    full = int(done * cells)
    return "[" + "#" * full + "-" * (cells - full) + "]"


def render(course: Course, moment: Moment, width: int | None = None) -> str:
    """The line. `width` is the number of columns that it must fit into; None leaves it as long as it is."""
    said = facts(course, moment)
    done = share_done(course, moment)
    cells = WIDEST_BAR
    while True:
        parts = [text for _, text in said]
        line = " ".join([bar(done, cells), *parts[:2], "|", " | ".join(parts[2:])]) if cells else " | ".join(parts)
        if width is None or len(line) <= width:
            return line
        if cells > NARROWEST_BAR:
            cells = max(NARROWEST_BAR, cells - (len(line) - width))
        elif (worst := max(rank for rank, _ in said)) > 1:
            said = [fact for fact in said if fact[0] != worst]
        elif cells:
            cells = 0
        else:
            return line[:width]


class Progress:
    """A sink that shows how far a run is. `columns` is None where there is no terminal."""

    def __init__(
        self,
        course: Course,
        stream: TextIO,
        *,
        peak: float | None = None,
        every: float = 5.0,
        columns: Callable[[], int] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._course = course
        self._stream = stream
        self._peak = peak
        self._columns = columns
        self._gap = every if columns is None else 0.1
        self._now = now
        self._began: float | None = None
        self._shown_at: float | None = None
        self._step: StepRecord | None = None
        self._validation: ValidationRecord | None = None
        self._shown: StepRecord | None = None

    def write(self, record: Record) -> None:
        """Show a step when it is time to, a note at once; a validation shows with the next line."""
        if isinstance(record, StepRecord):
            self._step = record
            if self._began is None:
                self._began = self._now() - record.ms / 1000
            if self._shown_at is None or self._now() - self._shown_at >= self._gap:
                self._show(record)
        elif isinstance(record, ValidationRecord):
            self._validation = record
        elif isinstance(record, NoteRecord):
            clear = "" if self._columns is None else "\r\x1b[K"
            self._stream.write(f"{clear}{record.text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._step is not None and (self._columns is not None or self._step is not self._shown):
            self._show(self._step)
        if self._columns is not None and self._step is not None:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, step: StepRecord) -> None:
        at = self._now()
        began = at if self._began is None else self._began
        moment = Moment(step, self._validation, at - began, self._peak)
        if self._columns is None:
            self._stream.write(render(self._course, moment) + "\n")
        else:
            # One column stays free: a line that fills the last one makes some terminals wrap.
            self._stream.write(f"\r{render(self._course, moment, self._columns() - 1)}\x1b[K")
        self._stream.flush()
        self._shown, self._shown_at = step, at


def columns_of(stream: TextIO) -> Callable[[], int] | None:
    """How wide the terminal behind a stream is at any moment; None where there is no terminal."""
    if not stream.isatty():
        return None
    return lambda: shutil.get_terminal_size().columns
