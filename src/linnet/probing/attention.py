"""Attention patterns of one sequence, read through the model's own taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import Network, evaluating


def patterns(network: Network, ids: Sequence[int]) -> Tensor:
    """Shares [layer, head, query, key] of every attention layer."""
    keep = tuple(name for name in network.taps() if name.endswith("attn.hook_pattern"))
    if not keep:
        raise BadInput("this model has no attention layer to look into")
    with evaluating(network):
        kept = network(torch.tensor([list(ids)], device=network.device), keep=keep).kept
    return torch.stack([kept[name][0].float() for name in keep])
