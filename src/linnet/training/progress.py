"""The progress of a training run: a sink that shows records instead of storing them.

It is not a log: every step is in `metrics.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from linnet.progress import Progress, short
from linnet.records import NoteRecord, Record, StepRecord, ValidationRecord


@dataclass(frozen=True)
class Course:
    """What a run knows before its first step of this process."""

    steps: int  # of the whole run
    first: int  # steps that were done before this process
    rows: int  # of one batch, all micro-batches and processes together
    flops_per_token: float  # of training: forward and backward
    device: str  # cpu or cuda, and
    precision: str  # float32, bfloat16 or float16: which matmul peak to compare with


def memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def facts(
    course: Course, step: StepRecord, validation: ValidationRecord | None, peak: float | None
) -> Iterator[str]:
    """What the line says beside how far the run is, the most important first. `peak` is the measured FLOP/s of
    large matrix products at this precision, where it could be measured."""
    yield f"loss {step.loss:.4g}"
    if validation is not None:
        averaged = "" if validation.ema_loss is None else f" ema {validation.ema_loss:.4g}"
        yield f"val {validation.loss:.4g}{averaged}"
    yield f"{short(step.tokens_per_second)} tok/s"
    share = step.tokens_per_second * course.flops_per_token / peak if peak else 0.0
    if 0 < share <= 1:  # a peak that a run surpasses was measured on a busy machine
        yield f"{100 * share:.0f}% of peak"
    yield f"lr {step.lr:.2e}"
    yield f"norm {step.grad_norm:.3g}"
    yield f"{step.ms:.3g} ms" if step.ms < 1000 else f"{step.ms:.0f} ms"
    if step.gpu_memory_mb is not None:
        use = "" if step.gpu_use is None else f" {100 * step.gpu_use:.0f}%"
        yield f"gpu {memory(step.gpu_memory_mb)}{use}"
    yield memory(step.memory_mb)
    yield f"batch {course.rows}"


class TrainingProgress:
    """A step shows when it is time to, a note at once, a validation with the next step."""

    def __init__(self, course: Course, peak: float | None = None) -> None:
        self._course, self._peak = course, peak
        self._progress = Progress("training", course.steps, first=course.first)
        self._validation: ValidationRecord | None = None
        self._begun = False

    def write(self, record: Record) -> None:
        if isinstance(record, StepRecord):
            shown = facts(self._course, record, self._validation, self._peak)
            self._progress.update(record.step, *shown, at_once=not self._begun)
            self._begun = True
        elif isinstance(record, ValidationRecord):
            self._validation = record
        elif isinstance(record, NoteRecord):
            self._progress.note(record.text)

    def close(self) -> None:
        self._progress.close()
