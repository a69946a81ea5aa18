"""Systems of a benchmark, each in a process of its own, and how they take turns within a time limit.

There every system has its own allocator, compiler cache, threads and peak of memory, and does not slow the others
down: threads of one library that wait actively cost the next one half of its speed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from linnet.errors import RunFailed

QUIET = "ignore:resource_tracker"  # it would warn of what a process that ran out of time had left
EXIT_SECONDS = 20.0  # that a process gets to end by itself
START_SHARE = 0.7  # of a time limit: systems that are not ready by then leave the rest to those that are


@dataclass(frozen=True)
class Working:
    """A system inside its process: what is compared before anything is timed, and one turn of its work."""

    facts: Any
    turn: Callable[[], Any]
    device: str = "cpu"


Make = Callable[[], Working]
Question = Literal["facts", "turn", "peak", "stop"]


class OutOfTime(RunFailed):
    """A system did not answer within its time."""


class Apart:
    """A process that waits for a system to build, builds it, and answers questions about it."""

    def __init__(self) -> None:
        os.environ.setdefault("PYTHONWARNINGS", QUIET)  # read by what cleans up after processes that are killed
        context = multiprocessing.get_context("spawn")
        self.name, self.busy = "", False  # busy: it has not answered yet
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def build(self, name: str, make: Make) -> Apart:
        self.name = name
        with contextlib.suppress(OSError):  # a process that is gone says so when it is asked
            self.pipe.send((name, make))
        return self

    def ask(self, question: Question, seconds: float | None = None) -> Any:
        with contextlib.suppress(OSError):
            self.pipe.send(question)
        self.busy = True
        if seconds is not None and not self.pipe.poll(max(0.0, seconds)):
            raise OutOfTime(
                f"{self.name} did not answer within the {max(0.0, seconds):.0f} s that were left for it"
            )
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RunFailed(f"{self.name} ended without an answer: it may have run out of memory") from None
        self.busy = False
        if isinstance(answer, RunFailed):
            raise answer
        return answer

    def close(self) -> None:
        """End the process; one that is not in the middle of something cleans up after itself."""
        if not self.busy and self.name:
            with contextlib.suppress(OSError):  # it is gone already
                self.pipe.send("stop")
            self.process.join(EXIT_SECONDS)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _serve(pipe: Connection) -> None:
    name = "a process"
    try:
        name, make = pipe.recv()
        working = make()
        answers: dict[str, Callable[[], Any]] = {
            "facts": lambda: working.facts,
            "turn": working.turn,
            "peak": lambda: peak_megabytes(working.device),
        }
        while (question := pipe.recv()) != "stop":
            pipe.send(answers[question]())
    except EOFError:
        return  # the parent is gone
    except Exception as error:
        last = "".join(traceback.format_exception(error, limit=-4)).strip()
        with contextlib.suppress(OSError):
            pipe.send(RunFailed(f"{name} failed: {last[-2000:]}"))


class Limit:
    """How many seconds are left; without a limit, always enough."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.began = seconds, time.monotonic()

    def left(self, share: float = 1.0) -> float | None:
        return None if self.seconds is None else self.seconds * share - (time.monotonic() - self.began)


@dataclass
class Outcome:
    """Of every system: its facts before the turns, its turns, and its peak of memory in MB."""

    facts: dict[str, Any] = field(default_factory=dict)
    turns: dict[str, list[Any]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # with the reason

    def ask(self, one: Apart, question: Question, seconds: float | None) -> Any:
        """The answer; a system that fails is left out from then on, unless it is ours."""
        try:
            return one.ask(question, seconds)
        except RunFailed as error:
            if not self.facts or one.name == next(iter(self.facts)):
                raise
            self.absent[one.name] = str(error).splitlines()[-1].removeprefix(f"{one.name} ")
            self.turns.pop(one.name, None)
            return None


def take_turns(
    systems: Mapping[str, Make],
    device: str,
    *,
    turns: int,
    warm_up: int,
    limit: Limit,
    check: Callable[[Mapping[str, Any]], None] = lambda facts: None,
) -> Outcome:
    """Time all systems; the first is ours, and must not fail.

    On the processor all are ready before the turns begin, which then alternate: a machine that drifts drifts for
    all. On a GPU only one is there at a time, since two may not fit. `check` raises where facts do not agree.
    """
    outcome = Outcome()
    groups = [list(systems)] if device == "cpu" else [[name] for name in systems]
    for number, names in enumerate(groups):
        share = START_SHARE if device == "cpu" else (number + 1) / len(groups)
        with contextlib.ExitStack() as stack:
            working: dict[str, Apart] = {}
            for name in names:
                one = stack.enter_context(Apart()).build(name, systems[name])
                facts = outcome.ask(one, "facts", limit.left(share if outcome.facts else 1.0))
                if name not in outcome.absent:
                    outcome.facts[name], working[name] = facts, one
                    check(outcome.facts)
            round_seconds = 0.0
            for turn in range(warm_up + turns):
                left = limit.left(share if device != "cpu" else 1.0)
                if turn > warm_up and left is not None and left < round_seconds:
                    break
                began = time.monotonic()
                for name, one in working.items():
                    took = outcome.ask(one, "turn", limit.left() if turn <= warm_up else None)
                    if turn >= warm_up and name not in outcome.absent:
                        outcome.turns.setdefault(name, []).append(took)
                working = {name: one for name, one in working.items() if name not in outcome.absent}
                round_seconds = time.monotonic() - began
            outcome.peaks |= {name: float(one.ask("peak")) for name, one in working.items()}
    return outcome


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


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def median(work: Callable[[], object], turns: int = 20) -> float:
    """Milliseconds; the first two calls do not count."""
    seconds = []
    for _ in range(turns + 2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[2:])
