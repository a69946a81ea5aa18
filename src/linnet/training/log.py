"""What a run writes down: every step, without making the device wait for each of them."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from linnet.errors import RunFailed
from linnet.records import NoteRecord, Record, StepRecord
from linnet.training.checkpoint import LoopState
from linnet.training.recorded import Moved
from linnet.training.run import Run
from linnet.training.sinks import JsonLines, Sink


class Diverged(RunFailed):
    """The loss or its gradient is not a number any more."""


def gpu_use() -> float | None:
    """The share of time in which the GPU computes; None where that is not known."""
    try:
        return torch.cuda.utilization() / 100
    except Exception:  # the library that knows is not installed, or does not say it of this kind of device
        return None


@dataclass
class Log:
    """Steps are noted without asking the device, and written when `flush` asks it once for many of them.

    Nothing is opened before the first step is done: `begin` does it then, and what was noted so far is written.
    """

    run: Run
    device: torch.device
    begin: Callable[[], Sequence[Sink]]  # the metrics and trackers of the first process
    shown: Sink | None = None  # the progress, which waits for nothing
    sinks: Sequence[Sink] | None = None  # None until they are open
    waiting: list[Record] = field(default_factory=list)
    pending: list[tuple[int, Moved, float, int, float, float]] = field(default_factory=list)
    before: float = field(default_factory=time.perf_counter)

    def step(self, loop: LoopState, moved: Moved, rate: float, tokens: int, waited: float) -> None:
        now = time.perf_counter()
        self.pending.append((loop.step, moved, rate, tokens, waited, now - self.before))
        self.before = now
        if len(self.pending) >= self.run.training.log_every:
            self.flush()

    def restart_clock(self) -> None:
        """Validations and checkpoints are not part of the step after them."""
        self.before = time.perf_counter()

    @property
    def offset(self) -> int:
        """Where the metrics end now; a checkpoint remembers it, so that no step is ever listed twice."""
        return next((sink.offset for sink in self.sinks or () if isinstance(sink, JsonLines)), 0)

    def start(self) -> None:
        """Open what the run writes to, unless it is open."""
        if self.sinks is None:
            self.sinks = self.begin()
            for record in self.waiting:
                self._store(record)
            self.waiting.clear()

    def flush(self) -> None:
        """Write what is pending; a loss that is not a number ends the run before anything else is saved."""
        if not self.pending:
            return
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        gpu = torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None
        use = gpu_use() if self.device.type == "cuda" else None
        # On an accelerator the host runs ahead, so only the mean over the pending steps is a true time.
        seconds = sum(entry[5] for entry in self.pending) / len(self.pending)
        for step, moved, rate, tokens, waited, _ in self.pending:
            loss, norm = float(moved.loss), float(moved.grad_norm)
            finite = math.isfinite(loss) and (math.isfinite(norm) or self.run.precision == "float16")
            if finite:
                self.start()
            self.write(
                StepRecord(
                    step=step,
                    loss=loss,
                    lr=rate,
                    grad_norm=norm,
                    tokens=tokens,
                    tokens_per_second=tokens / seconds,
                    ms=seconds * 1e3,
                    data_wait=waited / seconds,
                    memory_mb=memory,
                    gpu_memory_mb=gpu,
                    gpu_use=use,
                )
            )
            if not finite:
                raise Diverged(f"the loss at step {step} is {loss} and its gradient norm is {norm}")
        self.pending.clear()

    def note(self, step: int, text: str) -> None:
        self.write(NoteRecord(step=step, text=text))

    def write(self, record: Record) -> None:
        if self.sinks is None:
            self.waiting.append(record)
        else:
            self._store(record)
        if self.shown is not None:
            self.shown.write(record)

    def _store(self, record: Record) -> None:
        for sink in self.sinks or ():
            sink.write(record)
