"""Batches: pure functions of the step, so that the position in the data is one number.

A plan knows which rows make up step n; nothing has to be replayed to go on from there.
Legend: B = rows of a batch, T = tokens of its longest row, padded on the right.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.sequences import Sequences


@dataclass(frozen=True)
class Batch:
    """Inputs and next-token targets; `weights` is 1 where a target counts and 0 elsewhere."""

    ids: Tensor  # int64 [B, T]
    targets: Tensor  # int64 [B, T]
    weights: Tensor  # float32 [B, T]
    lengths: Tensor  # int64 [B]
    documents: Tensor | None  # int64 [B, T]; None = one document a row
    fields: dict[str, Tensor]  # each [B, T, ...]

    def slice(self, rows: slice) -> Batch:
        return Batch(
            self.ids[rows],
            self.targets[rows],
            self.weights[rows],
            self.lengths[rows],
            None if self.documents is None else self.documents[rows],
            {name: values[rows] for name, values in self.fields.items()},
        )

    def to(self, device: torch.device) -> Batch:
        """On the device, without waiting where the memory is pinned."""
        if device.type == "cpu":
            return self
        move: Callable[[Tensor], Tensor] = lambda t: t.pin_memory().to(device, non_blocking=True)  # noqa: E731
        return Batch(
            move(self.ids),
            move(self.targets),
            move(self.weights),
            move(self.lengths),
            None if self.documents is None else move(self.documents),
            {name: move(values) for name, values in self.fields.items()},
        )


class Plan(Protocol):
    """Which batch belongs to which step."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int) -> Batch:
        """The batch of this step (counted from 0), always the same one."""


@dataclass(frozen=True)
class Padded:
    """Whole rows, reshuffled every epoch, padded to the longest row of the batch; no row is ever left out.

    `multiple` rounds the padded length up, so that a compiled step meets few shapes; `fixed` is the one
    length that every batch gets.
    """

    sequences: Sequences
    rows: int
    seed: int
    shuffle: bool = True
    multiple: int = 8
    fixed: int | None = None

    def __post_init__(self) -> None:
        if len(self.sequences) == 0:
            raise BadInput("the data set has no rows")
        if self.rows < 1:
            raise BadInput(f"a batch needs at least one row, not {self.rows}")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.sequences) // self.rows)

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.sequences), self.seed, epoch if self.shuffle else None)
        chosen = order[place * self.rows : (place + 1) * self.rows]
        return pad_rows(self.sequences, chosen, self.multiple, self.fixed)


@functools.lru_cache(maxsize=4)
def epoch_order(rows: int, seed: int, epoch: int | None) -> np.ndarray:
    """The order of the rows in one epoch; None leaves them as they lie."""
    if epoch is None:
        return np.arange(rows)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def pad_rows(sequences: Sequences, chosen: np.ndarray, multiple: int = 1, fixed: int | None = None) -> Batch:
    """Lay these rows side by side: inputs without their last token, targets without their first."""
    lengths = sequences.lengths[chosen] - 1
    longest = int(lengths.max())
    width = fixed if fixed is not None else -(-longest // multiple) * multiple
    if longest > width:
        raise BadInput(f"a row of {longest} tokens does not fit into batches of {width} tokens")
    column = np.arange(width)
    inside = column[None, :] < lengths[:, None]
    place = np.where(inside, sequences.starts[chosen][:, None] + column[None, :], 0)
    after = np.where(inside, place + 1, 0)
    ids = np.where(inside, sequences.ids[place], 0).astype(np.int64)
    targets = np.where(inside, sequences.ids[after], 0).astype(np.int64)
    weights = (sequences.scored[after] & inside).astype(np.float32)
    fields = {name: torch.from_numpy(values[place]) for name, values in sequences.fields.items()}
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        torch.from_numpy(lengths),
        None,
        fields,
    )


class Prefetcher:
    """Batches of consecutive steps from a thread, through a bounded queue; the wait for each is measured."""

    def __init__(self, plan: Plan, first: int, last: int, depth: int = 4) -> None:
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(plan, first, last), daemon=True)
        self._steps = last - first
        self.waited = 0.0  # seconds that the last batch kept its reader waiting
        self._thread.start()

    def _fill(self, plan: Plan, first: int, last: int) -> None:
        for step in range(first, last):
            item: Batch | BaseException
            try:
                item = plan.batch(step)
            except BaseException as error:  # handed to the reader, who raises it
                item = error
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._steps):
            began = time.perf_counter()
            item = self._queue.get()
            self.waited = time.perf_counter() - began
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Let the thread end; batches that were not read are dropped."""
        self._closed.set()
        self._thread.join()
