"""From hidden vectors to the vocabulary: logits for rows that sample, losses for rows that learn.

Losses are computed in chunks of rows, so that the logits of a whole batch never exist in float32 (`losses`).
Legend: N = rows (batch and time flattened), W = model width, V = vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.config import LossConfig, ModelConfig
from linnet.model.kernels import WeightedNats, fused_loss, whole_loss
from linnet.model.losses import ChunkedLoss, logits, target_losses

PLAIN = LossConfig()
CHUNK = 1 << 22  # float32 logits that may exist at once
CHUNK_ON_A_GPU = 1 << 26  # which small products keep idle; the size is a guess, measured nowhere


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    return max(1, (CHUNK if device.type == "cpu" else CHUNK_ON_A_GPU) // vocabulary)


class Head(nn.Module):
    """The output layer, a module of its own even when it shares the embedding's weight."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.softcap, self.vocabulary = config.head.softcap, config.vocabulary
        shape = (config.vocabulary, config.width)
        self.weight = embedding.weight if config.head.tied else nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(config.vocabulary)) if config.head.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] for these hidden vectors [..., W]."""
        return logits(hidden, self.weight, self.bias, self.softcap)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats of each target, float32 and shaped like `targets`; differentiable, chunk by chunk."""
        flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        rows = chunk_rows(self.vocabulary, flat.device)
        pieces = [
            F.cross_entropy(self(flat[i : i + rows]).float(), wanted[i : i + rows], reduction="none")
            for i in range(0, max(1, len(flat)), rows)
        ]
        return torch.cat(pieces).view(targets.shape)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor, config: LossConfig = PLAIN) -> Tensor:
        """The weighted sum of what training minimises: nats, unless `config` has further terms.

        `hidden` has the rows of `targets`, or those of two passes over them, one after the other. Outside a
        compiled graph each chunk is differentiated while its logits exist, so neither the logits nor
        their gradient are ever held for the whole batch. A compiler fuses the plain form by itself,
        and on a GPU plain nats are made with the gradient of their logits.
        """
        width = hidden.shape[-1]
        flat = hidden.reshape(-1, width) if config.passes == 1 else hidden.reshape(config.passes, -1, width)
        targets, weights = targets.reshape(-1), weights.reshape(-1)
        if fused_loss(flat.device) and self.bias is None and self.softcap is None and config == PLAIN:
            return WeightedNats.apply(flat, self.weight, targets, weights)
        if whole_loss():
            return (target_losses(self(flat).float(), targets, config) * weights).sum()
        rows = chunk_rows(self.vocabulary * config.passes, flat.device)
        if not torch.is_grad_enabled():
            flat = flat.detach()
        return ChunkedLoss.apply(flat, self.weight, self.bias, targets, weights, self.softcap, config, rows)
