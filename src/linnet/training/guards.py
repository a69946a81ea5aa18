"""What may interrupt training, put into words: signals and memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from linnet.errors import RunFailed
from linnet.training.run import Run

MEMORY_DIALS = "lower training.batch, raise training.accumulation, or lower model.context"


class Stopped(RunFailed):
    """A signal ended the run between two steps; everything is saved and `resume` goes on."""

    exit_code = 130


@dataclass
class StopRequest:
    """A plain flag: a handler that took a lock would wait for itself when a second signal interrupts it."""

    made: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM make the request; the same signal again acts as usual."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop.made = True

    for name in before:
        signal.signal(name, request)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def out_of_memory_in_words(run: Run) -> Iterator[None]:
    """Say which settings decide how much memory a step takes."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
            costs = run.model.costs()
            sizes = (
                f"training.batch={run.training.batch}, training.accumulation={run.training.accumulation}, "
                f"rows of {costs.context if costs else 0} steps"
            )
            raise RunFailed(f"out of memory with {sizes}: {MEMORY_DIALS}") from error
        raise
