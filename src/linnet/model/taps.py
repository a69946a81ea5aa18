"""Named points of the model that can be read (`keep`) or replaced (`edit`).

The names are TransformerLens' names. Reading returns values as extra outputs, so it works in a compiled graph;
without any, `Taps.at` hands its argument straight back and leaves no trace in the graph.
Positions are counted from the start of the prompt, whether it is read at once or through a state.
Legend: row, position (query), key, head, key_head, width (model), head_width, hidden (feed-forward).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput, nearest, refuse_unknown
from linnet.model.config import ModelConfig


@dataclass(frozen=True)
class Affine:
    """The edit `value * scale + offset`: zero, mean, another run's value and a steering vector are of this form.

    Both broadcast over the axes of the tap. They are inputs of a compiled graph, so one graph serves every head,
    row and position. An axis of positions (or keys) longer than 1 counts from the start of the prompt, and what
    lies beyond it is left alone.
    """

    scale: Tensor
    offset: Tensor


@dataclass(frozen=True)
class AtPositions:
    """An edit by a function of the value and of the positions [1 or row, position] that it belongs to."""

    function: Callable[[Tensor, Tensor], Tensor]


Edit = Callable[[Tensor], Tensor] | Affine | AtPositions

RESIDUAL = ("row", "position", "width")
HEADS = ("row", "position", "head", "head_width")
KEY_HEADS = ("row", "position", "key_head", "head_width")
PATTERN = ("row", "head", "position", "key")

RECURRENT = ("gru.hook_reset", "gru.hook_update", "gru.hook_candidate", "gru.hook_state")
BLOCK: Mapping[str, tuple[str, ...]] = {
    "hook_resid_pre": RESIDUAL,
    "ln1.hook_normalized": RESIDUAL,
    "hook_attn_out": RESIDUAL,
    "hook_resid_mid": RESIDUAL,
    "ln2.hook_normalized": RESIDUAL,
    "mlp.hook_pre": ("row", "position", "hidden"),
    "mlp.hook_pre_linear": ("row", "position", "hidden"),
    "mlp.hook_post": ("row", "position", "hidden"),
    "hook_mlp_out": RESIDUAL,
    "hook_resid_post": RESIDUAL,
}
ATTENTION: Mapping[str, tuple[str, ...]] = {
    "attn.hook_q": HEADS,
    "attn.hook_k": KEY_HEADS,
    "attn.hook_v": KEY_HEADS,
    "attn.hook_rot_q": HEADS,
    "attn.hook_rot_k": KEY_HEADS,
    "attn.hook_attn_scores": PATTERN,
    "attn.hook_pattern": PATTERN,
    "attn.hook_z": HEADS,
}


def points(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Every tap of this model with the names of its axes, in the order of the forward pass."""
    table: dict[str, tuple[str, ...]] = {"hook_embed": RESIDUAL}
    if config.positions in ("learned", "sinusoidal"):
        table["hook_pos_embed"] = RESIDUAL
    for layer, mixer in enumerate(config.mixers):
        block: dict[str, tuple[str, ...]] = dict.fromkeys(("hook_resid_pre", "ln1.hook_normalized"), RESIDUAL)
        if mixer == "attention":
            rotary = config.positions == "rotary"
            block |= {name: axes for name, axes in ATTENTION.items() if rotary or "rot_" not in name}
        else:
            block |= dict.fromkeys(RECURRENT, RESIDUAL)
        block |= {name: axes for name, axes in BLOCK.items() if config.gated or name != "mlp.hook_pre_linear"}
        if config.parallel:  # the residual stream has no point between the two
            del block["hook_resid_mid"]
        table |= {f"blocks.{layer}.{name}": axes for name, axes in block.items()}
    table["ln_final.hook_normalized"] = RESIDUAL
    return table


def expand(table: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """The names among these taps that match shell patterns, such as `blocks.*.attn.hook_pattern`."""
    table = tuple(table)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = fnmatch.filter(table, pattern)
        if not matches:
            raise BadInput(f'no tap matches "{pattern}"{nearest(pattern, table)}')
        chosen.update(dict.fromkeys(matches))
    return tuple(chosen)


class Taps:
    """What one forward call returns and replaces beside its result. `table` gives the names, when any is used.

    A network whose calls may go on from a state says with `begin` which positions its values belong to.
    """

    def __init__(
        self,
        table: Callable[[], Mapping[str, tuple[str, ...]]],
        keep: tuple[str, ...],
        edit: tuple[tuple[str, Edit], ...],
    ) -> None:
        self.table: Mapping[str, tuple[str, ...]] = table() if keep or edit else {}
        for name in (*keep, *(edited for edited, _ in edit)):
            refuse_unknown(name, self.table, "this model has no tap")
        self.keep = keep
        self.edit = edit
        self.kept: dict[str, Tensor] = {}
        self.positions: Tensor | None = None
        self.whole = True

    def begin(self, positions: Tensor, *, whole: bool) -> None:
        """The positions [1 or row, position] of this call; `whole`: they are 0, 1, 2, ... in every row."""
        self.positions, self.whole = positions, whole

    def includes(self, *names: str) -> bool:
        """Whether any of these points is read or replaced."""
        return any(name in self.keep for name in names) or any(name in names for name, _ in self.edit)

    def at(self, name: str, value: Tensor) -> Tensor:
        """The value at this tap: replaced if it is edited, remembered if it is kept."""
        for edited, edit in self.edit:
            if edited == name:
                value = self._edited(name, edit, value)
        if name in self.keep:
            self.kept[name] = value
        return value

    def _edited(self, name: str, edit: Edit, value: Tensor) -> Tensor:
        axes = self.table[name]
        if isinstance(edit, Affine):
            positions = None if self.whole else self.positions
            changed = affine(edit, value, axes, positions)
        elif isinstance(edit, AtPositions):
            changed = edit.function(value, self._positions(value, axes))
        else:
            changed = edit(value)
        if changed.shape != value.shape:
            shapes = f"{list(value.shape)} and not {list(changed.shape)}"
            raise ValueError(f"an edit of {name} has to give the shape {shapes}")
        if not torch.compiler.is_compiling():  # a graph cannot stop; whoever runs one looks at what comes out
            self._refuse_nan(name, value, changed)
        return changed

    def _positions(self, value: Tensor, axes: Sequence[str]) -> Tensor:
        if self.positions is not None:
            return self.positions
        steps = value.shape[axes.index("position")] if "position" in axes else 1
        return torch.arange(steps, device=value.device)[None]

    def _refuse_nan(self, name: str, value: Tensor, changed: Tensor) -> None:
        """An edit that gives NaN is named with the first row and position where it does."""
        found = changed.isnan()
        if not bool(found.any()) or not bool((found := found & ~value.isnan()).any()):
            return
        axes = self.table[name]
        index = dict(zip(axes, found.nonzero()[0].tolist(), strict=True))
        if "position" in index:
            positions = self._positions(value, axes)
            index["position"] = int(positions[min(index.get("row", 0), len(positions) - 1), index["position"]])
        where = ", ".join(f"{axis} {number}" for axis, number in index.items() if "width" not in axis)
        raise BadInput(f"the edit of {name} gives NaN, first at {where}")

    def step(self, index: int) -> Taps:
        """The same for one position of this call, where a layer computes its positions one after the other."""
        one = Taps(lambda: self.table, self.keep, self.edit)
        if self.positions is not None:
            one.begin(self.positions[:, index : index + 1], whole=False)
        return one

    def join(self, steps: Sequence[Taps]) -> None:
        """What was kept at each of these positions is kept as one value."""
        for name in steps[0].kept if steps else ():
            self.kept[name] = torch.cat([step.kept[name] for step in steps], dim=1)


def affine(edit: Affine, value: Tensor, axes: Sequence[str], positions: Tensor | None) -> Tensor:
    """The edited value; `positions` is None where they are 0, 1, 2, ... Masked scores stay masked."""
    scale = fitted(edit.scale, value, axes, positions, 1.0)
    offset = fitted(edit.offset, value, axes, positions, 0.0)
    changed = value * scale + offset
    return torch.where(value == -math.inf, value, changed) if "key" in axes else changed


def fitted(tensor: Tensor, value: Tensor, axes: Sequence[str], positions: Tensor | None, neutral: float) -> Tensor:
    """A tensor of an affine edit at the positions and keys of this value, `neutral` beyond its own."""
    if tensor.ndim > value.ndim:
        raise ValueError(f"an edit of {list(value.shape)} cannot have the shape {list(tensor.shape)}")
    tensor = tensor.to(value.dtype).reshape((1,) * (value.ndim - tensor.ndim) + tuple(tensor.shape))
    if "key" in axes:
        tensor = first_entries(tensor, axes.index("key"), value.shape[-1], neutral)
    if "position" not in axes or tensor.shape[axes.index("position")] == 1:
        return tensor
    axis = axes.index("position")
    if positions is None:
        return first_entries(tensor, axis, value.shape[axis], neutral)
    tensor = tensor.transpose(axis, 1)  # [row, position, ...]
    rows = torch.arange(len(tensor), device=tensor.device)[:, None]
    found = tensor[rows, positions.clamp(max=tensor.shape[1] - 1)]
    inside = (positions < tensor.shape[1]).view(*positions.shape, *[1] * (tensor.ndim - 2))
    return torch.where(inside, found, neutral).transpose(axis, 1)


def first_entries(tensor: Tensor, axis: int, size: int, neutral: float) -> Tensor:
    """The first entries of an axis, and `neutral` where it is shorter; an axis of 1 stands for all."""
    own = tensor.shape[axis]
    if own in (1, size):
        return tensor
    if own > size:
        return tensor.narrow(axis, 0, size)
    shape = list(tensor.shape)
    shape[axis] = size - own
    return torch.cat((tensor, tensor.new_full(shape, neutral)), dim=axis)
