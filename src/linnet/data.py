"""Batches: pure functions of the step, so that the position in the data is one number.

A plan knows which rows make up step n; nothing has to be replayed to go on from there.
Legend: B = rows of a batch, T = steps of its longest row, padded on the right.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.rows import Flat, Rows

NEXT = "next."  # before the name of a column: what a model predicts
PRESENT = "present."  # before the name of a column: bool [B, T], where it is there


@dataclass(frozen=True)
class Batch(Mapping[str, Tensor]):
    """Tensors by name, each with the rows of the batch as its first axis.

    `ids` and every further column [B, T, ...]; `present.NAME` bool [B, T] of columns that are absent at some
    steps; `next.NAME` and `next.present.NAME`, the same one step later; `weights` float32 [B, T], 1 where a target
    counts; `lengths` int64 [B]; `documents` int64 [B, T] where rows share a line and must not see each other.
    """

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def rows(self) -> int:
        return len(self.tensors["lengths"])

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed in the same way."""
        return Batch({name: change(tensor) for name, tensor in self.tensors.items()})

    def replaced(self, **tensors: Tensor) -> Batch:
        return Batch({**self.tensors, **tensors})

    def slice(self, rows: slice) -> Batch:
        return self.map(lambda tensor: tensor[rows])

    def filled(self, rows: int) -> Batch:
        """The batch with empty rows of no weight, up to this many."""
        missing = rows - self.rows
        if missing == 0:
            return self
        return self.map(lambda tensor: torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]))

    def pinned(self) -> Batch:
        """In memory from which a GPU copies while the host goes on."""
        return self.map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """On the device, without waiting where the memory is pinned."""
        return self if device.type == "cpu" else self.map(lambda tensor: tensor.to(device, non_blocking=True))


class Plan(Protocol):
    """Which batch belongs to which step."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int) -> Batch:
        """The batch of this step (counted from 0), always the same one."""


@dataclass(frozen=True)
class Padded:
    """Whole rows, reshuffled every epoch, padded to the longest row of the batch; no row is ever left out.

    `multiple` rounds the padded length up, so that steps meet few shapes, but not beyond `context`; `fixed` is
    the one length that every batch gets, and then the last batch of an epoch is filled up with empty rows, so
    that a compiled step meets one shape only. `drop` is the share of rows that an epoch does not learn from.
    """

    source: Rows
    rows: int
    seed: int
    shuffle: bool = True
    multiple: int = 8
    context: int | None = None
    fixed: int | None = None
    drop: float = 0.0

    def __post_init__(self) -> None:
        if len(self.source) == 0:
            raise BadInput("the data set has no rows")
        if self.rows < 1:
            raise BadInput(f"a batch needs at least one row, not {self.rows}")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.source) // self.rows)

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.source), self.seed, epoch if self.shuffle else None)
        chosen = order[index * self.rows : (index + 1) * self.rows]
        batch = pad_rows(self.source, chosen, self.multiple, self.context, self.fixed)
        if self.drop:
            kept = torch.from_numpy(~dropped(chosen, self.seed, epoch, self.drop))
            batch = batch.replaced(weights=batch["weights"] * kept[:, None])
        return batch if self.fixed is None else batch.filled(self.rows)


WHOLE = 1 << 20  # up to so many rows, an epoch is one permutation of all of them
CHUNK = 1 << 14  # else rows are shuffled within chunks of this size, and the chunks among each other


@dataclass(frozen=True)
class Packed:
    """Rows end to end in batches of one shape: nothing is padded, and every scored token counts once an epoch.

    What is laid end to end is (token, next token): a row of n tokens has n - 1 pairs, and no target reaches
    over the end of its row. Every epoch shuffles the rows, moves the points where they are cut into lines of
    `context`, and shuffles the lines. With `apart`, tokens see only their own row. Beyond `WHOLE` rows or lines
    each line of a batch goes through its own stretch of the epoch, and the memory in use does not grow any more.
    `drop` is the share of rows that an epoch does not learn from.
    """

    source: Rows
    rows: int
    context: int
    seed: int
    apart: bool = False
    shuffle: bool = True
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.pairs == 0:
            raise BadInput("the data set has no rows of two tokens or more")
        if self.rows < 1 or self.context < 1:
            raise BadInput(f"a batch needs at least one row of one token, not {self.rows} x {self.context}")

    @property
    def pairs(self) -> int:
        """How many (token, next token) one epoch has."""
        return int(self.source.starts[-1]) - len(self.source)

    @property
    def lines(self) -> int:
        return -(-self.pairs // self.context)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.lines // self.rows)

    @functools.cached_property
    def _chunk(self) -> int:
        return len(self.source) if len(self.source) <= WHOLE else CHUNK

    @functools.cached_property
    def _layout(self) -> Callable[[int | None, int], tuple[np.ndarray, np.ndarray]]:
        return functools.lru_cache(maxsize=2 if self._chunk != CHUNK else self.rows + 2)(self._lay_out)

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        """How many pairs stand before each chunk, and before the end, as the rows lie."""
        edges = np.append(np.arange(0, len(self.source), self._chunk), len(self.source))
        return np.asarray(self.source.starts[edges]) - edges

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        number = epoch if self.shuffle else None
        lines = [line * self.steps_per_epoch + index for line in range(self.rows)]
        if self.shuffle and max(len(self.source), self.lines) <= WHOLE:
            lines = epoch_order(self.lines, self.seed, epoch)[
                [line for line in lines if line < self.lines]
            ].tolist()
        cut = [self._line(number, line) for line in lines if line < self.lines]
        shape = (min(self.rows, self.lines), self.context)
        at, inside = np.zeros(shape, np.int64), np.zeros(shape, bool)
        documents = np.full(shape, -1)
        for row, (indices, document) in enumerate(cut):
            at[row, : len(indices)], inside[row, : len(indices)] = indices, True
            documents[row, : len(indices)] = document
        after = at + inside
        counted = self.source.scored[after] & inside
        if self.drop:
            rows = np.searchsorted(self.source.starts, at, side="right") - 1
            counted &= ~dropped(rows, self.seed, epoch, self.drop)
        tensors = columns_at(self.source, at, after, inside)
        tensors["weights"] = torch.from_numpy(counted.astype(np.float32))
        tensors["lengths"] = torch.from_numpy(inside.sum(1))
        if self.apart:
            tensors["documents"] = torch.from_numpy(documents)
        return Batch(tensors)

    def _line(self, epoch: int | None, line: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of one line lie, and a number for the row that each belongs to."""
        moved, _, _ = self._course(epoch)
        first = line * self.context
        length = min(self.context, self.pairs - first)
        first = (first + moved) % self.pairs
        pieces = [self._stretch(epoch, first, min(first + length, self.pairs))]
        if first + length > self.pairs:  # the line in which the end of the epoch meets its start
            pieces.append(self._stretch(epoch, 0, first + length - self.pairs))
            pieces[1] = (pieces[1][0], pieces[1][1] + pieces[0][1][-1] + 1)
        indices, documents = zip(*pieces, strict=True)
        return np.concatenate(indices), np.concatenate(documents)

    def _stretch(self, epoch: int | None, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for pairs `first` to `last` of the shuffled epoch."""
        _, order, ends = self._course(epoch)
        chunk, known = int(np.searchsorted(ends, first, side="right")), 0
        indices: list[np.ndarray] = []
        documents: list[np.ndarray] = []
        while first < last:
            before = int(ends[chunk - 1]) if chunk else 0
            low, high = first - before, min(last, int(ends[chunk])) - before  # pairs of this chunk
            starts, stops = self._layout(epoch, int(order[chunk]))
            row = slice(int(np.searchsorted(stops, low, side="right")), int(np.searchsorted(stops, high)) + 1)
            begins = np.append(stops[row.start - 1] if row.start else 0, stops[row][:-1])
            lengths = np.minimum(stops[row], high) - np.maximum(begins, low)
            indices.append(np.repeat(starts[row] - begins, lengths) + np.arange(low, high))
            documents.append(np.repeat(np.arange(known, known + len(lengths)), lengths))
            first, chunk, known = before + high, chunk + 1, known + len(lengths)
        return np.concatenate(indices), np.concatenate(documents)

    def _random(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, (epoch << 32) + (1 << 31) + purpose]))

    @functools.cached_property
    def _course(self) -> Callable[[int | None], tuple[int, np.ndarray, np.ndarray]]:
        return functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int | None) -> tuple[int, np.ndarray, np.ndarray]:
        """Where the epoch starts, the order of its chunks, and how many pairs there are up to the end of each."""
        order = epoch_order(len(self._bounds) - 1, self.seed, epoch)
        moved = 0 if epoch is None else int(self._random(epoch, 0).integers(self.pairs))
        return moved, order, np.cumsum(np.diff(self._bounds)[order])

    def _lay_out(self, epoch: int | None, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a chunk in the order of this epoch: where each starts, and how many pairs up to its end."""
        first = chunk * self._chunk
        starts = np.asarray(self.source.starts[first : first + self._chunk + 1])
        order = np.arange(len(starts) - 1)
        if epoch is not None:
            order = self._random(epoch, chunk + 1).permutation(order)
        return starts[order], np.cumsum(np.diff(starts)[order] - 1)


@dataclass(frozen=True)
class Masked:
    """Augmentation: a share of the input tokens of each batch is replaced by random ones; targets stay."""

    plan: Plan
    share: float
    vocabulary: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def batch(self, step: int) -> Batch:
        batch = self.plan.batch(step)
        random = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 63) + step]))
        shape = tuple(batch["ids"].shape)
        others = torch.from_numpy(random.integers(0, self.vocabulary, shape))
        masked = torch.from_numpy(random.random(shape) < self.share)
        return batch.replaced(ids=torch.where(masked, others, batch["ids"]))


def dropped(rows: np.ndarray, seed: int, epoch: int, share: float) -> np.ndarray:
    """Augmentation: which of these rows an epoch leaves out, by a hash of the row (splitmix64)."""
    key = np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1342543DE82EF95) % 2**64)
    mixed = rows.astype(np.uint64) + key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) < np.uint64(min(share, 1.0) * (2**64 - 2048)))


@functools.lru_cache(maxsize=4)
def epoch_order(rows: int, seed: int, epoch: int | None) -> np.ndarray:
    """The order of the rows in one epoch; None leaves them as they lie."""
    if epoch is None:
        return np.arange(rows)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def pad_rows(
    source: Rows,
    chosen: np.ndarray,
    multiple: int = 1,
    context: int | None = None,
    fixed: int | None = None,
) -> Batch:
    """Lay these rows side by side: inputs without their last step, targets without their first."""
    lengths = source.starts[chosen + 1] - source.starts[chosen] - 1
    longest = int(lengths.max())
    rounded = -(-longest // multiple) * multiple
    width = fixed if fixed is not None else max(longest, min(rounded, context or rounded))
    if longest > width:
        raise BadInput(f"a row of {longest} tokens does not fit into batches of {width} tokens")
    column = np.arange(width)
    inside = column[None, :] < lengths[:, None]
    index = np.where(inside, source.starts[chosen][:, None] + column[None, :], 0)
    after = np.where(inside, index + 1, 0)
    tensors = columns_at(source, index, after, inside)
    tensors["weights"] = torch.from_numpy((source.scored[after] & inside).astype(np.float32))
    tensors["lengths"] = torch.from_numpy(lengths)
    return Batch(tensors)


def columns_at(source: Rows, index: np.ndarray, after: np.ndarray, inside: np.ndarray) -> dict[str, Tensor]:
    """Every column at these steps [B, T] and one step later; 0 where no step is inside."""
    tensors: dict[str, Tensor] = {}
    for prefix, steps in (("", index), (NEXT, after)):
        for name, values in source.columns.items():
            tensors[prefix + name] = _laid(values, steps, inside)
        for name, mask in source.present.items():
            tensors[f"{prefix}{PRESENT}{name}"] = torch.from_numpy(mask[steps] & inside)
    return tensors


def _laid(values: Flat, steps: np.ndarray, inside: np.ndarray) -> Tensor:
    found = values[steps]
    wide = np.int64 if np.issubdtype(found.dtype, np.integer) else np.float32
    kept = inside.reshape(inside.shape + (1,) * (found.ndim - 2))
    return torch.from_numpy(np.where(kept, found, 0).astype(wide))


class Prefetcher:
    """Batches of consecutive steps from a thread, through a bounded queue; the wait for each is measured.

    `pin` puts them where a GPU copies them from.
    """

    def __init__(self, plan: Plan, first: int, last: int, depth: int = 4, *, pin: bool = False) -> None:
        self._pin = pin
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
                item = plan.batch(step).pinned() if self._pin else plan.batch(step)
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
