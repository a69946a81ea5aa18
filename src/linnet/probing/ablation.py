"""What happens without a part: its value becomes zero, its mean over all cases, or that of another prompt.

Every ablation starts at the layer that it touches, from the residual stream that one plain run kept.
Legend: E = edited copies, B = cases, T = tokens, W = width, H = heads, N = neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.taps import Affine, Edit
from linnet.probing.cases import Subject
from linnet.probing.parts import Part, output_weights

By = Literal["zero", "mean", "resample"]
TOGETHER = 1 << 10  # tokens: calls that are so small are mostly overhead, and one for all layers is quicker


@dataclass(frozen=True)
class Unit:
    """What one ablation takes away: entries of the values at some taps, all of them where `index` is negative."""

    name: str
    taps: tuple[str, ...]
    axis: int = -1  # of the value; heads and neurons are entries of it
    index: int = -1

    @property
    def layer(self) -> int:
        return int(self.taps[0].split(".")[1])


def unit_of(part: Part) -> Unit:
    """The unit of a head, a mixer or a feed-forward."""
    return Unit(part.name, (part.tap,), 2, part.head) if part.kind == "head" else Unit(part.name, (part.tap,))


def layers(depth: int) -> tuple[Unit, ...]:
    """Whole layers: what their mixer and their feed-forward add."""
    ends = ("hook_attn_out", "hook_mlp_out")
    return tuple(Unit(f"layer.{n}", tuple(f"blocks.{n}.{end}" for end in ends)) for n in range(depth))


def neurons(layer: int, width: int) -> tuple[Unit, ...]:
    tap = (f"blocks.{layer}.mlp.hook_post",)
    return tuple(Unit(f"neuron.{layer}.{n}", tap, 2, n) for n in range(width))


@dataclass(frozen=True)
class Replacements:
    """What a plain run kept: the residual stream in front of each layer, and what stands in for each value."""

    plain: Tensor  # [B]: what is asked, without any ablation
    kept: Mapping[str, Tensor]  # values and residual streams of the plain run
    values: Mapping[str, Tensor]  # what replaces them


def replacements(subject: Subject, taps: Sequence[str], by: By) -> Replacements:
    """One run of the cases, and one of the other prompts where values come from there."""
    model, cases = subject.model, subject.cases
    taps = tuple(dict.fromkeys(taps))
    streams = tuple(name for name in model.taps() if name.endswith(("hook_resid_pre", "hook_resid_mid")))
    plain, kept = subject.run(cases.ids, (*taps, *streams))
    if by == "zero":
        values = {tap: torch.zeros_like(kept[tap][:1]) for tap in taps}
    elif by == "mean":
        values = {tap: kept[tap].mean(0, keepdim=True) for tap in taps}
    elif by == "resample":
        values = dict(subject.run(cases.others, taps)[1])
    else:
        raise BadInput(f'an ablation is by zero, mean or resample, not by "{by}"')
    return Replacements(plain, kept, values)


def ablate(subject: Subject, units: Sequence[Unit], by: By = "mean") -> tuple[Tensor, Tensor]:
    """What is asked of each case without each unit [E, B], and of the whole model [B]."""
    with evaluating(subject.model):
        found = replacements(subject, [tap for unit in units for tap in unit.taps], by)
        results: dict[str, Tensor] = {}
        for group in in_groups(subject, units):
            results |= dict(zip((unit.name for unit in group), ablated(subject, group, found), strict=True))
    return torch.stack([results[unit.name] for unit in units]), found.plain


def ablate_naively(subject: Subject, units: Sequence[Unit], by: By = "mean") -> Tensor:
    """The same, one whole run a unit: the reference."""
    with evaluating(subject.model):
        found = replacements(subject, [tap for unit in units for tap in unit.taps], by)
        return torch.cat([subject.edited(edits_of([unit], found, len(subject.cases))) for unit in units])


def in_groups(subject: Subject, units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units of one layer, as many as fit into a call; of all layers where calls are so small that they all fit."""
    most = subject.copies()
    if len(units) * subject.cases.ids.numel() <= TOGETHER:
        yield list(units)
        return
    for layer in sorted({unit.layer for unit in units}):
        inside = [unit for unit in units if unit.layer == layer]
        for taps in dict.fromkeys(unit.taps for unit in inside):
            same = [unit for unit in inside if unit.taps == taps]
            yield from (same[first : first + most] for first in range(0, len(same), most))


def ablated(subject: Subject, units: Sequence[Unit], found: Replacements) -> Tensor:
    """[E, B] for units that go on together from the first layer that one of them touches."""
    if only_heads_of_one_layer(subject, units):
        return without_heads(subject, units, found)
    tap = f"blocks.{min(unit.layer for unit in units)}.hook_resid_pre"
    residual = found.kept[tap].repeat(len(units), 1, 1)
    return subject.edited(edits_of(units, found, len(subject.cases)), residual, tap)


def edits_of(units: Sequence[Unit], found: Replacements, cases: int) -> list[tuple[str, Edit]]:
    """One edit a tap: in the rows of a unit its entries are replaced."""
    made: list[tuple[str, Edit]] = []
    for tap in dict.fromkeys(tap for unit in units for tap in unit.taps):
        value = found.kept[tap]
        scale = torch.ones(len(units), 1, 1, *value.shape[2:], device=value.device)
        for number, unit in enumerate(units):
            if tap in unit.taps:
                scale[number].select(unit.axis, unit.index).zero_() if unit.index >= 0 else scale[number].zero_()
        offset = (1 - scale) * found.values[tap]  # [E, 1 or B, T, ...]
        rows = (len(units) * cases, -1, *value.shape[2:])
        scale = scale.expand(-1, cases, *[-1] * (scale.ndim - 2)).reshape(rows)
        offset = offset.expand(-1, cases, *[-1] * (offset.ndim - 2)).reshape(rows)
        made.append((tap, Affine(scale, offset)))
    return made


def only_heads_of_one_layer(subject: Subject, units: Sequence[Unit]) -> bool:
    """Whether attention need not be computed again: heads add what they write, and nothing reads it before."""
    taps = {tap for unit in units for tap in unit.taps}
    heads = len(taps) == 1 and all(tap.endswith("attn.hook_z") for tap in taps)
    return heads and not subject.model.config.parallel


def without_heads(subject: Subject, units: Sequence[Unit], found: Replacements) -> Tensor:
    """[E, B]: the residual stream behind attention, less what the head wrote, goes on from there."""
    tap, layer = units[0].taps[0], units[0].layer
    weights = output_weights(subject.model, layer)
    change = found.values[tap] - found.kept[tap]  # [B, T, H, D]
    heads = [unit.index for unit in units]
    written = torch.einsum("bthd,hdw->hbtw", change[:, :, heads], weights[heads])
    middle = f"blocks.{layer}.hook_resid_mid"
    residual = found.kept[middle] + written
    return subject.edited((), residual.flatten(0, 1), middle)
