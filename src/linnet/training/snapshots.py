"""Snapshots: the weights alone at log-spaced steps of a run, for questions about how a model develops.

    snapshots/NNNNNN.safetensors

They are no checkpoints: nothing resumes from them. A run that keeps averaged weights keeps those, since they are
what the run is used with. A run that was stopped writes the same bytes again for steps that it repeats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from linnet.errors import BadInput
from linnet.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

COUNT = 50
NAME = re.compile(r"[0-9]{6,18}\.safetensors")


def snapshot_steps(steps: int, kept: str | int) -> frozenset[int]:
    """The steps, counted from 1, after which weights are kept: log-spaced, the last step among them."""
    count = {"none": 0, "log": COUNT}.get(str(kept), kept)
    if not count:
        return frozenset()
    if int(count) >= steps:
        return frozenset(range(1, steps + 1))
    import numpy as np

    found, last = list[int](), 0
    for wanted in np.geomspace(1, steps, int(count)):
        last = max(last + 1, round(float(wanted)))
        found.append(min(last, steps))
    return frozenset(found)


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def from_bytes(content: bytes, name: object) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{name} is no safetensors file: {error}") from None


@dataclass(frozen=True)
class Snapshots:
    """The snapshots in a run folder."""

    path: Path

    @property
    def steps(self) -> list[int]:
        if not self.path.is_dir():
            return []
        return sorted(int(file.stem) for file in self.path.iterdir() if NAME.fullmatch(file.name))

    def file(self, step: int) -> Path:
        return self.path / f"{step:06d}.safetensors"

    def save(self, step: int, weights: Mapping[str, Tensor]) -> None:
        write_atomically(self.file(step), to_bytes(weights))

    def read(self, step: int) -> dict[str, Tensor]:
        try:
            return from_bytes(self.file(step).read_bytes(), self.file(step))
        except FileNotFoundError:
            there = ", ".join(map(str, self.steps)) or "none"
            raise BadInput(f"there is no snapshot of step {step}; there is {there}") from None
