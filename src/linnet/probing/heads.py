"""Attention of single sequences, and scores that say what each head of a network does.

Legend: B = rows, T = steps, L = attention layers, H = heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.intervals import NORMAL
from linnet.model.contract import Network, evaluating

MEANINGS: Mapping[str, str] = {
    "entropy": "nats of the pattern, mean over queries",
    "previous": "share on the step before",
    "first": "share on the first step",
    "diagonal": "share on the step itself",
    "induction": "share on steps after earlier copies of the query's token, where there are any",
    "duplicate": "share on earlier copies of the query's token, where there are any",
}


@dataclass(frozen=True)
class HeadScores:
    """Each score [L, H], with half of its 95 % interval over rows; `layers` are the attention layers."""

    layers: tuple[int, ...]
    values: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]
    rows: int


def pattern_taps(network: Network) -> tuple[str, ...]:
    found = tuple(name for name in network.taps() if name.endswith("attn.hook_pattern"))
    if not found:
        raise BadInput("this model has no attention layer to look into")
    return found


def layer_of(tap: str) -> int:
    """The layer that a tap such as `blocks.3.attn.hook_z` belongs to."""
    return int(tap.split(".")[1])


def patterns(
    network: Network, ids: Sequence[int], layer: int | None = None, head: int | None = None
) -> tuple[tuple[int, ...], Tensor]:
    """The attention layers, and shares [layer, head, query, key]; of one layer or head where it is named."""
    taps = pattern_taps(network)
    if layer is not None:
        taps = chosen_layer(taps, layer)
    with evaluating(network):
        kept = network(torch.tensor([list(ids)], device=network.device), keep=taps).kept
    found = torch.stack([kept[name][0].float() for name in taps])
    if head is not None:
        if not 0 <= head < found.shape[1]:
            raise BadInput(f"there is no head {head}; heads are counted from 0 to {found.shape[1] - 1}")
        found = found[:, head : head + 1]
    return tuple(map(layer_of, taps)), found


def chosen_layer(taps: Sequence[str], layer: int) -> tuple[str, ...]:
    """The tap of one layer."""
    refuse_layer(layer, tuple(map(layer_of, taps)))
    return tuple(name for name in taps if layer_of(name) == layer)


def refuse_layer(layer: int, layers: Sequence[int]) -> None:
    """Refuse a layer that is none of these, which attend."""
    if layer not in layers:
        there = ", ".join(map(str, layers))
        raise BadInput(f"layer {layer} has no attention to look into; layers with attention: {there}")


def repeated_rows(vocabulary: int, rows: int, half: int, seed: int, begin: int | None = None) -> Tensor:
    """Random tokens and the same ones again, [rows, 2 x half] after the begin token, where there is one."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(vocabulary, (rows, half), generator=random)
    twice = torch.cat((words, words), 1)
    return twice if begin is None else torch.cat((torch.full((rows, 1), begin), twice), 1)


def head_scores(network: Network, ids: Tensor, lengths: Tensor | None = None) -> HeadScores:
    """What every head does on these rows [B, T], of which the first `lengths` [B] steps count."""
    taps, marks = pattern_taps(network), _marks(ids, lengths)
    values: dict[str, list[Tensor]] = {name: [] for name in MEANINGS}
    margins: dict[str, list[Tensor]] = {name: [] for name in MEANINGS}
    with evaluating(network):
        kept = network(ids.to(network.device), keep=taps).kept
    for tap in taps:
        for name, shares in _shares(kept[tap].float().cpu(), marks).items():
            mean, margin = _over_rows(*shares)
            values[name].append(mean)
            margins[name].append(margin)
    return HeadScores(
        tuple(map(layer_of, taps)),
        {name: torch.stack(found) for name, found in values.items()},
        {name: torch.stack(found) for name, found in margins.items()},
        len(ids),
    )


def _marks(ids: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
    """Which queries [B, T] count, and which keys [B, T, T] each score looks at."""
    rows, steps = ids.shape
    index = torch.arange(steps)
    inside = index[None] < (torch.full((rows,), steps) if lengths is None else lengths)[:, None]
    counted = inside & (index > 0)[None]
    behind = index[:, None] - index[None]  # how far a key stands behind its query
    same = ids[:, :, None] == ids[:, None, :]
    earlier = same & (behind > 0)
    after = torch.zeros_like(earlier)
    after[:, :, 1:] = earlier[:, :, :-1] & (behind[:, 1:] > 0)
    return {"counted": counted, "behind": behind, "duplicate": earlier, "induction": after}


def _shares(pattern: Tensor, marks: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each score its value [B, H, T] at every query, and which queries [B, T] count."""
    counted, behind = marks["counted"], marks["behind"]
    found = {
        "entropy": (torch.special.entr(pattern).sum(-1), counted),
        "previous": ((pattern * (behind == 1)).sum(-1), counted),
        "first": (pattern[..., 0], counted),
        "diagonal": ((pattern * (behind == 0)).sum(-1), counted),
    }
    for name in ("induction", "duplicate"):
        keys = marks[name]
        found[name] = ((pattern * keys[:, None]).sum(-1), counted & keys.any(-1))
    return found


def _over_rows(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [H] of values [B, H, T] where they count, and half of its interval over rows; nan where none do."""
    weights = counted[:, None].float()
    sums, counts = (values * weights).sum(-1), weights.sum(-1)
    mean = sums.sum(0) / counts.sum(0)
    residuals = (sums - mean * counts) / counts.sum(0)
    rows = max(2, len(values))
    return mean, NORMAL * (residuals.square().sum(0) * rows / (rows - 1)).sqrt()
