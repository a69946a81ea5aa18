"""Whole training steps of a GPU, each launched at once: forward, backward, clipping, optimisers, averaged weights.

A small network waits for its launches, and a step of the host is one launch here. What differs from step to step
lies in tensors that stay where they are: the batch, the number of its counted tokens, the learning rates; random
numbers follow the seed that is set before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.data import Batch
from linnet.recording import Graphs

SHAPES = 16  # of batches, each with a graph of its own; batches of further shapes are run as they come


@dataclass(frozen=True)
class Moved:
    """What one step did, still on the device."""

    loss: Tensor  # nats per counted token
    grad_norm: Tensor


@dataclass(frozen=True)
class Kept:
    """The tensors of one shape of batches."""

    batch: Batch
    counted: Tensor
    moved: Moved


class RecordedSteps:
    """Steps by the shape of their batch."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graphs = device, Graphs(device)
        self._kept: dict[Hashable, Kept] = {}

    def run(self, batch: Batch, counted: float, step: Callable[[Batch, Tensor], Moved]) -> Moved:
        """What `step` does with this batch of so many counted tokens; nothing in it may wait for the device."""
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items())
        kept = self._kept.get(shape)
        if kept is None:
            if len(self._kept) == SHAPES:
                return step(batch.to(self.device), torch.tensor(counted, device=self.device))
            kept = self._kept[shape] = self._new(batch)
        for name, tensor in kept.batch.items():
            tensor.copy_(batch[name], non_blocking=True)
        kept.counted.fill_(counted)

        def record() -> None:
            moved = step(kept.batch, kept.counted)
            kept.moved.loss.copy_(moved.loss)
            kept.moved.grad_norm.copy_(moved.grad_norm)

        self.graphs.run(shape, record)
        return Moved(kept.moved.loss.clone(), kept.moved.grad_norm.clone())

    def _new(self, batch: Batch) -> Kept:
        number = torch.zeros((), device=self.device)
        on_device = batch.map(lambda tensor: torch.empty_like(tensor, device=self.device))
        return Kept(on_device, number, Moved(number.clone(), number.clone()))
