"""What a network reads, and what it answers.

Legend: B = rows, T = new steps a row (padded on the right), W = model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from linnet.data import NEXT, PRESENT
from linnet.rows import IDS

if TYPE_CHECKING:
    from linnet.model.state import State

AROUND = ("lengths", "documents", "weights")  # tensors of a batch that are no columns


@dataclass(frozen=True)
class Inputs:
    """Rows of columns, and everything that goes with them; a plain tensor of ids will do instead."""

    columns: Mapping[str, Tensor]  # int64 [B, T] of ids, float [B, T, width] of numbers
    present: Mapping[str, Tensor] = field(default_factory=dict)  # bool [B, T]; other columns are at every step
    lengths: Tensor | None = None  # int64 [B]; None: every row has all T steps
    documents: Tensor | None = None  # int64 [B, T]; steps attend within their document only
    ancestors: Tensor | None = None  # bool [B, T, T]; a packed tree: the steps above each step

    @classmethod
    def of(cls, inputs: Inputs | Tensor | Mapping[str, Tensor]) -> Inputs:
        """Inputs as they are, a tensor of ids, or the input part of a batch; wrong shapes are refused."""
        if isinstance(inputs, Tensor):
            inputs = cls({IDS: inputs})
        elif isinstance(inputs, Mapping):
            inputs = cls._of_batch(inputs)
        rows, steps = inputs.shape
        wrong = {
            "lengths": (inputs.lengths, (rows,)),
            "documents": (inputs.documents, (rows, steps)),
            "ancestors": (inputs.ancestors, (rows, steps, steps)),
            **{f"values of the column {name}": (value, (rows, steps)) for name, value in inputs.columns.items()},
            **{f"marks of the column {name}": (value, (rows, steps)) for name, value in inputs.present.items()},
        }
        for name, (value, shape) in wrong.items():
            if value is not None and (tuple(value.shape[:2]) if "values" in name else tuple(value.shape)) != shape:
                raise ValueError(f"{name} need the shape {list(shape)}, not {list(value.shape)}")
        if inputs.ancestors is None:
            return inputs
        # Each step sees itself, padding too: a query that saw nothing would be NaN, and NaN spreads.
        itself = torch.eye(steps, dtype=torch.bool, device=inputs.device)
        return replace(inputs, ancestors=inputs.ancestors | itself)

    @classmethod
    def _of_batch(cls, batch: Mapping[str, Tensor]) -> Inputs:
        read = {name: value for name, value in batch.items() if not name.startswith(NEXT) and name not in AROUND}
        present = {name.removeprefix(PRESENT): value for name, value in read.items() if name.startswith(PRESENT)}
        columns = {name: value for name, value in read.items() if not name.startswith(PRESENT)}
        return cls(columns, present, batch.get("lengths"), batch.get("documents"))

    @property
    def first(self) -> Tensor:
        return next(iter(self.columns.values()))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, steps)."""
        if self.first.ndim < 2:
            raise ValueError(f"ids need the shape [rows, tokens], not {tuple(self.first.shape)}")
        return self.first.shape[0], self.first.shape[1]

    @property
    def device(self) -> torch.device:
        return self.first.device

    @property
    def ids(self) -> Tensor:
        """The column of tokens."""
        return self.columns[IDS]


@dataclass(frozen=True)
class Output:
    """`hidden` [B, T, W] goes to the heads; `state` goes on; `kept` holds the values at the chosen taps."""

    hidden: Tensor
    state: State | None
    kept: Mapping[str, Tensor]
