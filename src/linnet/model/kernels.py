"""Kernels: everything that can be computed in several ways, and the one place where a way is chosen.

Callers name what they want: `attend`, `embed`, `angles`, `turned_heads`, `drop`, `causal_square`, `target_nats`.
The choice depends on the device, on the shapes, and on whether a compiler traces the call; all ways give the same
values to rounding, dropout in distribution. `explicit` attention is the reference for the other forms.

A CPU with AVX-512 wants plain batched products (its fused kernel is slow forward and backward) and, for long rows,
blocks that skip the masked half; other CPUs without dropout, and CUDA with its flash kernel, want the fused form;
one compiled query wants a multiply and a sum, and on CUDA a kernel of its own. A compiler inlines what depends on
positions alone into all of its uses, and on processors adds up gradients of embeddings by atomic additions: there
both are custom operators.
The measurements are in dev/LOG.md.
Legend: B = rows, H = heads, Hk = key-value heads, G = H / Hk, T = queries, S = keys, P = shared keys,
D = head width, N = rows of logits, V = vocabulary, W = width.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.model.dropping import drop, in_parts

Observe = Callable[[str, Tensor], Tensor]
Form = Literal["explicit", "blocked", "multiply_sum", "one_query", "fused"]

BLOCK = 256
WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"  # a fact of the machine, so that runs resume bit by bit
TRITON = importlib.util.find_spec("triton") is not None  # whether kernels can be written for a GPU here


# --- attention -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask:
    """`allowed` is bool [1 or B, 1, T, S]; None stands for everything, or for a square causal mask."""

    allowed: Tensor | None
    causal: bool

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """The mask as a tensor; None when every query may attend to every key."""
        if self.allowed is not None or not self.causal:
            return self.allowed
        return causal_square(queries, device)[None, None] if queries == keys else None


@functools.lru_cache(maxsize=32)
def _cached_square(tokens: int, device: torch.device) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def causal_square(tokens: int, device: torch.device) -> Tensor:
    """bool [T, T], True on and below the diagonal; cached by shape outside compiled graphs."""
    if torch.compiler.is_compiling():
        index = torch.arange(tokens, device=device, dtype=torch.float32)  # compared as fast as it is counted
        return index[None, :] <= index[:, None]
    return _cached_square(tokens, device)


def attention_form(
    device: torch.device, queries: int, keys: int, *, dropout: float = 0.0, compiled: bool | None = None
) -> Form:
    """The fastest form for this device and shape; `compiled` is found out unless given.

    With dropout torch has no fused kernel for processors.
    """
    compiled = torch.compiler.is_compiling() if compiled is None else compiled
    if queries == 1 and device.type == "cuda" and not torch.is_grad_enabled() and TRITON:
        return "one_query"
    if queries == 1 and compiled and not dropout:
        return "multiply_sum"  # on CUDA too: the fused kernels take a mask slowly, or leave most of a tile empty
    if device.type == "cuda":
        return "explicit" if in_parts() and dropout else "fused"  # whose own dropout knows nothing of parts
    if queries == 1:
        return "explicit"
    if not WIDE and not dropout:
        return "fused"
    return "blocked" if queries >= 2 * BLOCK else "explicit"


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    dropout: float = 0.0,
    *,
    shared: tuple[Tensor, Tensor] | None = None,
    observe: Observe | None = None,
) -> Tensor:
    """Mix values by attention: q [B, H, T, D], k and v [B, Hk, S, D] -> [B, H, T, D].

    `shared` holds keys and values [Hk, P, D] that come before those of every row; `observe` sees the scores and
    the pattern, which only the explicit form has.
    """
    if shared is not None and observe is None and not dropout:
        return with_shared(q, k, v, shared, mask)
    if shared is not None:
        k, v, mask = unshared(k, v, shared, mask)
    if observe is not None:
        return explicit(q, k, v, mask, dropout, observe)
    form = attention_form(q.device, q.shape[2], k.shape[2], dropout=dropout)
    return FORMS[form](q, k, v, mask, dropout)


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
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    if observe is not None:
        scores = observe("attn.hook_attn_scores", scores)
    pattern = scores.softmax(-1)
    if observe is not None:
        pattern = observe("attn.hook_pattern", pattern)
    if dropout:
        pattern = drop(pattern, dropout)
    mixed = pattern.to(v.dtype).reshape(rows, kv_heads, heads // kv_heads * queries, keys) @ v
    return mixed.view(rows, heads, queries, width)


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
        pattern = drop(pattern, dropout)
    mixed = (pattern.to(v.dtype)[..., None] * v[:, :, None]).sum(-2)
    return mixed.view(rows, heads, 1, width)


def one_query(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """For one query on a GPU, which nothing is learned from: one kernel, whatever the mask."""
    allowed = mask.dense(1, k.shape[2], q.device)
    if allowed is None:
        allowed = torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool, device=q.device)
    mixed: Tensor = attend_one(q, k, v, allowed.expand(len(q), -1, -1, -1))
    return mixed


@torch.library.custom_op("linnet::attend_one", mutates_args=(), device_types="cuda")
def attend_one(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """[B, H, 1, D] from one query a row."""
    from linnet.model import gpu_kernels

    return gpu_kernels.attend_one(q, k, v, allowed)


@attend_one.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


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


FORMS: Mapping[Form, Callable[[Tensor, Tensor, Tensor, Mask, float], Tensor]] = {
    "explicit": explicit,
    "blocked": blocked,
    "multiply_sum": multiply_sum,
    "one_query": one_query,
    "fused": fused,
}


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


# --- positions and tables ------------------------------------------------------------------------------


def angles(positions: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., T, 2, R] of positions [..., T] times rates [2, R]."""
    if torch.compiler.is_compiling() and positions.shape[-1] > 1:
        return compiled_angles(positions, rates)
    products = positions.to(torch.float32)[..., None, None] * rates
    return products.cos(), products.sin()


@torch.library.custom_op("linnet::angles", mutates_args=())
def compiled_angles(positions: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """The same, computed once for all layers."""
    products = positions.to(torch.float32)[..., None, None] * rates
    return products.cos(), products.sin()


@compiled_angles.register_fake
def _(positions: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    made = rates.new_empty(*positions.shape, *rates.shape)
    return made, torch.empty_like(made)


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The halves of the last axis, turned against each other: x [..., R] by tables [..., 2, R / 2]."""
    if x.device.type == "cpu":  # whose compiler makes vectors of pieces that are put together
        first, second = x.chunk(2, dim=-1)
        whole = cosines[..., 1, :], sines[..., 1, :]
        return torch.cat((first * whole[0] - second * whole[1], second * whole[0] + first * whole[1]), dim=-1)
    halves = x.unflatten(-1, (2, -1))
    return (halves * cosines + halves.flip(-2) * sines).flatten(-2)


def turned_heads(
    whole: Tensor, cosines: Tensor, sines: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, T, D] and keys, turned, and values, from all heads of each token, [B, T, (H + 2 Hk) D]."""
    if whole.device.type == "cuda" and TRITON and torch.is_grad_enabled():
        found: tuple[Tensor, Tensor, Tensor] = TurnedHeads.apply(whole, cosines, sines, heads, kv_heads)
        return found
    return _turned_parts(whole, cosines, sines, heads, kv_heads)


def _turned_parts(
    whole: Tensor, cosines: Tensor, sines: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    width = whole.shape[-1] // (heads + 2 * kv_heads)
    parts = whole.split([count * width for count in (heads, kv_heads, kv_heads)], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)
    return turned(q, cosines, sines), turned(k, cosines, sines), v


class TurnedHeads(torch.autograd.Function):
    """`turned_heads`, whose gradient is put together by one kernel; a compiler would do it piece by piece."""

    @staticmethod
    def forward(
        ctx: Any, whole: Tensor, cosines: Tensor, sines: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosines, sines)
        return _turned_parts(whole, cosines, sines, heads, kv_heads)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = upstream
        return turned_back(q, k, v, *ctx.saved_tensors), None, None, None, None


@torch.library.custom_op("linnet::turned_back", mutates_args=())
def turned_back(q: Tensor, k: Tensor, v: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """All heads of each token side by side, [B, T, (H + 2 Hk) D], with q and k turned back."""
    parts = turned(q, cosines, -sines), turned(k, cosines, -sines), v
    return torch.cat(parts, dim=1).transpose(1, 2).flatten(2).contiguous()


@turned_back.register_kernel("cuda")
def _(q: Tensor, k: Tensor, v: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    from linnet.model import gpu_kernels

    return gpu_kernels.turned_back(q, k, v, cosines, sines)


@turned_back.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], (q.shape[1] + k.shape[1] + v.shape[1]) * q.shape[3])


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """The rows [..., W] of a table [V, W] that ids [...] name."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled() and ids.device.type == "cpu":
        found: Tensor = Rows.apply(table, ids)
        return found
    return F.embedding(ids, table)


class Rows(torch.autograd.Function):
    """Rows of a table, whose gradient the compiler of processors leaves alone."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.count = table.shape[0]
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return table_gradient(upstream[0], ids, ctx.count), None


@torch.library.custom_op("linnet::table_gradient", mutates_args=())
def table_gradient(gradient: Tensor, ids: Tensor, count: int) -> Tensor:
    """Zeros [count, W] with gradient [..., W] added at ids [...]: always in the same order."""
    return torch.ops.aten.embedding_dense_backward(gradient.contiguous(), ids.contiguous(), count, -1, False)


@table_gradient.register_fake
def _(gradient: Tensor, ids: Tensor, count: int) -> Tensor:
    return gradient.new_empty(count, gradient.shape[-1])


# --- losses --------------------------------------------------------------------------------------------


def whole_loss() -> bool:
    """Whether the loss of a batch is computed from all of its logits, which a compiler fuses."""
    return torch.compiler.is_compiling()


def target_nats(scores: Tensor, targets: Tensor, smoothing: float, z_loss: float) -> Tensor:
    """Nats of targets [N] under float32 logits [N, V], smoothed, and `z_loss` times the squared log sum.

    Compiled for processors they are written out, so that the gradient needs no sum over the vocabulary.
    """
    if not torch.compiler.is_compiling() or scores.device.type != "cpu":
        nats = F.cross_entropy(scores, targets, reduction="none", label_smoothing=smoothing)
        return nats + z_loss * scores.logsumexp(-1).square() if z_loss else nats
    total = scores.logsumexp(-1)
    picked: Tensor = Picked.apply(scores, targets)
    nats = total - (1 - smoothing) * picked
    if smoothing:
        nats = nats - smoothing * scores.mean(-1)
    return nats + z_loss * total.square() if z_loss else nats


class Picked(torch.autograd.Function):
    """The number of each row [N, V] that its index [N] names; its gradient is made without a sum over V."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = rows.shape[1]
        return rows.gather(1, index[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        column = torch.arange(ctx.count, device=index.device)
        return torch.where(column == index[:, None], upstream[0][:, None], 0.0), None


def fused_loss(device: torch.device) -> bool:
    """Whether plain nats and the gradient of their logits are made together, in one pass over the logits."""
    return torch.compiler.is_compiling() and device.type == "cuda"


class WeightedNats(torch.autograd.Function):
    """The nats of targets [N] behind a linear head [V, W], summed by weights [N].

    The gradient of the logits is made while they are read. What comes from above scales the two products with it,
    which are smaller.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.types = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        nats, gradient = nats_and_gradient(F.linear(hidden, weight), targets, weights)
        ctx.save_for_backward(hidden, weight, gradient)
        return (nats * weights).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, gradient = ctx.saved_tensors
        of_hidden, of_weight = (gradient @ weight) * upstream[0], (gradient.t() @ hidden) * upstream[0]
        return of_hidden.to(ctx.types[0]), of_weight.to(ctx.types[1]), None, None


@torch.library.custom_op("linnet::nats_and_gradient", mutates_args=())
def nats_and_gradient(scores: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The float32 nats [N] of targets [N] under logits [N, V], and the gradient [N, V] of their weighted sum."""
    logarithms = scores.float().log_softmax(-1)
    gradient = logarithms.exp()
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    nats = F.nll_loss(logarithms, targets, reduction="none")
    return nats, (gradient * weights[:, None]).to(scores.dtype)


@nats_and_gradient.register_kernel("cuda")
def _(scores: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    from linnet.model import gpu_kernels

    return gpu_kernels.nats_and_gradient(scores, targets, weights)


@nats_and_gradient.register_fake
def _(scores: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return scores.new_empty(len(targets), dtype=torch.float32), torch.empty_like(scores)


# --- dropout -------------------------------------------------------------------------------------------
# Drawing a number for each value took a fifth of a step, compiled a third. Eagerly, one drawn word serves four
# values. In compiled graphs a number is drawn for each row and for each column, and mixed where they meet: vectors
# do that on the way, forward and backward, and no mask is kept. CUDA, which draws where it multiplies, uses the
# form of torch.
