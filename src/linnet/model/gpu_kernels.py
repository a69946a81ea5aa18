"""Kernels of our own for a GPU, written for Triton, where those of torch read the same numbers many times.

`kernels` calls them and has the reference of each. Imported on a GPU only: Triton comes with the builds of torch
for CUDA.
Legend: B = rows, T = tokens, H = heads, Hk = key-value heads, S = keys, D = head width, N = targets,
V = vocabulary.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # keys that are read at once
LOGITS, LOGIT_WARPS = 8192, 8  # that are read at once, by so many warps
LOWEST = tl.constexpr(-1e30)  # for a maximum of no scores: differences from it are numbers


def attend_one(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """[B, H, 1, D] from q [B, H, 1, D], k and v [B, Hk, S, D] and bool [B, 1, 1, S], of any strides."""
    rows, heads, _, width = q.shape
    mixed = torch.empty_like(q, memory_format=torch.contiguous_format)
    _mix[(rows, heads)](
        q,
        k,
        v,
        allowed.view(torch.uint8),
        mixed,
        1 / math.sqrt(width),
        k.shape[2],
        heads // k.shape[1],
        *(q.stride(0), q.stride(1)),
        *(k.stride(0), k.stride(1), k.stride(2)),
        *(v.stride(0), v.stride(1), v.stride(2)),
        allowed.stride(0),
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        BLOCK=BLOCK,
    )
    return mixed


@triton.jit
def _mix(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    allowed,
    mixed,
    scale,
    keys,
    group,
    q_row,
    q_head,
    k_row,
    k_head,
    k_key,
    v_row,
    v_head,
    v_key,
    allowed_row,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one row; the sums run over blocks of keys, and are rescaled when a larger score comes."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    query = tl.load(q + row * q_row + head * q_head + column, mask=inside, other=0).to(tl.float32) * scale
    k_start = k + row * k_row + (head // group) * k_head
    v_start = v + row * v_row + (head // group) * v_head
    most = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    summed = tl.zeros([PADDED], dtype=tl.float32)
    for first in range(0, keys, BLOCK):
        key = first + tl.arange(0, BLOCK)
        seen = tl.load(allowed + row * allowed_row + key, mask=key < keys, other=0) != 0
        read = seen[:, None] & inside[None, :]
        keyed = tl.load(k_start + key[:, None] * k_key + column[None, :], mask=read, other=0)
        valued = tl.load(v_start + key[:, None] * v_key + column[None, :], mask=read, other=0)
        scores = tl.where(seen, tl.sum(keyed.to(tl.float32) * query[None, :], 1), LOWEST)
        higher = tl.maximum(most, tl.max(scores, 0))
        weights = tl.where(seen, tl.exp(scores - higher), 0.0)
        kept = tl.exp(most - higher)
        summed = summed * kept + tl.sum(weights[:, None] * valued.to(tl.float32), 0)
        total = total * kept + tl.sum(weights, 0)
        most = higher
    start = (row * tl.num_programs(1) + head) * WIDTH
    tl.store(mixed + start + column, (summed / total).to(mixed.dtype.element_ty), mask=inside)


def turned_back(q: Tensor, k: Tensor, v: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """All heads of a token side by side, [B, T, (H + 2 Hk) D]: q [B, H, T, D] and k turned back, and v as it is.

    The tables are [1 or B, 1, T, 2, D / 2]; what they turn by is undone.
    """
    rows, heads, tokens, width = q.shape
    kv_heads = k.shape[1]
    whole = q.new_empty(rows, tokens, (heads + 2 * kv_heads) * width)
    q, k, v = (part if part.stride(3) == 1 else part.contiguous() for part in (q, k, v))
    cosines, sines = cosines.contiguous(), sines.contiguous()
    _turn_back[(tokens, rows)](
        q,
        k,
        v,
        cosines,
        sines,
        whole,
        *(q.stride(0), q.stride(1), q.stride(2)),
        *(k.stride(0), k.stride(1), k.stride(2)),
        *(v.stride(0), v.stride(1), v.stride(2)),
        cosines.stride(0) if len(cosines) > 1 else 0,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=width // 2,
        PADDED=triton.next_power_of_2(heads),
        KV_PADDED=triton.next_power_of_2(kv_heads),
        HALF_PADDED=triton.next_power_of_2(width // 2),
    )
    return whole


@triton.jit
def _turn_back(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    cosines,
    sines,
    whole,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    v_row,
    v_head,
    v_token,
    table_row,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    KV_PADDED: tl.constexpr,
    HALF_PADDED: tl.constexpr,
):
    """All heads of one token."""
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, HALF_PADDED)
    table = (
        row * table_row + token * 2 * HALF + HALF + column
    )  # of the second half, whose sines have their own sign
    cosine = tl.load(cosines + table, mask=column < HALF, other=0).to(tl.float32)[None, :]
    sine = tl.load(sines + table, mask=column < HALF, other=0).to(tl.float32)[None, :]
    head = tl.arange(0, PADDED)[:, None]
    inside = (head < HEADS) & (column < HALF)[None, :]
    start = whole + (row * tl.num_programs(0) + token) * (HEADS + 2 * KV_HEADS) * 2 * HALF
    from_q = q + row * q_row + token * q_token + head * q_head + column[None, :]
    _store_turned(from_q, start + head * 2 * HALF + column[None, :], cosine, sine, inside, HALF)
    head = tl.arange(0, KV_PADDED)[:, None]
    inside = (head < KV_HEADS) & (column < HALF)[None, :]
    start += HEADS * 2 * HALF
    from_k = k + row * k_row + token * k_token + head * k_head + column[None, :]
    _store_turned(from_k, start + head * 2 * HALF + column[None, :], cosine, sine, inside, HALF)
    start += KV_HEADS * 2 * HALF
    from_v = v + row * v_row + token * v_token + head * v_head + column[None, :]
    into = start + head * 2 * HALF + column[None, :]
    tl.store(into, tl.load(from_v, mask=inside), mask=inside)
    tl.store(into + HALF, tl.load(from_v + HALF, mask=inside), mask=inside)


@triton.jit
def _store_turned(source, into, cosine, sine, inside, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    first = tl.load(source, mask=inside, other=0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0).to(tl.float32)
    tl.store(into, (first * cosine + second * sine).to(into.dtype.element_ty), mask=inside)
    tl.store(into + HALF, (second * cosine - first * sine).to(into.dtype.element_ty), mask=inside)


def nats_and_gradient(scores: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The nats [N] of targets [N] under logits [N, V], and the gradient [N, V] of their sum weighted by [N]."""
    scores = scores.contiguous()
    count, vocabulary = scores.shape
    nats = torch.empty(count, dtype=torch.float32, device=scores.device)
    gradient = torch.empty_like(scores)
    block = min(LOGITS, triton.next_power_of_2(vocabulary))
    _softmax[(count,)](
        scores,
        targets.contiguous(),
        weights.contiguous(),
        nats,
        gradient,
        vocabulary,
        BLOCK=block,
        num_warps=LOGIT_WARPS,
    )
    return nats, gradient


@triton.jit
def _softmax(scores, targets, weights, nats, gradient, vocabulary, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One target: its logits come from memory once; the second time they are still in the cache."""
    row = tl.program_id(0).to(tl.int64)
    start = row * vocabulary
    most = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        read = tl.load(scores + start + column, mask=column < vocabulary, other=LOWEST).to(tl.float32)
        higher = tl.maximum(most, tl.max(read, 0))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(read - higher), 0)
        most = higher
    target, weight = tl.load(targets + row), tl.load(weights + row).to(tl.float32)
    log_total = most + tl.log(total)
    tl.store(nats + row, log_total - tl.load(scores + start + target).to(tl.float32))
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < vocabulary
        read = tl.load(scores + start + column, mask=inside, other=LOWEST).to(tl.float32)
        found = weight * (tl.exp(read - log_total) - tl.where(column == target, 1.0, 0.0))
        tl.store(gradient + start + column, found.to(gradient.dtype.element_ty), mask=inside)
