"""Windows with a label: whole series, or pieces of one length and stride with the label of most of their steps.

Parts are cut by group (a person, a machine) where a table names groups, else by series, so that no window of one
is in another part. Steps that are missing are zero in units of the window and marked as not observed.
Legend: n = windows, B = windows of a batch, T = steps of one, C = channels, K = classes, S = steps of a table.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from linnet.data import NEXT, Batch, epoch_order
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput, counted, nearest

FARTHEST = 1e9  # deviations from the mean of the training part; what is further counts as that
FLAT = 1e-8  # deviation below which a channel of a window counts as constant


@dataclass(frozen=True)
class LabelRows:
    """Windows of a table: `first` is the step where each begins, `count` how many steps it has."""

    table: SeriesTable
    codec: SeriesCodec
    series: np.ndarray  # int64 [n]
    first: np.ndarray  # int64 [n]
    count: np.ndarray  # int64 [n]
    seen: np.ndarray  # int64 [S + 1, K]: steps of each class before a step; [S + 1, 0] without labels
    learned: LabelRows | None = None  # what the run learned from, for baselines on these windows
    held_out: bool = False  # nothing is learned from these windows, so a temperature can be fitted to them

    def __len__(self) -> int:
        return len(self.series)

    @property
    def steps(self) -> int:
        return int(self.count.sum())

    @property
    def targets(self) -> int:
        return len(self)

    def select(self, chosen: np.ndarray) -> LabelRows:
        return replace(self, series=self.series[chosen], first=self.first[chosen], count=self.count[chosen])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.table.fingerprint().encode())
        for part in (self.first, self.count):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """int64 [n]: the class of most steps, the first of those that tie."""
        return self.classes(self.first, self.count)

    def classes(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        return np.asarray((self.seen[first + count] - self.seen[first]).argmax(1))

    @property
    def groups(self) -> np.ndarray:
        """Names of what intervals are drawn over [n]: groups where there are any, else series."""
        named = self.table.groups if any(self.table.groups) else self.table.names
        return np.array(named, dtype=object)[self.series]

    def values(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """[B, T, C]; NaN after the end of a window."""
        steps = np.arange(self.codec.length)
        inside = steps < count[:, None]
        index = np.where(inside, first[:, None] + steps, 0)
        return np.where(inside[..., None], self.table.values[index], np.nan)

    def batch(self, first: np.ndarray, count: np.ndarray, variation: Variation | None = None) -> Batch:
        found = self.values(first, count)
        if variation is not None:
            found = variation.turned(found)
        found = normalised(found, self.codec)
        observed = np.isfinite(found).all(2)
        found = np.where(observed[..., None], found, 0.0)
        if variation is not None:
            found = variation.varied(found)
        tensors = {
            "values": torch.from_numpy(found.astype(np.float32)),
            "observed": torch.from_numpy(observed.astype(np.float32)),
            "lengths": torch.from_numpy(count),
            "weights": torch.ones(len(first)),
        }
        if self.seen.shape[1]:
            tensors[NEXT + "class"] = torch.from_numpy(self.classes(first, count))
        return Batch(tensors)


def normalised(windows: np.ndarray, codec: SeriesCodec) -> np.ndarray:
    """Windows [B, T, C] in units of the training part where the codec has them, else in units of their own.

    A channel that never moves within its window becomes 0 there.
    """
    if codec.means:
        with np.errstate(over="ignore"):
            found = (windows - np.array(codec.means)) / np.array(codec.deviations)
        return np.clip(found, -FARTHEST, FARTHEST)
    known = np.isfinite(windows)
    counts = np.maximum(known.sum(1, keepdims=True), 1)
    mean = np.where(known, windows, 0.0).sum(1, keepdims=True) / counts
    apart = np.where(known, windows - mean, 0.0)
    deviation = np.sqrt((apart**2).sum(1, keepdims=True) / counts)
    moving = deviation > FLAT * np.maximum(np.abs(mean), 1e-300)
    return np.asarray((windows - mean) * np.where(moving, 1 / np.where(moving, deviation, 1), 0.0))


@dataclass(frozen=True)
class Variation:
    """Augmentation of a batch: sensors that are turned, and other amplitudes.

    Noise is not added: in windows that hardly move it decides how often a filter exceeds a threshold.
    """

    random: np.random.Generator
    turn: float  # degrees: the deviation of the angle

    def turned(self, values: np.ndarray) -> np.ndarray:
        """Windows [B, T, C] whose triples of channels are turned about one random axis each window."""
        rows, steps, channels = values.shape
        if not self.turn or channels % 3:
            return values
        axis = self.random.normal(size=(rows, 3))
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        angle = np.radians(self.turn) * self.random.normal(size=(rows, 1, 1))
        cross = np.cross(np.eye(3), axis[:, None])  # [B, 3, 3]
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
        return np.asarray(values.reshape(rows, -1, 3) @ turn).reshape(rows, steps, channels)

    def varied(self, values: np.ndarray) -> np.ndarray:
        size = np.exp(0.1 * self.random.normal(size=(len(values), 1, values.shape[2])))
        return np.asarray(values * size)


@dataclass(frozen=True)
class LabelPlan:
    """All windows once an epoch, in batches of nearly one size, so that none is too small to be normalised over.

    Pieces of a longer series are moved by up to half their stride either way. `balance` weighs a class by its
    share to the power of minus this: 0 leaves windows alike, 1 classes.
    """

    rows: LabelRows
    size: int
    seed: int
    stride: int
    turn: float = 0.0
    balance: float = 0.5

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise BadInput("the training part has no windows with a label")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.size)

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        counts = np.bincount(self.rows.truth, minlength=len(self.rows.codec.classes))
        shares = np.maximum(counts, 1) / len(self.rows) * max(1, (counts > 0).sum())
        return np.asarray(shares**-self.balance)

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        bounds = np.arange(self.steps_per_epoch + 1) * len(order) // self.steps_per_epoch
        chosen = order[bounds[index] : bounds[index + 1]]
        random = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 40) + step]))
        first, count = self.rows.first[chosen], self.rows.count[chosen]
        if self.stride:
            first = first + random.integers(-self.stride // 2, self.stride // 2 + 1, len(first))
            starts = self.rows.table.starts
            series = self.rows.series[chosen]
            first = np.clip(first, starts[series], starts[series + 1] - count)
        batch = self.rows.batch(first, count, Variation(random, self.turn))
        weights = self._weights[batch[NEXT + "class"].numpy()].astype(np.float32)
        return batch.replaced(weights=torch.from_numpy(weights))


def class_counts(table: SeriesTable, classes: tuple[str, ...]) -> np.ndarray:
    """int64 [S + 1, K]: how many steps of each class come before each step; refuses a label that is not known."""
    if table.labels is None:
        return np.zeros((len(table.values) + 1, 0), np.int64)
    names, number = np.unique(table.labels.astype(str), return_inverse=True)
    unknown = [name for name in names.tolist() if name not in classes]
    if unknown:
        index = int((table.labels == unknown[0]).argmax())
        where = table.where[int(np.searchsorted(table.starts, index, side="right")) - 1]
        raise BadInput(f'{where}: this run knows no class "{unknown[0]}"{nearest(unknown[0], classes)}')
    known = np.array([classes.index(name) for name in names.tolist()])
    marks = np.zeros((len(table.values) + 1, len(classes)), np.int64)
    marks[np.arange(1, len(marks)), known[number.ravel()]] = 1
    return marks.cumsum(0)


def labelled_windows(table: SeriesTable, codec: SeriesCodec, stride: int) -> LabelRows:
    """Whole series where `stride` is 0, else pieces; a series shorter than a piece is one window."""
    if len(table.channels) != len(codec.channels):
        where, channels = table.where[0], counted(len(table.channels), "channel")
        raise BadInput(f"{where}: {channels}, and the run has {len(codec.channels)}")
    series: list[int] = []
    first: list[int] = []
    count: list[int] = []
    for index, (begin, end) in enumerate(zip(table.starts[:-1].tolist(), table.starts[1:].tolist(), strict=True)):
        last = max(begin, end - codec.length)
        for start in range(begin, last + 1, stride) if stride else (begin,):
            series.append(index)
            first.append(start)
            count.append(min(codec.length, end - start))
    begins, counts = np.array(first, np.int64), np.array(count, np.int64)
    return LabelRows(table, codec, np.array(series, np.int64), begins, counts, class_counts(table, codec.classes))


def split(rows: LabelRows, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows to learn from and to validate on, cut by group; without groups, each class is cut apart."""
    nothing = np.empty(0, np.int64)
    everything = np.arange(len(rows))
    if share == 0:
        return everything, nothing
    random = np.random.default_rng(seed)
    names = rows.groups
    units = np.array(sorted(set(names.tolist())), dtype=object)
    if any(rows.table.groups):
        kept = units[random.permutation(len(units))[: max(1, round(share * len(units)))]]
    else:
        order = random.permutation(len(rows))
        chosen = [order[rows.truth[order] == label] for label in np.unique(rows.truth)]
        kept = names[np.concatenate([one[: round(share * len(one))] for one in chosen])]
    inside = np.isin(names.astype(str), kept.astype(str))
    if inside.all() or not inside.any():
        return everything, nothing
    return everything[~inside], everything[inside]
