"""The loop forms of the copying networks, a visit at a time: the oracles of `linnet.domains.places.copying`.

Nobody should use them for anything else. They say what the vectorised forms compute, and they are what the
published network started from.
Legend: B = rows, T = visits of the longest row, V = places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linnet.domains.places.copying import FIRST_CELL, NEVER, Sums


def copy_loop(attention: Tensor, ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """The attention of each visit goes to its place."""
    copied = attention.new_zeros(len(ids), places)
    for row in range(len(ids)):
        for visit in range(ids.shape[1]):
            if valid[row, visit]:
                copied[row, int(ids[row, visit])] += attention[row, visit]
    return copied


def frequency_loop(ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """Count, then divide by the number of visits."""
    counts = torch.zeros(len(ids), places)
    for row in range(len(ids)):
        for visit in range(ids.shape[1]):
            if valid[row, visit]:
                counts[row, int(ids[row, visit])] += 1
        counts[row] /= max(counts[row].sum().item(), 1)
    return counts


def recency_loop(ids: Tensor, valid: Tensor, lengths: Tensor, decay: Tensor, places: int) -> Tensor:
    """Each visit counts decay to the power of the visits since."""
    recent = []
    for row in range(len(ids)):
        shares = [torch.zeros(()) for _ in range(places)]
        for visit in range(ids.shape[1]):
            if valid[row, visit]:
                since = int(lengths[row].item()) - 1 - visit
                place = int(ids[row, visit].item())
                shares[place] = shares[place] + decay.clamp(0.01, 0.999) ** since
        total = torch.stack(shares)
        recent.append(total / total.sum().clamp(min=1e-8))
    return torch.stack(recent)


def hard_filter_loop(logits: Tensor, cells: Tensor, cell_of_place: Tensor) -> Tensor:
    """Walk over the places of each row and forbid those outside its cell."""
    kept = torch.empty_like(logits)
    for row in range(len(logits)):
        children = [place for place in range(logits.shape[1]) if cell_of_place[place].item() == cells[row].item()]
        for place in range(logits.shape[1]):
            allowed = not children or place in children
            kept[row, place] = logits[row, place] if allowed else NEVER
    return kept


def soft_filter_loop(logits: Tensor, cell_logits: Tensor, cell_of_place: Tensor, alpha: float) -> Tensor:
    """Add the log-probability of each place's cell, or of the best cell where it lies in none."""
    kept = torch.empty_like(logits)
    for row in range(len(logits)):
        shares = cell_logits[row].log_softmax(0)
        for place in range(logits.shape[1]):
            cell = int(cell_of_place[place].item())
            kept[row, place] = logits[row, place] + alpha * (shares[cell] if cell >= FIRST_CELL else shares.max())
    return kept


def one_hot_frequency(ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """The vectorised form of the published network: a [B, T, V] table of floats for a few numbers a row."""
    counts = (torch.nn.functional.one_hot(ids, places).to(torch.get_default_dtype()) * valid[..., None]).sum(1)
    return counts / (counts.sum(1, keepdim=True) + 1e-8)


def one_hot_recency(ids: Tensor, valid: Tensor, lengths: Tensor, decay: Tensor, places: int) -> Tensor:
    since = (lengths[:, None] - 1 - torch.arange(ids.shape[1])).clamp(min=0)
    weights = decay.clamp(0.01, 0.999) ** since * valid
    total = (torch.nn.functional.one_hot(ids, places).to(torch.get_default_dtype()) * weights[..., None]).sum(1)
    return total / (total.sum(1, keepdim=True) + 1e-8)


def one_hot_copy(attention: Tensor, ids: Tensor, valid: Tensor, places: int) -> Tensor:
    return (
        torch.nn.functional.one_hot(ids, places).to(torch.get_default_dtype()) * (attention * valid)[..., None]
    ).sum(1)


LOOPS = Sums(copy_loop, frequency_loop, recency_loop)
ONE_HOT = Sums(one_hot_copy, one_hot_frequency, one_hot_recency)
