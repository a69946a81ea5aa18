"""What other people's formats can say of a model of ours, and exactly what stands in the way where they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from linnet.codecs import Codec
from linnet.errors import BadInput
from linnet.model.config import ModelConfig

Family = Literal["llama", "qwen3"]

NAMES: Mapping[Family, str] = {"llama": "Llama", "qwen3": "Qwen3"}
TRAINING_ONLY = frozenset({"dropout", "init_std", "scaled_residual"})  # settings that no longer matter


@dataclass(frozen=True)
class Portable:
    """A model without everything that belongs to a run: settings, our tensors by name, codec."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    codec: Codec
    further_ends: tuple[int, ...] = ()  # ids beside the codec's end that end a text, too


def family_of(config: ModelConfig) -> Family:
    """Qwen3 where queries and keys are normed, which Llama has no place for."""
    return "qwen3" if config.attention.qk_norm else "llama"


def obstacles(config: ModelConfig, family: Family) -> list[str]:
    """Everything in which this model is not of that family; empty if it can be written."""
    name, attention, found = NAMES[family], config.attention, []
    if recurrent := [i for i, mixer in enumerate(config.mixers) if mixer != "attention"]:
        kinds = sorted({config.mixers[i] for i in recurrent})
        which = f"{'layers' if len(recurrent) > 1 else 'layer'} {', '.join(map(str, recurrent))}"
        found.append(f"model.mixer: {which} of this model: {', '.join(kinds)}; every layer of {name} attends")
    if config.positions != "rotary":
        found.append(f"model.positions={config.positions}: {name} has rotary positions only")
    elif config.rotary_width != config.head_width:
        turned = f"{config.rotary_width} of {config.head_width}"
        found.append(f"model.attention.rotary_width: {turned} values of a head turn, and all of them in {name}")
    if not attention.causal:
        found.append(f"model.attention.causal=false: {name} never looks ahead")
    if config.value_layers:
        found.append(
            f"model.attention.value_embeddings={attention.value_embeddings}: {name} has no table of values"
        )
    if config.parallel:
        found.append(f"model.parallel=true: in {name} the feed-forward reads what attention wrote")
    if config.norm.kind != "rms":
        bias = " with a bias" if config.norm.bias else ""
        found.append(f"model.norm.kind={config.norm.kind}{bias}: {name} has rms norms")
    if not config.gated:
        found.append(f"model.feedforward.kind={config.feedforward.kind}: {name} has a gate (swiglu, geglu)")
    elif config.feedforward.bias and family == "qwen3":
        found.append(f"model.feedforward.bias=true: {name} (which qk_norm asks for) has none there")
    if config.head.bias:
        found.append(f"model.head.bias=true: the head of {name} has none")
    if config.head.softcap is not None:
        found.append(f"model.head.softcap={config.head.softcap}: {name} does not cap its logits")
    if config.columns:
        found.append(f"model.columns: {name} reads token ids only, not {', '.join(sorted(config.columns))}")
    if family == "llama" and config.width % attention.heads:
        found.append(f"model.width={config.width} does not divide into {attention.heads} heads, as {name} demands")
    return found


def refuse(found: list[str], what: str) -> None:
    """One error with all that stands in the way."""
    if found:
        raise BadInput(f"this model cannot be written as {what}: {'; '.join(found)}")


def settled(config: ModelConfig) -> dict[str, Any]:
    """The settings that decide what a model computes, with everything derived filled in."""
    tree = config.model_dump(exclude=set(TRAINING_ONLY))
    tree["mixer"] = config.mixers
    rotary = config.positions == "rotary"
    tree["attention"] |= {
        "kv_heads": config.kv_heads,
        "head_width": config.head_width,
        "rotary_width": config.rotary_width if rotary else None,
    }
    tree["feedforward"] |= {"width": config.feedforward_width}
    return tree


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "model.") -> list[str]:
    """The settings of ours that are not the same in what was read back."""
    found = []
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += differing(value, other, f"{prefix}{key}.")
        elif value != other:
            found.append(f"{prefix}{key}={value!r} has no place in it")
    return found
