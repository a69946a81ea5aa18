"""What happens without a part: its value becomes zero, its mean over all cases, or that of another prompt.

Every ablation begins where it takes something away, from the residual stream that one plain run kept; all of them
go on in one batch, which grows from layer to layer.
Legend: E = edited copies, B = cases, T = tokens, W = width, H = heads, N = neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.model.taps import Affine, Edit, Taps
from linnet.probing.cases import MOST_TOKENS, Subject
from linnet.probing.parts import Part, output_weights

By = Literal["zero", "mean", "resample"]
MOST_UNITS = 256  # of one pass
NOTHING = Taps(dict, (), ())


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

    plain: Tensor  # [B]: the measure, without any ablation
    kept: Mapping[str, Tensor]  # values and residual streams of the plain run
    values: Mapping[str, Tensor]  # what replaces them

    def of(self, rows: slice) -> Replacements:
        """Those of some cases."""
        kept = {name: value[rows] for name, value in self.kept.items()}
        values = {name: value if len(value) == 1 else value[rows] for name, value in self.values.items()}
        return Replacements(self.plain[rows], kept, values)


def replacements(subject: Subject, taps: Sequence[str], by: By) -> Replacements:
    """One run of the cases, and one of the other prompts where values come from there."""
    model, cases = subject.model, subject.cases
    taps = tuple(dict.fromkeys(taps))
    streams = tuple(name for name in model.taps() if ".hook_resid_" in name)
    plain, kept = subject.run(cases.ids, (*taps, *streams))
    if by == "zero":
        values = {tap: torch.zeros_like(kept[tap][:1]) for tap in taps}
    elif by == "mean":
        if len(cases) == 1:
            raise BadInput(
                "the mean of one prompt is that prompt, so nothing would change: give several cases (--file, -n), "
                "or ablate by zero"
            )
        values = {tap: kept[tap].mean(0, keepdim=True) for tap in taps}
    elif by == "resample":
        values = dict(subject.run(cases.others, taps)[1])
    else:
        raise BadInput(f'an ablation is by zero, mean or resample, not by "{by}"')
    return Replacements(plain, kept, values)


def ablate(subject: Subject, units: Sequence[Unit], by: By = "mean") -> tuple[Tensor, Tensor]:
    """The measure of each case without each unit [E, B], and of the whole model [B]."""
    cases = subject.cases
    with evaluating(subject.model):
        found = replacements(subject, [tap for unit in units for tap in unit.taps], by)
        parts = []
        for first in range(0, len(units), MOST_UNITS):
            chosen = units[first : first + MOST_UNITS]
            step = max(1, MOST_TOKENS // (len(chosen) * cases.ids.shape[1]))
            slices = [slice(at, at + step) for at in range(0, len(cases), step)]
            parts.append(torch.cat([together(subject.of(rows), chosen, found.of(rows)) for rows in slices], 1))
    return torch.cat(parts), found.plain


def ablate_naively(subject: Subject, units: Sequence[Unit], by: By = "mean") -> Tensor:
    """The same, one whole run a unit: the reference."""
    with evaluating(subject.model):
        found = replacements(subject, [tap for unit in units for tap in unit.taps], by)
        return torch.cat([subject.edited(edits_of([unit], found, len(subject.cases))) for unit in units])


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


def together(subject: Subject, units: Sequence[Unit], found: Replacements) -> Tensor:
    """[E, B]: all units in one pass, each of which joins it behind the place where it was taken away.

    Behind the last mixer only the positions of the answers are computed.
    """
    model, cases = subject.model, subject.cases
    joining = {at: [i for i, unit in enumerate(units) if joins_at(model, unit) == at] for at in both_stages(model)}
    x, order = found.kept["blocks.0.hook_resid_pre"][:0], list[int]()
    for layer in range(model.config.depth):
        block, before = model.block(layer), x
        if len(x):
            frame = model.frame(cases.ids.repeat(len(x) // len(cases), 1))
            x = x + block.mix(x, None, frame, NOTHING)[0]
        last = layer == model.config.depth - 1
        x, before = (cases.at(value) if last and len(value) else value for value in (x, before))
        for stage in ("mid", "post"):
            new = [without(model, units[i], found) for i in joining[layer, stage]]
            order += joining[layer, stage]
            if new:
                new = [cases.at(value) for value in new] if last else new
                x = torch.cat([*([x] if len(x) else []), *new])
            if stage == "mid" and len(x):
                x = block.finish(x, before if block.parallel else x, NOTHING)
    measured = subject.known(
        subject.measure_answers(model.final_norm(x)), [tap for unit in units for tap in unit.taps]
    )
    return measured[torch.tensor(order).argsort()]


def both_stages(model: Model) -> list[tuple[int, str]]:
    return [(layer, stage) for layer in range(model.config.depth) for stage in ("mid", "post")]


def joins_at(model: Model, unit: Unit) -> tuple[int, str]:
    """Behind the mixer, or behind the whole layer where nothing in it reads what has changed."""
    mixer = len(unit.taps) == 1 and unit.taps[0].endswith(("attn.hook_z", "hook_attn_out"))
    return unit.layer, "mid" if mixer and not model.config.parallel else "post"


def without(model: Model, unit: Unit, found: Replacements) -> Tensor:
    """[B, T, W]: the stream where this unit joins, with what it adds replaced."""
    layer, stage = joins_at(model, unit)
    stream = found.kept[f"blocks.{layer}.hook_resid_{stage}"]
    for tap in unit.taps:
        change = found.values[tap] - found.kept[tap]
        if unit.index >= 0:
            weights = model.block(layer).feedforward.down.weight.T
            entry = (
                weights[unit.index][None]
                if tap.endswith("hook_post")
                else output_weights(model, layer)[unit.index]
            )
            change = change[:, :, unit.index].flatten(2) if change.ndim == 4 else change[:, :, unit.index, None]
            change = change @ entry
        stream = stream + change
    return stream
