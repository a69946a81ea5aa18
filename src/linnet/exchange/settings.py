"""Settings of ours and keys of theirs: tables that are read in both directions, and what they cannot hold.

A format can hold a model if the settings that are read back from what would be written are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from linnet.errors import BadInput
from linnet.model.config import ModelConfig
from linnet.untrusted import Fields, mistake_text, shown

REQUIRED = object()
TRAINING_ONLY = frozenset({"dropout", "init_std", "scaled_residual", "loss"})  # settings that no longer matter
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
GATED |= {"swish": "swiglu", "gelu_python": "geglu", "gelu_new": "geglu_tanh"}
PLAIN = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
PLAIN |= {"gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}


@dataclass(frozen=True)
class Key:
    """One of their keys and the setting that it holds; without a value it is left out if the default is None."""

    theirs: str
    ours: str  # dotted
    kind: Literal["integer", "number", "flag"] | Mapping[str, str] = "integer"  # or their words for ours
    default: Any = REQUIRED

    def read(self, fields: Fields, prefix: str = "") -> Any:
        name = prefix + self.theirs
        if self.default is None and fields.values.get(name) is None:
            return None
        default = None if self.default is REQUIRED else self.default
        if isinstance(self.kind, Mapping):
            return fields.choice(name, str(default), self.kind)
        if self.kind == "flag":
            return fields.flag(name, bool(default))
        return fields.integer(name, default) if self.kind == "integer" else fields.number(name, default)

    def written(self, value: Any) -> Any:
        """Their word for this value; one that they have none for becomes another, which reading back shows."""
        if isinstance(self.kind, Mapping):
            return next((word for word, ours in self.kind.items() if ours == value), next(iter(self.kind)))
        return value


def read_keys(fields: Fields, keys: Iterable[Key], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found = {key.ours: key.read(fields, prefix) for key in keys}
    return {name: value for name, value in found.items() if value is not None}


def written_keys(config: ModelConfig, keys: Iterable[Key]) -> dict[str, Any]:
    ours = settled(config)
    return {key.theirs: key.written(ours[key.ours]) for key in keys if key.ours in ours}


def validated(fields: Fields, dotted: Mapping[str, Any]) -> ModelConfig:
    """The settings of a model; refuses with all that is wrong with what they were read from."""
    fields.refuse()
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        *groups, last = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = value
    try:
        return ModelConfig.model_validate(tree)
    except ValidationError as error:
        raise BadInput(f"{fields.source}: {'; '.join(map(mistake_text, error.errors()))}") from None


def settled(config: ModelConfig) -> dict[str, Any]:
    """The settings that decide what a model computes by dotted names, with everything derived filled in."""
    found = dotted(config) | {
        "mixer": config.mixers,
        "attention.kv_heads": config.kv_heads,
        "attention.head_width": config.head_width,
        "attention.rotary_width": config.rotary_width,
        "feedforward.width": config.feedforward_width,
    }
    scaling = config.attention.rotary_scaling
    if scaling is not None and scaling.kind == "linear":
        found["attention.rotary_scaling"] = {"kind": "linear", "factor": scaling.factor}
    if config.positions != "rotary":
        rotary = [name for name in found if name.startswith("attention.rotary_")]
        found = {name: value for name, value in found.items() if name not in rotary}
    return found


def dotted(config: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"columns": dict(config.columns)}
    for name, value in config.model_dump(exclude={*TRAINING_ONLY, "columns"}).items():
        inner = value if isinstance(value, dict) else {}
        found |= {f"{name}.{key}": part for key, part in inner.items()} if inner else {name: value}
    del found["feedforward.multiple"]
    return found


DEFAULTS = {name: value for name, value in dotted(ModelConfig()).items() if name != "mixer"}


def differences(config: ModelConfig, back: Mapping[str, Any], title: str, keys: Iterable[Key] = ()) -> list[str]:
    """The settings of a model that are others when they are read back, each with what a `title` has instead."""
    ours, theirs = settled(config), {**DEFAULTS, **back}
    theirs["attention.rotary_width"] = theirs["attention.rotary_width"] or theirs["attention.head_width"]
    words = {key.ours: list(dict.fromkeys(key.kind.values())) for key in keys if isinstance(key.kind, Mapping)}
    found = []
    for name in ours:
        if name == "mixer":
            found += _mixers(config, title)
        if ours[name] == theirs.get(name, ours[name]):
            continue
        has = " or ".join(words.get(name, [_plain(theirs[name])]))
        found.append(f"model.{name}={_plain(ours[name])}: {title} has {has}")
    return found


def _mixers(config: ModelConfig, title: str) -> list[str]:
    other = [layer for layer, mixer in enumerate(config.mixers) if mixer != "attention"]
    kinds = ", ".join(sorted({config.mixers[layer] for layer in other}))
    which = f"{'layers' if len(other) > 1 else 'layer'} {', '.join(map(str, other))}"
    return [f"model.mixer: {which} of this model: {kinds}; every layer of {title} attends"] if other else []


def _plain(value: Any) -> str:
    """A value as settings show it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return str(value.get("kind") or ", ".join(value) or "none")
    return "none" if value is None else value if isinstance(value, str) else shown(value)


def refuse(found: Iterable[str], what: str) -> None:
    """One error with all that stands in the way."""
    if reasons := "; ".join(found):
        raise BadInput(f"this model cannot be written as {what}: {reasons}")
