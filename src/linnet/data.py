"""Batches: pure functions of the step, so that the position in the data is one number.

A plan knows which rows make up step n; nothing has to be replayed to go on from there.
Legend: B = rows of a batch, T = tokens of its longest row, padded on the right.
"""

from __future__ import annotations

import dataclasses
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

    `multiple` rounds the padded length up, so that steps meet few shapes, but not beyond `context`; `fixed` is
    the one length that every batch gets, and then the last batch of an epoch is filled up with empty rows, so
    that a compiled step meets one shape only. `drop` is the share of rows that an epoch does not learn from.
    """

    sequences: Sequences
    rows: int
    seed: int
    shuffle: bool = True
    multiple: int = 8
    context: int | None = None
    fixed: int | None = None
    drop: float = 0.0

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
        batch = pad_rows(self.sequences, chosen, self.multiple, self.context, self.fixed)
        if self.drop:
            kept = torch.from_numpy(~dropped(chosen, self.seed, epoch, self.drop))
            batch = dataclasses.replace(batch, weights=batch.weights * kept[:, None])
        return batch if self.fixed is None else filled(batch, self.rows)


def filled(batch: Batch, rows: int) -> Batch:
    """The batch with empty rows of no weight, up to this many."""
    missing = rows - len(batch.ids)
    if missing == 0:
        return batch

    def longer(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(missing, *values.shape[1:])])

    return Batch(
        longer(batch.ids),
        longer(batch.targets),
        longer(batch.weights),
        longer(batch.lengths),
        None if batch.documents is None else longer(batch.documents),
        {name: longer(values) for name, values in batch.fields.items()},
    )


WHOLE = 1 << 20  # up to so many rows, an epoch is one permutation of all of them
CHUNK = 1 << 14  # else rows are shuffled within chunks of this size, and the chunks among each other


@dataclass(frozen=True)
class Packed:
    """Rows end to end in batches of one shape: nothing is padded, and every scored token counts once an epoch.

    What is laid end to end is (token, next token): a row of n tokens takes n - 1 places, and no target reaches
    over the end of its row. Every epoch shuffles the rows, moves the places where they are cut into lines of
    `context`, and shuffles the lines. With `apart`, tokens see only their own row. Beyond `WHOLE` rows or lines
    each line of a batch goes through its own stretch of the epoch, and the memory in use does not grow any more.
    `drop` is the share of rows that an epoch does not learn from.
    """

    sequences: Sequences
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
        return int(self.sequences.starts[-1]) - len(self.sequences)

    @property
    def lines(self) -> int:
        return -(-self.pairs // self.context)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.lines // self.rows)

    @functools.cached_property
    def _chunk(self) -> int:
        return len(self.sequences) if len(self.sequences) <= WHOLE else CHUNK

    @functools.cached_property
    def _layout(self) -> Callable[[int | None, int], tuple[np.ndarray, np.ndarray]]:
        return functools.lru_cache(maxsize=2 if self._chunk != CHUNK else self.rows + 2)(self._lay_out)

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        """How many pairs stand before each chunk, and before the end, as the rows lie."""
        edges = np.append(np.arange(0, len(self.sequences), self._chunk), len(self.sequences))
        return np.asarray(self.sequences.starts[edges]) - edges

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        number = epoch if self.shuffle else None
        lines = [line * self.steps_per_epoch + place for line in range(self.rows)]
        if self.shuffle and max(len(self.sequences), self.lines) <= WHOLE:
            lines = epoch_order(self.lines, self.seed, epoch)[
                [line for line in lines if line < self.lines]
            ].tolist()
        cut = [self._line(number, line) for line in lines if line < self.lines]
        shape = (min(self.rows, self.lines), self.context)
        at, inside = np.zeros(shape, np.int64), np.zeros(shape, bool)
        documents = np.full(shape, -1)
        for row, (places, document) in enumerate(cut):
            at[row, : len(places)], inside[row, : len(places)] = places, True
            documents[row, : len(places)] = document
        after = at + inside
        ids, targets = (np.where(inside, self.sequences.ids[where], 0).astype(np.int64) for where in (at, after))
        counted = self.sequences.scored[after] & inside
        if self.drop:
            rows = np.searchsorted(self.sequences.starts, at, side="right") - 1
            counted &= ~dropped(rows, self.seed, epoch, self.drop)
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(targets),
            torch.from_numpy(counted.astype(np.float32)),
            torch.from_numpy(inside.sum(1)),
            torch.from_numpy(documents) if self.apart else None,
            {name: torch.from_numpy(values[at]) for name, values in self.sequences.fields.items()},
        )

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
        places, documents = zip(*pieces, strict=True)
        return np.concatenate(places), np.concatenate(documents)

    def _stretch(self, epoch: int | None, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for pairs `first` to `last` of the shuffled epoch."""
        _, order, ends = self._course(epoch)
        chunk, known = int(np.searchsorted(ends, first, side="right")), 0
        places: list[np.ndarray] = []
        documents: list[np.ndarray] = []
        while first < last:
            before = int(ends[chunk - 1]) if chunk else 0
            low, high = first - before, min(last, int(ends[chunk])) - before  # pairs of this chunk
            starts, stops = self._layout(epoch, int(order[chunk]))
            row = slice(int(np.searchsorted(stops, low, side="right")), int(np.searchsorted(stops, high)) + 1)
            begins = np.append(stops[row.start - 1] if row.start else 0, stops[row][:-1])
            lengths = np.minimum(stops[row], high) - np.maximum(begins, low)
            places.append(np.repeat(starts[row] - begins, lengths) + np.arange(low, high))
            documents.append(np.repeat(np.arange(known, known + len(lengths)), lengths))
            first, chunk, known = before + high, chunk + 1, known + len(lengths)
        return np.concatenate(places), np.concatenate(documents)

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
        starts = np.asarray(self.sequences.starts[first : first + self._chunk + 1])
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
        shape = tuple(batch.ids.shape)
        others = torch.from_numpy(random.integers(0, self.vocabulary, shape))
        return dataclasses.replace(
            batch, ids=torch.where(torch.from_numpy(random.random(shape) < self.share), others, batch.ids)
        )


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
    sequences: Sequences,
    chosen: np.ndarray,
    multiple: int = 1,
    context: int | None = None,
    fixed: int | None = None,
) -> Batch:
    """Lay these rows side by side: inputs without their last token, targets without their first."""
    lengths = sequences.starts[chosen + 1] - sequences.starts[chosen] - 1
    longest = int(lengths.max())
    rounded = -(-longest // multiple) * multiple
    width = fixed if fixed is not None else max(longest, min(rounded, context or rounded))
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
