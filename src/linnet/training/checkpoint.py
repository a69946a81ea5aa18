"""The run folder: what is in it, written so that being killed at any moment leaves something whole.

    run.toml  codec.json  metrics.jsonl  report.md  snapshots/NNNNNN.safetensors
    checkpoints/NNNNNN/{weights.safetensors, ema.safetensors, loop.safetensors, loop.json}

Everything is written by `linnet.files`. `loop.json` holds the hash of the other files, so a checkpoint that was
cut or altered is recognised, named, and left aside. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from linnet import files
from linnet.errors import BadInput, LinnetError, RunFailed
from linnet.training.snapshots import Snapshots, from_bytes, to_bytes
from linnet.untrusted import checked, read_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RUN = files.Layout(
    "a run",
    "run.toml",
    (
        *("run.toml", "codec.json", "metrics.jsonl", "report.md", "record.json", "generation.json"),
        "forecasts.svg",
        "captions.svg",
        *("checkpoints/[0-9]*/*.safetensors", "checkpoints/[0-9]*/loop.json", "snapshots/[0-9]*.safetensors"),
        *("tensorboard/events.out.tfevents.*", "wandb/*"),
    ),
)
STEP = re.compile(r"[0-9]{6,18}")
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class Damaged(BadInput):
    """A file of a checkpoint is not what was written."""


@dataclass
class LoopState:
    """All state of the loop that is not a tensor. The position in the data and all random draws follow from
    `step` and the seed, so they need no state of their own."""

    step: Count = 0
    tokens: Count = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: Count | None = None
    worse: Count = 0  # validations since the best one
    ema_updates: Count = 0
    scaler: dict[str, float] = field(default_factory=dict)
    metrics_bytes: Count = 0
    data: str = ""  # fingerprint of the training rows; nothing where it cannot be trained on
    eager: str = ""  # why steps are not compiled although the run asks for it


@dataclass(frozen=True)
class _StoredLoop:
    """What loop.json holds."""

    loop: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on, or to be used."""

    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None
    optim: Mapping[str, Tensor]
    loop: LoopState


def hash_of(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings, self.codec = path / "run.toml", path / "codec.json"
        self.metrics, self.report = path / "metrics.jsonl", path / "report.md"
        self.generation = path / "generation.json"  # ids that end a text, of a model from elsewhere
        self.record = path / "record.json"  # the final one: there only when the run is finished
        self.checkpoints, self.snapshots = path / "checkpoints", Snapshots(path / "snapshots")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        if not path.exists():
            files.tidy(path)
        if not (path / "run.toml").is_file():
            what = "there is no folder" if not path.exists() else "there is no run (no run.toml) in"
            raise BadInput(f"{what} {path}")
        return cls(path)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or not, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        names = [entry.name for entry in self.checkpoints.iterdir() if STEP.fullmatch(entry.name)]
        return sorted(step for step in map(int, names) if self.at(step).name in names)

    def at(self, step: int) -> Path:
        return self.checkpoints / f"{step:06d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one checkpoint; the folder gets its name only when everything in it is on the disk."""
        step = checkpoint.loop.step
        parts = {"weights.safetensors": checkpoint.weights, "loop.safetensors": checkpoint.optim}
        if checkpoint.ema is not None:
            parts["ema.safetensors"] = checkpoint.ema
        files.tidy_within(self.checkpoints)
        try:
            with files.new_folder(self.at(step)) as new:
                hashes = {}
                for name, tensors in parts.items():
                    content = to_bytes(tensors)
                    hashes[name] = hashlib.sha256(content).hexdigest()
                    new.write(name, content)
                loop = asdict(checkpoint.loop)
                hashes["loop"] = hash_of(loop)
                stored = {"format": 1, "loop": loop, "sha256": hashes}
                new.write("loop.json", json.dumps(stored, indent=1).encode())
        except LinnetError as error:
            good = [whole for whole in self.steps() if whole != step]
            kept = f"; the last good checkpoint is {self.at(good[-1])}" if good else ""
            raise RunFailed(f"the checkpoint of step {step} could not be written ({error}){kept}") from error

    def prune(self, keep: int, newest: int, best: int | None) -> None:
        """Remove all but the newest `keep` checkpoints and the best.

        One that is newer than `newest` was broken when the run was resumed; it does not count.
        """
        for step in [step for step in self.steps() if step <= newest][:-keep]:
            if step != best:
                files.remove(self.at(step))

    def remove_final(self) -> None:
        """Remove checkpoints that cannot be trained on: those of a run that forgot a user, and begins anew."""
        for step in self.steps():
            with contextlib.suppress(Damaged):
                if not self.loop(step)[0].data:
                    files.remove(self.at(step))

    def loop(self, step: int) -> tuple[LoopState, dict[str, str]]:
        """The loop state and the file hashes of a checkpoint."""
        file = self.at(step) / "loop.json"
        try:
            stored = checked(_StoredLoop, read_object(file), "loop.json")
            loop = checked(LoopState, stored.loop, "loop.json")
        except BadInput as error:
            raise Damaged(str(error)) from None
        if hash_of(stored.loop) != stored.sha256.get("loop"):
            raise Damaged("loop.json is not what was written")
        if loop.step != step:
            raise Damaged(f"loop.json is of step {loop.step}")
        return loop, stored.sha256

    def tensors(self, step: int, name: str) -> dict[str, Tensor]:
        """The tensors of one file of a checkpoint, after its hash has been checked."""
        _, hashes = self.loop(step)
        try:
            content = (self.at(step) / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror or error}") from None
        if hashlib.sha256(content).hexdigest() != hashes.get(name):
            raise Damaged(f"{name} is not what was written")
        try:
            return from_bytes(content, name)
        except BadInput as error:
            raise Damaged(str(error)) from None

    def read(self, step: int) -> Checkpoint:
        loop, hashes = self.loop(step)
        strange = {file.name for file in self.at(step).glob("*.safetensors")} - hashes.keys()
        if strange:
            raise Damaged(f"loop.json does not know {', '.join(sorted(strange))}")
        return Checkpoint(
            self.tensors(step, "weights.safetensors"),
            self.tensors(step, "ema.safetensors") if "ema.safetensors" in hashes else None,
            self.tensors(step, "loop.safetensors"),
            loop,
        )

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint; every broken one on the way is named and left aside."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except Damaged as error:
                say(f"checkpoint {self.at(step)} is broken ({error}) and is left aside")
        return None

    def best(self) -> int | None:
        """The step with the best validation loss that still has a checkpoint, or else the newest one."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                best = self.loop(step)[0].best_step
            except Damaged:
                continue  # reading the weights of that step will name what is broken
            return best if best in steps else step
        return None

    def best_whole(self, name: str, say: Callable[[str], None]) -> int | None:
        """The same, passing over checkpoints in which this file is broken; each of those is named."""
        best = self.best()
        for step in dict.fromkeys([*([] if best is None else [best]), *reversed(self.steps())]):
            try:
                self.tensors(step, name)
                return step
            except Damaged as error:
                say(f"checkpoint {self.at(step)} is broken ({error}) and is not scored")
        return None


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters by name; one that is shared appears once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def load_weights(module: torch.nn.Module, stored: Mapping[str, Tensor], source: str) -> None:
    """Copy stored weights into a module, naming whatever does not fit."""
    import torch

    wanted = dict(module.named_parameters())
    problems: list[Any] = [f"missing {name}" for name in wanted if name not in stored]
    problems += [f"unknown {name}" for name in sorted(stored) if name not in wanted]
    problems += [
        f"{name} has the shape {list(stored[name].shape)}, not {list(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in stored and stored[name].shape != parameter.shape
    ]
    if problems:
        raise BadInput(f"the weights in {source} do not fit this model: {'; '.join(problems[:5])}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])
