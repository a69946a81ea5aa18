"""Where the records of a run go while it runs. JSON lines always; the trackers of other people by name.

A sink gets every record and takes what it can show. Sinks live in one process only: the first one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from linnet import files
from linnet.errors import BadInput, nearest
from linnet.records import Record, StepRecord, ValidationRecord

TRACKERS = ("tensorboard", "trackio", "wandb")


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


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as missing:
            raise _absent("tensorboard") from missing
        # Readers drop the events of steps that a resumed run is about to repeat.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        if isinstance(record, StepRecord | ValidationRecord):
            for name, value in scalars(record).items():
                self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A local trackio project named after the recipe."""

    def __init__(self, folder: Path, recipe: str, settings: Mapping[str, Any]) -> None:
        try:
            import trackio
        except ImportError as missing:
            raise _absent("trackio") from missing
        self._run = trackio.init(
            project=f"linnet-{recipe}", name=folder.name, config=dict(settings), resume="allow"
        )

    def write(self, record: Record) -> None:
        if isinstance(record, StepRecord | ValidationRecord):
            self._run.log(scalars(record), step=record.step)

    def close(self) -> None:
        self._run.finish()


class WandB:
    """A Weights & Biases run; offline or online as its own environment variables say."""

    def __init__(self, folder: Path, recipe: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as missing:
            raise _absent("wandb") from missing
        self._run = wandb.init(
            project=f"linnet-{recipe}", name=folder.name, dir=str(folder), config=dict(settings)
        )

    def write(self, record: Record) -> None:
        if isinstance(record, StepRecord | ValidationRecord):
            self._run.log(scalars(record), step=record.step)

    def close(self) -> None:
        self._run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not there, before any work is done."""
    for name in names:
        if name not in TRACKERS:
            raise BadInput(f'there is no tracker "{name}"{nearest(name, TRACKERS)}')
        if importlib.util.find_spec(name) is None:
            raise _absent(name)


def open_trackers(
    names: Sequence[str], folder: Path, recipe: str, settings: Mapping[str, Any], step: int = 0
) -> list[Sink]:
    """The trackers that a run asks for; `step` is how many steps were done before."""
    check_trackers(names)
    openers: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder, step),
        "trackio": lambda: Trackio(folder, recipe, settings),
        "wandb": lambda: WandB(folder, recipe, settings),
    }
    return [openers[name]() for name in names]


def _absent(name: str) -> BadInput:
    return BadInput(
        f"this run asks for the tracker {name}, which is not installed: pip install linnet-sequences[{name}]"
    )
