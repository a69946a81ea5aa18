"""A reward at work: its answers checked, its time limited, its calls counted, in processes of their own if wanted.

A reward is code of other people: what it raises is reported with the answer that it was given, and one that takes
too long ends the search. Whether its numbers are in order is checked by `Reward`.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import numpy as np

from linnet.errors import BadInput, RunFailed
from linnet.search.reward import Ids, Score

SECONDS = 60.0  # that a batch of answers may take
SHOWN = 200  # characters of an answer, and of what was raised, that a message holds


class Calls:
    """One reward and how it is called; close it when the search is over, or use it in a `with` block."""

    def __init__(self, reward: Score, *, seconds: float | None = SECONDS, processes: int = 1) -> None:
        if seconds is not None and not 0 < seconds < float("inf"):
            raise BadInput(f"the time limit of a reward is {seconds} seconds; it has to be more than 0")
        if processes < 1:
            raise BadInput(f"a reward runs in {processes} processes; it has to be at least 1")
        self.reward, self.limit, self.processes = reward, seconds, processes
        self.answers = 0  # how many were scored
        self.seconds = 0.0  # how long all calls took
        self._workers: list[Worker] = []

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        """The rewards of these answers, float64 [n]."""
        if not texts:
            return np.zeros(0)
        began = time.perf_counter()
        try:
            values = self._apart(texts, ids, prompt) if self.processes > 1 else self._here(texts, ids, prompt)
        finally:
            self.seconds += time.perf_counter() - began
        self.answers += len(texts)
        return values

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def __enter__(self) -> Calls:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _here(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        if self.limit is None:
            return _read(_called(self.reward, texts, ids, prompt), texts)
        found: list[Outcome | BaseException] = []

        def score() -> None:
            try:
                found.append(_called(self.reward, texts, ids, prompt))
            except BaseException as error:  # such as an interrupt, which belongs to whoever waits
                found.append(error)

        work = threading.Thread(target=score, daemon=True)
        work.start()
        work.join(self.limit)
        if not found:
            raise self._late(texts)
        if isinstance(found[0], BaseException):
            raise found[0]
        return _read(found[0], texts)

    def _apart(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        """Equal shares of the answers, one to each process."""
        while len(self._workers) < min(self.processes, len(texts)):
            self._workers.append(Worker(self.reward))
        workers = self._workers[: len(texts)]
        bounds = np.linspace(0, len(texts), len(workers) + 1).astype(int).tolist()
        parts = [slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
        for worker, part in zip(workers, parts, strict=True):
            worker.pipe.send((list(texts[part]), [list(map(int, one)) for one in ids[part]], prompt))
        late = self._wait(workers)
        if late is not None:
            self.close()
            raise self._late(texts[parts[late]])
        found = [worker.answer() for worker in workers]
        return np.concatenate([_read(one, texts[part]) for one, part in zip(found, parts, strict=True)])

    def _wait(self, workers: Sequence[Worker]) -> int | None:
        """Until all have answered; the first that has not within the limit."""
        until = None if self.limit is None else time.monotonic() + self.limit
        waiting = {worker.pipe: number for number, worker in enumerate(workers)}
        while waiting:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = wait(list(waiting), left)
            if not ready:
                return min(waiting.values())
            for pipe in ready:
                del waiting[pipe]  # type: ignore[arg-type]
        return None

    def _late(self, texts: Sequence[str]) -> RunFailed:
        more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
        return RunFailed(
            f"the reward had not scored {_shown(texts[0])}{more} after {self.limit:g} s; "
            "make it faster, or give it more time"
        )


Outcome = tuple[Any, str | None]  # what a reward gave, or what went wrong


def _called(reward: Score, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> Outcome:
    """What the reward gives; where it raises, the first answer that makes it raise is looked for."""
    try:
        return reward(texts, ids, prompt), None
    except BadInput as error:
        return None, str(error)
    except Exception as error:
        return None, _fault(reward, texts, ids, prompt, error)


def _fault(reward: Score, texts: Sequence[str], ids: Sequence[Ids], prompt: str, error: Exception) -> str:
    for text, row in zip(texts, ids, strict=True):
        try:
            reward([text], [row], prompt)
        except Exception as single:
            return f"the reward raised {_raised(single)} for the answer {_shown(text)}"
    return f"the reward raised {_raised(error)} for {len(texts)} answers, the first of them {_shown(texts[0])}"


def _raised(error: Exception) -> str:
    """The kind, the message and the line of the reward that raised it."""
    lines = traceback.extract_tb(error.__traceback__)
    message = (str(error).splitlines() or [""])[0][:SHOWN]
    where = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}: {message}{where}"


def _read(outcome: Outcome, texts: Sequence[str]) -> np.ndarray:
    """The values, if they are one number for each answer."""
    found, problem = outcome
    if problem is not None:
        raise BadInput(problem)
    try:
        values = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput(f"the reward gave {found!r:.200} for {len(texts)} answers, not a list of numbers") from None
    if values.shape != (len(texts),):
        shape = "one number" if not values.ndim else f"{values.shape[0]} rows" if values.ndim > 1 else len(values)
        raise BadInput(f"the reward gave {shape} for {len(texts)} answers; it has to give one number for each")
    return values


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


class Worker:
    """A process that scores answers with its own copy of the reward."""

    def __init__(self, reward: Score) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, reward), daemon=True)
        try:
            self.process.start()
        except Exception as error:  # what cannot be sent raises errors of many kinds
            raise BadInput(
                f"this reward cannot be sent to another process ({error}); a function of a module can be"
            ) from None
        theirs.close()

    def answer(self) -> Outcome:
        try:
            found: Outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(1)
            code = self.process.exitcode
            return None, f"the process of the reward ended while it scored answers (exit code {code})"
        return found

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _serve(pipe: Connection, reward: Score) -> None:
    """Score what comes until the other side closes."""
    try:
        while True:
            texts, ids, prompt = pipe.recv()
            pipe.send(_called(reward, texts, ids, prompt))
    except (EOFError, KeyboardInterrupt):
        return
