"""Rows of visits as batches: padded columns of ids and fields, with one target at the last visit of each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from linnet.data import Batch, epoch_order
from linnet.domains.places.features import Gathered, VisitRows
from linnet.errors import BadInput


@dataclass(frozen=True)
class VisitPlan:
    """Every row once an epoch, in an order that the seed decides.

    Rows of similar length are not put together: they are often rows of one person.
    """

    rows: VisitRows
    batch_rows: int
    seed: int
    augment: bool = True

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise BadInput("the data set has no samples")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_rows)

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        chosen = order[place * self.batch_rows : (place + 1) * self.batch_rows]
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 40) + step])) if self.augment else None
        return pad(self.rows.gather(chosen, rng))


def pad(gathered: Gathered) -> Batch:
    """[B, T] columns, padded on the right with zeros."""
    lengths = np.diff(gathered.starts)
    rows, width = len(lengths), int(lengths.max())
    shift = np.arange(rows) * width - gathered.starts[:-1]
    place = np.arange(int(gathered.starts[-1])) + np.repeat(shift, lengths)
    last = np.arange(rows) * width + lengths - 1

    def laid(values: np.ndarray, where: np.ndarray) -> torch.Tensor:
        table = np.zeros(rows * width, np.int64)
        table[where] = values
        return torch.from_numpy(table).view(rows, width)

    columns = {name: laid(values, place) for name, values in gathered.fields.items()}
    targets = {f"next.{name}": laid(values, last) for name, values in gathered.next.items()}
    weights = laid(np.ones(rows, np.int64), last).to(torch.float32)
    own = {"ids": laid(gathered.ids, place), "next.ids": laid(gathered.target, last), "weights": weights}
    return Batch({**own, **columns, **targets, "lengths": torch.from_numpy(lengths)})
