"""Named points of the model that can be read (`keep`) or replaced (`edit`).

The names are TransformerLens' names. Reading returns values as extra outputs, so it works in a compiled graph;
without any, `Taps.at` hands its argument straight back and leaves no trace in the graph.
Legend: row, position (query), key, head, key_head, width (model), head_width, hidden (feed-forward).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from linnet.errors import BadInput, nearest
from linnet.model.config import ModelConfig

Edit = Callable[[Tensor], Tensor]

RESIDUAL = ("row", "position", "width")
HEADS = ("row", "position", "head", "head_width")
KEY_HEADS = ("row", "position", "key_head", "head_width")
PATTERN = ("row", "head", "position", "key")

OUTER: Mapping[str, tuple[str, ...]] = {
    "hook_embed": RESIDUAL,
    "hook_pos_embed": RESIDUAL,
    "ln_final.hook_normalized": RESIDUAL,
}
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
    table = {name: axes for name, axes in OUTER.items() if name.startswith("hook_")}
    if config.positions not in ("learned", "sinusoidal"):
        del table["hook_pos_embed"]
    for layer, mixer in enumerate(config.mixers):
        block = {"hook_resid_pre": BLOCK["hook_resid_pre"], "ln1.hook_normalized": BLOCK["ln1.hook_normalized"]}
        if mixer == "attention":
            rotary = config.positions == "rotary"
            block |= {name: axes for name, axes in ATTENTION.items() if rotary or "rot_" not in name}
        block |= {name: axes for name, axes in BLOCK.items() if config.gated or name != "mlp.hook_pre_linear"}
        if config.parallel:  # the residual stream has no point between the two
            del block["hook_resid_mid"]
        table |= {f"blocks.{layer}.{name}": axes for name, axes in block.items()}
    table["ln_final.hook_normalized"] = OUTER["ln_final.hook_normalized"]
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
    """What one forward call returns and replaces beside its result. `table` gives the names, when any is used."""

    def __init__(
        self, table: Callable[[], Iterable[str]], keep: tuple[str, ...], edit: tuple[tuple[str, Edit], ...]
    ) -> None:
        if keep or edit:
            names = tuple(table())
            for name in (*keep, *(edited for edited, _ in edit)):
                if name not in names:
                    raise BadInput(f'this model has no tap "{name}"{nearest(name, names)}')
        self.keep = keep
        self.edit = edit
        self.kept: dict[str, Tensor] = {}

    def includes(self, *names: str) -> bool:
        """Whether any of these points is read or replaced."""
        return any(name in self.keep for name in names) or any(name in names for name, _ in self.edit)

    def at(self, name: str, value: Tensor) -> Tensor:
        """The value at this tap: replaced if it is edited, remembered if it is kept."""
        for edited, replacement in self.edit:
            if edited == name:
                edited_value = replacement(value)
                if edited_value.shape != value.shape:
                    shapes = f"{list(value.shape)} and not {list(edited_value.shape)}"
                    raise ValueError(f"an edit of {name} has to give the shape {shapes}")
                value = edited_value
        if name in self.keep:
            self.kept[name] = value
        return value
