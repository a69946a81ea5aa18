"""Attention as a chosen function: one contract, four ways to compute it, all equal to rounding.

A CPU with AVX-512 wants plain batched products (its fused kernel is slow forward and backward) and, for long rows,
blocks that skip the masked half; other CPUs without dropout, and CUDA with its flash kernel, want the fused form;
one compiled query wants a multiply and a sum. The measurements are in dev/LOG.md.
Keys that all rows share are read once for all of them: `with_shared`, equal to the dense form `unshared`.
Legend: B = rows, H = heads, Hk = key-value heads, G = H / Hk, T = queries, S = keys, P = shared keys,
D = head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.model.dropout import dropout as dropped
from linnet.model.dropout import mixed_mask, scale
from linnet.model.masks import Mask

Observe = Callable[[str, Tensor], Tensor]
Kernel = Literal["explicit", "blocked", "multiply_sum", "fused"]

BLOCK = 256
WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"  # a fact of the machine, so that runs resume bit by bit


def choose(device: torch.device, queries: int, keys: int, *, compiling: bool, dropout: float = 0.0) -> Kernel:
    """The fastest form for this device and shape; all of them give the same values.

    With dropout torch has no fused kernel for processors.
    """
    if device.type == "cuda":
        return "fused"
    if queries == 1:
        return "multiply_sum" if compiling else "explicit"
    if not WIDE and not dropout:
        return "fused"
    return "blocked" if queries >= 2 * BLOCK else "explicit"


def attend(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """Mix values by attention: q [B, H, T, D], k and v [B, Hk, S, D] -> [B, H, T, D]."""
    if kernel == "fused":
        return fused(q, k, v, mask, dropout)
    if kernel == "blocked":
        return blocked(q, k, v, mask, dropout)
    if kernel == "multiply_sum":
        return multiply_sum(q, k, v, mask, dropout)
    return explicit(q, k, v, mask, dropout)


def explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float, observe: Observe | None = None
) -> Tensor:
    """Scores, softmax, mix: the form that shows its pattern, and the reference for the others."""
    rows, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    # Heads that share keys are stacked along the queries, so that one product serves them all.
    stacked = (q * (1 / math.sqrt(width))).reshape(rows, kv_heads, heads // kv_heads * queries, width)
    scores = (stacked @ k.transpose(-1, -2)).view(rows, heads, queries, keys)
    allowed = mask.dense(queries, keys, q.device)
    if observe is None and torch.compiler.is_compiling():
        kept = mixed_mask(scores.shape, dropout, q.device) if dropout else None
        mixed: Tensor = Mixed.apply(scores, v, allowed, kept, scale(dropout))
        return mixed
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    if observe is not None:
        scores = observe("attn.hook_attn_scores", scores)
    pattern = scores.softmax(-1)
    if observe is not None:
        pattern = observe("attn.hook_pattern", pattern)
    if dropout:
        pattern = dropped(pattern, dropout, True)
    mixed = pattern.to(v.dtype).reshape(rows, kv_heads, heads // kv_heads * queries, keys) @ v
    return mixed.view(rows, heads, queries, width)


class Mixed(torch.autograd.Function):
    """Softmax of scores [B, H, T, S] and mix of values [B, Hk, S, D]; the sum divides the mix, not the pattern.

    A compiler then passes twice over the scores where it would pass four times, and the way back needs no mask and
    no sum over keys.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, v: Tensor, allowed: Tensor | None, kept: Tensor | None, scaled: float
    ) -> Tensor:
        rows, heads, queries, keys = scores.shape
        stacked = (rows, v.shape[1], heads // v.shape[1] * queries)
        seen = scores.float() if allowed is None else torch.where(allowed, scores.float(), -math.inf)
        pattern = (seen - seen.amax(-1, keepdim=True)).exp()
        total = pattern.sum(-1, keepdim=True) / scaled
        pattern = pattern.to(v.dtype)
        left = pattern if kept is None else torch.where(kept, pattern, 0.0)
        mixed = ((left.view(*stacked, keys) @ v).view(rows, heads, queries, -1) / total).to(v.dtype)
        ctx.save_for_backward(pattern, total, mixed, v, kept)
        ctx.scaled = scaled
        return mixed

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        pattern, total, mixed, v, kept = ctx.saved_tensors
        rows, heads, queries, keys = pattern.shape
        stacked = (rows, v.shape[1], heads // v.shape[1] * queries)
        share = upstream[0].float() / total
        along = (share * mixed.float()).sum(-1, keepdim=True) / ctx.scaled
        share = share.to(v.dtype).reshape(*stacked, -1)
        pattern_grad = (share @ v.transpose(-1, -2)).view(pattern.shape).float()
        left = pattern
        if kept is not None:
            left, pattern_grad = torch.where(kept, pattern, 0.0), torch.where(kept, pattern_grad, 0.0)
        scores_grad = (pattern.float() * (pattern_grad - along)).to(v.dtype)
        return scores_grad, left.view(*stacked, keys).transpose(-1, -2) @ share, None, None, None


def blocked(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """The explicit form over blocks of queries; a causal block reads no key behind its last query."""
    queries, keys = q.shape[2], k.shape[2]
    allowed = mask.dense(queries, keys, q.device)
    causal = mask.causal and mask.allowed is None and queries == keys
    pieces = []
    for first in range(0, queries, BLOCK):
        last = min(first + BLOCK, queries)
        seen = last if causal else keys
        part = None if allowed is None else allowed[:, :, first:last, :seen]
        pieces.append(explicit(q[:, :, first:last], k[:, :, :seen], v[:, :, :seen], Mask(part, False), dropout))
    return torch.cat(pieces, dim=2)


def multiply_sum(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """For one query: products as elementwise multiply and sum, which a compiler fuses into one pass."""
    rows, heads, queries, width = q.shape
    if queries != 1:
        raise ValueError(f"multiply_sum attends from one query, not {queries}")
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = (q * (1 / math.sqrt(width))).reshape(rows, kv_heads, heads // kv_heads, 1, width)
    scores = (grouped * k[:, :, None]).sum(-1)  # [B, Hk, G, S]
    allowed = mask.dense(queries, keys, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed.view(-1, 1, 1, keys), -math.inf)
    pattern = scores.softmax(-1)
    if dropout:
        pattern = dropped(pattern, dropout, True)
    mixed = (pattern.to(v.dtype)[..., None] * v[:, :, None]).sum(-2)
    return mixed.view(rows, heads, 1, width)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """torch's scaled dot product attention: the flash kernel on CUDA when the mask is causal or absent."""
    causal = mask.causal and mask.allowed is None and q.shape[2] == k.shape[2]
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask.allowed,
        dropout_p=dropout,
        is_causal=causal,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def with_shared(q: Tensor, k: Tensor, v: Tensor, shared: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
    """Attend to shared keys and values [Hk, P, D], which come first, and to each row's own.

    The queries of all rows meet the shared keys in one product; the two halves of the softmax are joined by their
    logarithmic sums.
    """
    rows, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    stacked = (q * (1 / math.sqrt(width))).reshape(rows, kv_heads, heads // kv_heads * queries, width)
    together = stacked.transpose(0, 1).reshape(kv_heads, -1, width)
    common = (together @ shared[0].to(q.dtype).transpose(-1, -2)).view(kv_heads, rows, -1, shared[0].shape[1])
    own = stacked @ k.transpose(-1, -2)  # [B, Hk, G * T, S]
    allowed = mask.dense(queries, keys, q.device)
    if allowed is not None:
        own = own.view(rows, heads, queries, keys).masked_fill(~allowed, -math.inf).view(own.shape)
    common_most, own_most = common.amax(-1, keepdim=True).transpose(0, 1), own.amax(-1, keepdim=True)
    most = torch.maximum(common_most, own_most)  # [B, Hk, G * T, 1]
    common = (common - most.transpose(0, 1)).exp()
    own = (own - most).exp()
    total = common.sum(-1, keepdim=True).transpose(0, 1) + own.sum(-1, keepdim=True)
    mixed = common.view(kv_heads, -1, common.shape[-1]) @ shared[1].to(q.dtype)
    mixed = mixed.view(kv_heads, rows, -1, width).transpose(0, 1) + own @ v
    return (mixed / total).reshape(rows, heads, queries, width)


def unshared(k: Tensor, v: Tensor, shared: tuple[Tensor, Tensor], mask: Mask) -> tuple[Tensor, Tensor, Mask]:
    """Keys, values and mask in which every row has its own copy of the shared tokens, at their beginning."""
    rows = len(k)
    k, v = (
        torch.cat((part.to(k.dtype).expand(rows, -1, -1, -1), own), 2)
        for part, own in zip(shared, (k, v), strict=True)
    )
    if mask.allowed is None:
        return k, v, mask
    seen = mask.allowed.new_ones(*mask.allowed.shape[:-1], shared[0].shape[1])
    return k, v, Mask(torch.cat((seen, mask.allowed), -1), False)
