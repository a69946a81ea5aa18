"""What training minimises at each target, and its gradient made chunk by chunk.

Scores of a model are plain nats (`Head.nll`); the further terms help to learn and are never scored.
Legend: N = rows (batch and time flattened), C = 2 passes with different dropout, W = width, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.model.config import LossConfig
from linnet.model.kernels import target_nats


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    scores = F.linear(hidden, weight, bias)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def target_losses(scores: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """The loss at each target [N], from float32 logits [N, V], or [C, N, V] of two passes over the same rows."""
    if scores.ndim == 2:
        return target_nats(scores, targets, config.smoothing, config.z_loss)
    first, second = (target_nats(one, targets, config.smoothing, config.z_loss) for one in scores)
    return (first + second) / 2 + config.r_drop * divergence(*scores)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """The mean of the two Kullback-Leibler divergences between what these logits [N, V] predict, [N]."""
    one, other = first.log_softmax(-1), second.log_softmax(-1)
    return ((one.exp() - other.exp()) * (one - other)).sum(-1) / 2


class ChunkedLoss(torch.autograd.Function):
    """The weighted sum of target losses behind a linear layer; gradients are made chunk by chunk on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N, W], or [C, N, W] of two passes
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        softcap: float | None,
        config: LossConfig,
        rows: int,
    ) -> Tensor:
        leaves = [weight.detach().requires_grad_()]
        if bias is not None:
            leaves.append(bias.detach().requires_grad_())
        wanted = any(ctx.needs_input_grad)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden) if wanted else None
        leaf_grads = [torch.zeros_like(leaf) for leaf in leaves] if wanted else []
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            with torch.set_grad_enabled(wanted):
                chunk = hidden[..., part, :].detach().requires_grad_(wanted)
                scores = logits(chunk, leaves[0], leaves[1] if bias is not None else None, softcap)
                lost = target_losses(scores.float(), targets[part], config)
                loss = (lost * weights[part]).sum()
            total += loss.detach()
            if hidden_grad is not None:
                chunk_grad, *grads = torch.autograd.grad(loss, [chunk, *leaves])
                hidden_grad[..., part, :] = chunk_grad
                for kept, grad in zip(leaf_grads, grads, strict=True):
                    kept += grad
        ctx.has_bias = bias is not None
        ctx.save_for_backward(hidden_grad, *leaf_grads)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad, *rest = (saved * upstream[0] for saved in ctx.saved_tensors)
        return hidden_grad, weight_grad, rest[0] if ctx.has_bias else None, None, None, None, None, None
