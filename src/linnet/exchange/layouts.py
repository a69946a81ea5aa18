"""Where each of our tensors is in other people's files, and how its rows lie there.

Ours keep queries, keys and values in one matrix, gate and value in another: one of ours may be several of theirs.
Legend: W = model width, H = heads, Hk = key-value heads, D = head width, F = feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from linnet.errors import BadInput
from linnet.exchange.tensors import StoredTensors
from linnet.model.config import ModelConfig
from linnet.model.model import Model

SAID = 5  # mistakes that one message names
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Turn:
    """How a stored tensor becomes (a part of) ours, and the shape that it is stored in."""

    ours: Callable[[Tensor], Tensor]
    stored: Callable[[Shape], Shape]


AS_IT_IS = Turn(lambda tensor: tensor, lambda shape: shape)
TRANSPOSED = Turn(lambda tensor: tensor.T, lambda shape: shape[::-1])


def by_head(heads: int) -> Turn:
    """Stored head by head as query, key, value [H, 3, D, ...]; ours are all queries, all keys, all values."""
    return Turn(
        lambda tensor: tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2), lambda shape: shape
    )


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, and the stored ones whose rows follow each other in it."""

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...]  # rows that each of theirs gives; of a single one, all rows
    turn: Turn = AS_IT_IS


@dataclass(frozen=True)
class Layout:
    """All tensors of a model in one family's files."""

    prefix: str  # of everything but the head
    head: str
    entries: tuple[Entry, ...]
    buffers: tuple[str, ...] = ()  # endings of names that hold nothing learned


def layout(family: str, config: ModelConfig) -> Layout:
    return LAYOUTS[family](config)


def _modern(config: ModelConfig) -> Layout:
    """Llama and Qwen3."""
    heads = tuple(n * config.head_width for n in (config.attention.heads, config.kv_heads, config.kv_heads))
    hidden = (config.feedforward_width,) * 2
    entries = [_single("embedding.weight", "model.embed_tokens.weight")]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        attention, feedforward = f"{theirs}.self_attn", f"{theirs}.mlp"
        entries.append(_single(f"{ours}.ln1.weight", f"{theirs}.input_layernorm.weight"))
        for kind in _kinds(config.attention.bias):
            stored = tuple(f"{attention}.{name}_proj.{kind}" for name in "qkv")
            entries.append(Entry(f"{ours}.mixer.qkv.{kind}", stored, heads))
            entries.append(_single(f"{ours}.mixer.out.{kind}", f"{attention}.o_proj.{kind}"))
        if config.attention.qk_norm:
            entries.append(_single(f"{ours}.mixer.q_norm.weight", f"{attention}.q_norm.weight"))
            entries.append(_single(f"{ours}.mixer.k_norm.weight", f"{attention}.k_norm.weight"))
        entries.append(_single(f"{ours}.ln2.weight", f"{theirs}.post_attention_layernorm.weight"))
        for kind in _kinds(config.feedforward.bias):
            stored = tuple(f"{feedforward}.{name}_proj.{kind}" for name in ("gate", "up"))
            entries.append(Entry(f"{ours}.feedforward.up.{kind}", stored, hidden))
            entries.append(_single(f"{ours}.feedforward.down.{kind}", f"{feedforward}.down_proj.{kind}"))
    entries.append(_single("final_norm.weight", "model.norm.weight"))
    return Layout("model.", "lm_head.weight", _with_head(config, entries, "lm_head.weight"), (".inv_freq",))


def _gpt2(config: ModelConfig) -> Layout:
    entries = [
        _single("embedding.weight", "transformer.wte.weight"),
        _single("position_embedding.weight", "transformer.wpe.weight"),
        *_norm("final_norm", "transformer.ln_f"),
    ]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        entries += _norm(f"{ours}.ln1", f"{theirs}.ln_1") + _norm(f"{ours}.ln2", f"{theirs}.ln_2")
        for mine, stored in (
            ("mixer.qkv", "attn.c_attn"),
            ("mixer.out", "attn.c_proj"),
            ("feedforward.up", "mlp.c_fc"),
            ("feedforward.down", "mlp.c_proj"),
        ):
            entries.append(_single(f"{ours}.{mine}.weight", f"{theirs}.{stored}.weight", TRANSPOSED))
            entries.append(_single(f"{ours}.{mine}.bias", f"{theirs}.{stored}.bias"))
    with_head = _with_head(config, entries, "lm_head.weight")
    return Layout("transformer.", "lm_head.weight", with_head, (".attn.bias", ".attn.masked_bias"))


def _gpt_neox(config: ModelConfig) -> Layout:
    entries = [
        _single("embedding.weight", "gpt_neox.embed_in.weight"),
        *_norm("final_norm", "gpt_neox.final_layer_norm"),
    ]
    together = by_head(config.attention.heads)
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
        entries += _norm(f"{ours}.ln1", f"{theirs}.input_layernorm")
        entries += _norm(f"{ours}.ln2", f"{theirs}.post_attention_layernorm")
        for kind in _kinds(config.attention.bias):
            stored = f"{theirs}.attention.query_key_value.{kind}"
            entries.append(_single(f"{ours}.mixer.qkv.{kind}", stored, together))
            entries.append(_single(f"{ours}.mixer.out.{kind}", f"{theirs}.attention.dense.{kind}"))
        for kind in _kinds(True):
            entries.append(_single(f"{ours}.feedforward.up.{kind}", f"{theirs}.mlp.dense_h_to_4h.{kind}"))
            entries.append(_single(f"{ours}.feedforward.down.{kind}", f"{theirs}.mlp.dense_4h_to_h.{kind}"))
    with_head = _with_head(config, entries, "embed_out.weight")
    buffers = (".attention.bias", ".attention.masked_bias", ".inv_freq")
    return Layout("gpt_neox.", "embed_out.weight", with_head, buffers)


LAYOUTS: Mapping[str, Callable[[ModelConfig], Layout]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _modern,
    "qwen3": _modern,
}


def _single(ours: str, theirs: str, turn: Turn = AS_IT_IS) -> Entry:
    return Entry(ours, (theirs,), (), turn)


def _norm(ours: str, theirs: str) -> list[Entry]:
    return [_single(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in _kinds(True)]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _with_head(config: ModelConfig, entries: list[Entry], theirs: str) -> tuple[Entry, ...]:
    return tuple(entries) if config.head.tied else (*entries, _single("head.weight", theirs))


class Unfilled(TorchFunctionMode):
    """Leaves new tensors as they are: drawing their first values takes seconds, and nobody looks at them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of each of our tensors, without making them."""
    with torch.device("meta"), Unfilled():
        return {name: tuple(parameter.shape) for name, parameter in Model(config).named_parameters()}


def wanted(entry: Entry, shape: Shape) -> list[Shape]:
    """The shapes in which the parts of one of our tensors are stored."""
    return [entry.turn.stored((rows, *shape[1:])) for rows in entry.sizes or shape[:1]]


def take(stored: StoredTensors, family: str, config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors from their files; whatever the settings promise and the files do not hold is named."""
    plan = layout(family, config)
    if not any(name.startswith(plan.prefix) for name in stored.places):
        # Folders of a model without its head leave the prefix out.
        renamed = {plan.prefix + name if name != plan.head else name: at for name, at in stored.places.items()}
        stored = StoredTensors(stored.folder, renamed)
    ours = shapes(config)
    refuse_misfits(stored, plan, config, ours)
    taken = {}
    for entry in plan.entries:
        parts = [entry.turn.ours(part) for part in stored.read(entry.theirs)]
        taken[entry.ours] = (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
    return taken


def refuse_misfits(stored: StoredTensors, plan: Layout, config: ModelConfig, ours: Mapping[str, Shape]) -> None:
    problems, known = [], set()
    for entry in plan.entries:
        for name, shape in zip(entry.theirs, wanted(entry, ours[entry.ours]), strict=True):
            known.add(name)
            if name not in stored.places:
                problems.append(f"{name} {list(shape)} is missing")
            elif stored.places[name].shape != shape:
                at = stored.places[name]
                problems.append(f"{at.name} in {at.file.name} is {list(at.shape)}, not {list(shape)}")
    strange = [name for name in stored.places if name not in known and not name.endswith(plan.buffers)]
    if config.head.tied and plan.head in strange:
        strange.remove(plan.head)
        embedding = plan.entries[0].theirs[0]
        if embedding in stored.places and not stored.equal(plan.head, embedding):
            problems.append(f"{plan.head} differs from {embedding}, though tie_word_embeddings says they are one")
    refuse_differences(f"{stored.folder}: config.json", problems, sorted(strange))


def refuse_differences(settings: str, problems: list[str], strange: list[str]) -> None:
    """One error where the tensors are not those that the settings promise: some differ, or there are others."""
    more = [f"{name} has no place in this model" for name in strange]
    said = [*problems, *more]
    if not said:
        return
    what = "promises what the tensors do not hold" if problems else "says nothing of tensors that are there"
    left = f"; and {len(said) - SAID} more" if len(said) > SAID else ""
    raise BadInput(f"{settings} {what}: {'; '.join(said[:SAID])}{left}")


def give(weights: Mapping[str, Tensor], family: str, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Their tensors from ours, for families that are written (their tensors are turned nowhere)."""
    for entry in layout(family, config).entries:
        parts = weights[entry.ours].split(entry.sizes) if entry.sizes else (weights[entry.ours],)
        yield from zip(entry.theirs, parts, strict=True)
