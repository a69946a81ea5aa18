"""Distributions over places from a history by scatter-add (copies, counts, recency), and cell filters.

Each function here has a loop form in `bench.copying_loops`, which says the same thing a visit at a time.
Padding has weight zero everywhere, so it never enters a prediction.
Legend: B = rows, T = visits of the longest row (padded on the right), V = places, L = cells of a level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from linnet.errors import BadInput

FilterKind = Literal["none", "hard", "soft"]
FIRST_CELL = 2  # 0 is the cell of padding, 1 that of places in no known cell
NEVER = -1e9  # the logit of a place that a hard filter forbids


def scatter_places(weights: Tensor, ids: Tensor, places: int) -> Tensor:
    """[B, V]: the weights [B, T] of the visits to each place, added up."""
    return weights.new_zeros(len(ids), places).scatter_add(1, ids, weights)


def copy_distribution(attention: Tensor, ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """[B, V]: what the attention over the visits says about places."""
    return scatter_places(attention * valid, ids, places)


def frequency(ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """[B, V]: each place's share of the visits."""
    counts = scatter_places(valid.to(torch.get_default_dtype()), ids, places)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def recency(ids: Tensor, valid: Tensor, lengths: Tensor, decay: Tensor, places: int) -> Tensor:
    """[B, V]: shares when each visit counts decay ** (visits since then); differentiable in the decay."""
    since = (lengths[:, None] - 1 - torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
    weights = decay.clamp(0.01, 0.999) ** since * valid
    total = scatter_places(weights, ids, places)
    return total / total.sum(1, keepdim=True).clamp(min=1e-8)


@dataclass(frozen=True)
class Sums:
    """The three sums of a copying network; oracles and older forms have the same signatures."""

    copy: Callable[[Tensor, Tensor, Tensor, int], Tensor] = copy_distribution
    frequency: Callable[[Tensor, Tensor, int], Tensor] = frequency
    recency: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor] = recency


def filter_of(text: str) -> FilterKind:
    """The filter of this name."""
    for kind in get_args(FilterKind):
        if kind == text:
            return kind
    raise BadInput(f'filter is none, hard or soft, not "{text}"')


def hard_filter(logits: Tensor, cells: Tensor, cell_of_place: Tensor) -> Tensor:
    """Only places inside the row's chosen cell [B] keep their logits [B, V]; a cell without places forbids none.

    `cell_of_place` [V] is one index a place, so the filter is one comparison and no table of children is built.
    """
    inside = cell_of_place[None, :] == cells[:, None]
    inside |= ~inside.any(1, keepdim=True)
    return torch.where(inside, logits, torch.full_like(logits, NEVER))


def soft_filter(logits: Tensor, cell_logits: Tensor, cell_of_place: Tensor, alpha: float) -> Tensor:
    """p(place) * p(cell of the place) ** alpha, not normalised; alpha = 0 changes nothing.

    Cells have nothing to say about places that lie in none of them (the class of unseen places above all): those
    get the factor of the most probable cell.
    """
    said = cell_logits.log_softmax(1)
    factor = torch.where(
        cell_of_place[None, :] < FIRST_CELL, said.max(1, keepdim=True).values, said[:, cell_of_place]
    )
    return logits + alpha * factor


def cell_probabilities(probabilities: Tensor, cell_of_place: Tensor, cells: int) -> Tensor:
    """[B, L]: the probability of a cell is the sum over its places, so no cell contradicts its places."""
    index = cell_of_place[None, :].expand(len(probabilities), -1)
    return probabilities.new_zeros(len(probabilities), cells).scatter_add(1, index, probabilities)
