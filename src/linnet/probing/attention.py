"""Attention patterns of one sequence, read through the model's own taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linnet.model.model import Model, evaluating
from linnet.model.taps import expand


def patterns(model: Model, ids: Sequence[int]) -> Tensor:
    """Shares [layer, head, query, key] of every attention layer of the model."""
    layers = [layer for layer, mixer in enumerate(model.config.mixers) if mixer == "attention"]
    keep = expand(model.config, [f"blocks.{layer}.attn.hook_pattern" for layer in layers])
    with evaluating(model):
        kept = model(torch.tensor([list(ids)], device=model.device), keep=keep).kept
    return torch.stack([kept[name][0].float() for name in keep])
