"""From hidden vectors to the vocabulary: logits for rows that sample, losses for rows that learn.

Losses are computed in chunks of rows, so that the logits of a whole batch never exist in float32.
Legend: N = rows (batch and time flattened), W = model width, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.config import ModelConfig

CHUNK = 1 << 22  # float32 logits that may exist at once


def chunk_rows(vocabulary: int) -> int:
    return max(1, CHUNK // vocabulary)


class Head(nn.Module):
    """The output layer, a module of its own even when it shares the embedding's weight."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.softcap = config.head.softcap
        shape = (config.vocabulary, config.width)
        self.weight = embedding.weight if config.head.tied else nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(config.vocabulary)) if config.head.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] for these hidden vectors [..., W]."""
        return logits(hidden, self.weight, self.bias, self.softcap)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats of each target, float32 and shaped like `targets`; differentiable, chunk by chunk."""
        flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        rows = chunk_rows(len(self.weight))
        pieces = [
            F.cross_entropy(self(flat[i : i + rows]).float(), wanted[i : i + rows], reduction="none")
            for i in range(0, max(1, len(flat)), rows)
        ]
        return torch.cat(pieces).view(targets.shape)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of nats, as training needs it.

        Outside a compiled graph each chunk is differentiated while its logits exist, so neither the logits nor
        their gradient are ever held for the whole batch. A compiler fuses the plain form by itself.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        targets, weights = targets.reshape(-1), weights.reshape(-1)
        if torch.compiler.is_compiling():
            nats = F.cross_entropy(self(flat).float(), targets, reduction="none")
            return (nats * weights).sum()
        if not torch.is_grad_enabled():
            return (self.nll(flat, targets) * weights).sum()
        return ChunkedLoss.apply(flat, self.weight, self.bias, targets, weights, self.softcap)


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    scores = F.linear(hidden, weight, bias)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


class ChunkedLoss(torch.autograd.Function):
    """Weighted nats of a linear layer, with gradients made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        softcap: float | None,
    ) -> Tensor:
        leaves = [weight.detach().requires_grad_()]
        if bias is not None:
            leaves.append(bias.detach().requires_grad_())
        wanted = any(ctx.needs_input_grad)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden) if wanted else None
        leaf_grads = [torch.zeros_like(leaf) for leaf in leaves] if wanted else []
        rows = chunk_rows(len(weight))
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            with torch.set_grad_enabled(wanted):
                chunk = hidden[part].detach().requires_grad_(wanted)
                scores = logits(chunk, leaves[0], leaves[1] if bias is not None else None, softcap)
                nats = F.cross_entropy(scores.float(), targets[part], reduction="none")
                loss = (nats * weights[part]).sum()
            total += loss.detach()
            if hidden_grad is not None:
                chunk_grad, *grads = torch.autograd.grad(loss, [chunk, *leaves])
                hidden_grad[part] = chunk_grad
                for kept, grad in zip(leaf_grads, grads, strict=True):
                    kept += grad
        ctx.has_bias = bias is not None
        ctx.save_for_backward(hidden_grad, *leaf_grads)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad, *rest = (saved * upstream[0] for saved in ctx.saved_tensors)
        return hidden_grad, weight_grad, rest[0] if ctx.has_bias else None, None, None, None
