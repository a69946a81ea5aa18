"""Who may attend to whom: one convention (True = attend), built here alone.

Padding stands on the right, so under a causal mask no real token ever sees it and it needs no mask of its own.
Legend: B = rows, T = new tokens (queries), S = slots (keys).
"""

from __future__ import annotations

import torch
from torch import Tensor

from linnet.model.inputs import Inputs
from linnet.model.kernels import Mask, causal_square


def without_memory(inputs: Inputs, tokens: int, causal: bool) -> Mask:
    """The mask of a call that starts from nothing."""
    device = inputs.device
    if inputs.ancestors is not None:
        return Mask(inputs.ancestors[:, None], False)
    parts = []
    if inputs.documents is not None:
        parts.append(inputs.documents[:, None, :, None] == inputs.documents[:, None, None, :])
    if not causal and inputs.lengths is not None:
        # An empty row sees its first padding, since a query that saw nothing would be NaN.
        lengths = inputs.lengths.clamp(min=1)
        inside = torch.arange(tokens, device=device) < lengths[:, None]
        parts.append(inside[:, None, None, :].expand(-1, -1, tokens, -1))
    if not parts:
        return Mask(None, causal)
    allowed = parts[0] if len(parts) == 1 else parts[0] & parts[1]
    return Mask(allowed & causal_square(tokens, device) if causal else allowed, False)


def with_memory(inputs: Inputs, positions: Tensor, lengths: Tensor, slots: int, tokens: int) -> Mask:
    """The mask of a call that goes on: each query sees its row's slots up to its own.

    `positions` [B, T] are the slots that the new tokens were written to; `lengths` [B] the tokens before them.
    """
    slot = torch.arange(slots, device=positions.device)
    if inputs.ancestors is None:
        return Mask((slot <= positions[:, :, None])[:, None], False)
    before = slot < lengths[:, None, None]
    offset = slot - lengths[:, None]  # [B, S]: which new token a slot holds
    new = (offset >= 0) & (offset < tokens)
    column = offset.clamp(0, tokens - 1)[:, None, :].expand(-1, tokens, -1)
    above = inputs.ancestors.gather(2, column) & new[:, None, :]
    return Mask((before | above)[:, None], False)
