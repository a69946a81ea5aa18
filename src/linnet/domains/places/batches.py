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
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        chosen = order[index * self.batch_rows : (index + 1) * self.batch_rows]
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 40) + step])) if self.augment else None
        return pad(self.rows.gather(chosen, rng))


def pad(gathered: Gathered) -> Batch:
    """[B, T, …] columns, padded on the right with zeros, and what each row has once [B]."""
    lengths = np.diff(gathered.starts)
    rows, width = len(lengths), int(lengths.max())
    shift = np.arange(rows) * width - gathered.starts[:-1]
    index = np.arange(int(gathered.starts[-1])) + np.repeat(shift, lengths)
    tensors = {name: torch.from_numpy(values) for name, values in gathered.rows.items()}
    for name, values in gathered.columns.items():
        table = np.zeros((rows * width, *values.shape[1:]), values.dtype)
        table[index] = values
        tensors[name] = torch.from_numpy(table).unflatten(0, (rows, width))
    return Batch({**tensors, "weights": torch.ones(rows), "lengths": torch.from_numpy(lengths)})
