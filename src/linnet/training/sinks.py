"""Where the records of a run go while it runs. JSON lines always; the trackers of other people by name.

A sink gets every record and takes what it can show. Sinks live in one process only: the first one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from linnet import files
from linnet.errors import library, refuse_unknown
from linnet.records import Record, StepRecord, ValidationRecord


class Sink(Protocol):
    """Something that wants to see what happens."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One record a line in a file. `offset` bytes of what is there are kept, the rest is cut off.

    A resumed run passes the offset that its checkpoint remembers, so that no step is ever listed twice.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._file = files.open_log(path, offset)

    @property
    def offset(self) -> int:
        """How many bytes the file holds: what a checkpoint remembers."""
        return os.lseek(self._file, 0, os.SEEK_CUR)

    def write(self, record: Record) -> None:
        with files.in_words(self._path):
            files.append(self._file, record.line().encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def scalars(record: StepRecord | ValidationRecord) -> dict[str, float]:
    """The numbers of a record under the names that trackers group by."""
    if isinstance(record, StepRecord):
        numbers = record.model_dump(exclude={"kind", "step"}, exclude_none=True)
        return {f"train/{name}": float(value) for name, value in numbers.items()}
    named = {"validation/loss": record.loss}
    if record.ema_loss is not None:
        named["validation/ema_loss"] = record.ema_loss
    for layer, entropy in enumerate(record.attention_entropy):
        named[f"validation/attention_entropy/{layer}"] = entropy
    return named


@dataclass(frozen=True)
class Tracker:
    """A tracker of other people, which gets the numbers of each step and validation."""

    log: Callable[[dict[str, float], int], None]
    close: Callable[[], None]

    def write(self, record: Record) -> None:
        if isinstance(record, StepRecord | ValidationRecord):
            self.log(scalars(record), record.step)


def tensorboard(folder: Path, recipe: str, settings: dict[str, Any], step: int) -> Tracker:
    """Event files in `tensorboard/` of the run folder; readers drop what a resumed run is about to repeat."""
    module = _library("torch.utils.tensorboard", "tensorboard")
    writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def trackio(folder: Path, recipe: str, settings: dict[str, Any], step: int) -> Tracker:
    """A local trackio project named after the recipe."""
    names = {"project": f"linnet-{recipe}", "name": folder.name}
    run = _library("trackio", "trackio").init(**names, config=settings, resume="allow")
    return Tracker(lambda numbers, step: run.log(numbers, step=step), run.finish)


def wandb(folder: Path, recipe: str, settings: dict[str, Any], step: int) -> Tracker:
    """A Weights & Biases run; offline or online as its own environment variables say."""
    names = {"project": f"linnet-{recipe}", "name": folder.name}
    run = _library("wandb", "wandb").init(**names, dir=str(folder), config=settings)
    return Tracker(lambda numbers, step: run.log(numbers, step=step), run.finish)


TRACKERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not there, before any work is done."""
    for name in names:
        refuse_unknown(name, TRACKERS, "there is no tracker")
        if importlib.util.find_spec(name) is None:
            _library(name, name)


def open_trackers(
    names: Sequence[str], folder: Path, recipe: str, settings: dict[str, Any], step: int = 0
) -> list[Sink]:
    """The trackers that a run asks for; `step` is how many steps were done before."""
    check_trackers(names)
    return [TRACKERS[name](folder, recipe, settings, step) for name in names]


def _library(module: str, tracker: str) -> Any:
    return library(module, f"this run asks for the tracker {tracker}, which is not installed", tracker)
