"""Patterns without all of them at once: blocks of queries of one layer after the other, for long rows.

A recurrent layer has a pattern, too: how much of each earlier candidate is left in its state.
Legend: B = rows, T = tokens, Q = queries of a block, H = heads, Hk = key heads, D = head width, W = width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Model

BLOCK = 256


@dataclass(frozen=True)
class PatternBlock:
    """Shares [B, H, Q, T] of the queries from `first` on, in one layer."""

    layer: int
    first: int
    shares: Tensor


def pattern_blocks(model: Model, ids: Tensor, layers: Sequence[int] | None = None) -> Iterator[PatternBlock]:
    """The patterns of attention layers (all unless named) on rows [B, T], block by block of queries.

    They are made again from queries and keys, so no more than one block exists at a time.
    """
    ends = ("rot_q", "rot_k") if model.config.positions == "rotary" else ("q", "k")
    mixers = model.config.mixers
    chosen = [n for n, mixer in enumerate(mixers) if mixer == "attention" and (layers is None or n in layers)]
    if not chosen:
        raise BadInput("this model has no attention layer to look into")
    names = {(layer, end): f"blocks.{layer}.attn.hook_{end}" for layer in chosen for end in ends}
    with evaluating(model):
        kept = dict(model(ids, keep=tuple(names.values())).kept)
        mask = model.frame(ids).mask.dense(ids.shape[1], ids.shape[1], ids.device)
    for layer in chosen:
        q, k = (kept.pop(names[layer, end]).transpose(1, 2) for end in ends)
        for first in range(0, ids.shape[1], BLOCK):
            rows = None if mask is None else mask[:, :, first : first + BLOCK]
            yield PatternBlock(layer, first, _shares(q[:, :, first : first + BLOCK], k, rows))


def _shares(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
    """[B, H, Q, T] of queries [B, H, Q, D] and keys [B, Hk, T, D]."""
    rows, heads, queries, width = q.shape
    grouped = (q / math.sqrt(width)).reshape(rows, k.shape[1], -1, width)
    scores = (grouped @ k.transpose(-1, -2)).view(rows, heads, queries, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1)


def recurrent_pattern(model: Model, ids: Tensor, layer: int) -> Tensor:
    """[B, T, T]: the share of each earlier candidate in the state at each position, the mean over channels.

    A state is (1 - update) x candidate + update x the state before; what is left of the empty one is missing.
    """
    tap = f"blocks.{layer}.gru.hook_update"
    if tap not in model.taps():
        raise BadInput(f"layer {layer} is not recurrent")
    with evaluating(model):
        update = model(ids, keep=(tap,)).kept[tap].double()  # [B, T, W]
        found = update.new_zeros(len(ids), ids.shape[1], ids.shape[1])
        left = torch.zeros_like(update)  # [B, T, W]: what is left of each candidate so far
        for query in range(ids.shape[1]):
            left = left * update[:, query : query + 1]
            left[:, query] = 1 - update[:, query]
            found[:, query] = left.mean(-1)
    return found.float()
