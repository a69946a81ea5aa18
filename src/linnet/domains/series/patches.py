"""Windows as rows of the decoder: each step reads a patch of values and its marks, and the last one predicts.

The column `ahead` is read nowhere and predicted at the last step: the whole horizon at once, or as many steps as
it is wide, again and again. Its numbers are in units of the window over the square root of the step.
Legend: B = windows, L = history, N = patches, P = steps of a patch, H = steps of the column `ahead`.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.data import NEXT, PRESENT, Batch
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.residual import unit_costs
from linnet.errors import BadInput
from linnet.model.columns import NumberHead
from linnet.model.config import ModelConfig, NumberColumn
from linnet.model.inputs import Inputs
from linnet.model.model import Model

PATCH, OBSERVED, LEVEL, AHEAD = "patch", "observed", "level", "ahead"
WHOLE = 1  # a width of `ahead` that stands for the whole horizon


def columns_of(config: ModelConfig) -> tuple[NumberColumn, NumberColumn]:
    """The columns of patches and of what is ahead; a network without them reads no series."""
    found = [config.columns.get(name) for name in (PATCH, AHEAD)]
    if not all(isinstance(column, NumberColumn) for column in found) or config.vocabulary:
        raise BadInput(
            f"a decoder of series needs the columns {PATCH}, {OBSERVED}, {LEVEL} and {AHEAD}, and no tokens"
        )
    return cast(NumberColumn, found[0]), cast(NumberColumn, found[1])


def sized(config: ModelConfig, codec: SeriesCodec) -> ModelConfig:
    """The decoder with a context for the longest history; `ahead` is as wide as the horizon where it is open."""
    patch, ahead = columns_of(config)
    width = codec.horizon if ahead.width == WHOLE else ahead.width
    columns = dict(config.columns) | {AHEAD: ahead.model_copy(update={"width": width})}
    context = config.context or -(-max(codec.histories) // patch.width)
    return config.model_copy(update={"columns": columns, "context": context})


def read_columns(config: ModelConfig, batch: Batch | dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns [B, N, …] of windows [B, L], which are filled up at their beginning to whole patches."""
    patch, ahead = columns_of(config)
    values, observed = batch["values"], batch["observed"]
    values, observed = (part[:, -config.context * patch.width :] for part in (values, observed))
    missing = -values.shape[1] % patch.width
    columns = {
        PATCH: F.pad(values, (missing, 0)).unflatten(1, (-1, patch.width)),
        OBSERVED: F.pad(observed, (missing, 0)).unflatten(1, (-1, patch.width)),
    }
    rows, steps = columns[PATCH].shape[:2]
    columns[LEVEL] = batch["level"][:, None, None].expand(rows, steps, 1)
    columns[AHEAD] = values.new_zeros(rows, steps, ahead.width)
    columns[PRESENT + AHEAD] = torch.zeros(rows, steps, dtype=torch.bool, device=values.device)
    return columns


def patched(config: ModelConfig, batch: Batch) -> Batch:
    """The batch of a plan of windows as rows of the decoder. Windows with a missing target teach nothing."""
    columns = read_columns(config, batch)
    rows, steps = columns[PATCH].shape[:2]
    width = columns[AHEAD].shape[2]
    targets, known = batch[NEXT + "values"][:, :width], batch[NEXT + "observed"][:, :width]
    whole = (known.sum(1) == width).float()
    weights = torch.zeros(rows, steps)
    weights[:, -1] = unit_costs(batch) * whole
    ahead = torch.zeros(rows, steps, width)
    ahead[:, -1] = targets / growth(width)
    lengths = torch.full((rows,), steps)
    further = {NEXT + AHEAD: ahead, NEXT + PRESENT + AHEAD: weights > 0, "weights": weights, "lengths": lengths}
    return Batch({**columns, **further})


def growth(width: int) -> Tensor:
    return torch.arange(1, width + 1, dtype=torch.float32).sqrt()


def quantiles(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    """[B, H, Q] in units of the window."""
    columns = read_columns(model.config, inputs)
    present = {AHEAD: columns.pop(PRESENT + AHEAD)}
    hidden = model(Inputs(columns, present)).hidden[:, -1:]
    found = cast(NumberHead, model.heads[AHEAD])(hidden)[:, 0]
    return found * growth(found.shape[1]).to(found.device)[:, None]
