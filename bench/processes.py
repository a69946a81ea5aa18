"""Systems of a benchmark, each in a process of its own, and what they are timed with.

There every system has its own allocator, compiler cache, threads and peak of memory, and does not slow the others
down while they take their turns: threads of one library that wait actively cost the next one half of its speed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from linnet.errors import RunFailed

Answer = Callable[[Any], Any]  # what a system says to a question
STOP = "stop"
PATIENCE = 20.0  # seconds that a process gets to end by itself


class Apart:
    """A system that `make` builds in a process of its own, asked from outside."""

    def __init__(self, name: str, make: Callable[[], Answer]) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.busy = name, False  # busy: it has not answered yet
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, make), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, question: Any) -> Any:
        self.pipe.send(question)
        self.busy = True
        try:
            said = self.pipe.recv()
        except EOFError:
            raise RunFailed(f"{self.name} ended without a word: it may have run out of memory") from None
        self.busy = False
        if isinstance(said, RunFailed):
            raise said
        return said

    def close(self) -> None:
        """End the process; one that is not in the middle of something cleans up after itself."""
        if not self.busy:
            with contextlib.suppress(OSError):  # it is gone already
                self.pipe.send(STOP)
            self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, name: str, make: Callable[[], Answer]) -> None:
    try:
        answer = make()
        while (question := pipe.recv()) != STOP:
            pipe.send(answer(question))
    except EOFError:
        return  # whoever asked is gone
    except BaseException:
        pipe.send(RunFailed(f"{name} failed:\n{traceback.format_exc()}"))
        raise
    finally:
        pipe.close()


def peak_megabytes(device: str = "cpu") -> float:
    """The most memory that this process has held: on the GPU where it works there, else in the machine."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def median(work: Callable[[], object], turns: int = 20) -> float:
    """Milliseconds; the first two calls do not count."""
    seconds = []
    for _ in range(turns + 2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[2:])
