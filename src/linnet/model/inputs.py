"""What a model reads, and what it answers.

Legend: B = rows, T = new tokens a row (padded on the right), P = prefix vectors, W = model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from linnet.model.state import State


@dataclass(frozen=True)
class Inputs:
    """A batch of token rows and everything that goes with them; a plain tensor of ids will do instead."""

    ids: Tensor  # int64 [B, T]
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # int64 [B, T] each
    prefix: Tensor | None = None  # float [B, P, W], stands before the ids
    lengths: Tensor | None = None  # int64 [B]; None: every row has all T tokens
    documents: Tensor | None = None  # int64 [B, T]; tokens attend within their document only
    ancestors: Tensor | None = None  # bool [B, T, T]; a packed tree: the tokens above each token

    @classmethod
    def of(cls, inputs: Inputs | Tensor) -> Inputs:
        inputs = inputs if isinstance(inputs, Inputs) else cls(inputs)
        ids = inputs.ids
        if ids.ndim != 2:
            raise ValueError(f"ids need the shape [rows, tokens], not {tuple(ids.shape)}")
        rows, tokens = ids.shape
        wanted = {
            "lengths": (inputs.lengths, (rows,)),
            "documents": (inputs.documents, (rows, tokens)),
            "ancestors": (inputs.ancestors, (rows, tokens, tokens)),
            **{f"values of the field {name}": (value, (rows, tokens)) for name, value in inputs.fields.items()},
        }
        for name, (value, shape) in wanted.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} need the shape {list(shape)}, not {list(value.shape)}")
        if inputs.ancestors is None:
            return inputs
        # Each token sees itself, padding too: a query that saw nothing would be NaN, and NaN spreads.
        itself = torch.eye(tokens, dtype=torch.bool, device=ids.device)
        return replace(inputs, ancestors=inputs.ancestors | itself)

    def twice(self) -> Inputs:
        """All rows, and behind them all rows again: two passes that drop different values."""

        def both(value: Tensor | None) -> Tensor | None:
            return None if value is None else torch.cat((value, value))

        return Inputs(
            torch.cat((self.ids, self.ids)),
            {name: torch.cat((value, value)) for name, value in self.fields.items()},
            both(self.prefix),
            both(self.lengths),
            both(self.documents),
            both(self.ancestors),
        )


@dataclass(frozen=True)
class Output:
    """`hidden` [B, P + T, W] goes to `model.head`; `state` goes on; `kept` holds the asked taps by name."""

    hidden: Tensor
    state: State | None
    kept: Mapping[str, Tensor]
