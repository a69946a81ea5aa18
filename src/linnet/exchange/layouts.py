"""Where each of our tensors is in other people's files, and how its rows lie there.

Ours keep queries, keys and values in one matrix, gate and value in another: one of ours may be several of theirs.
Legend: H = heads, D = head width.
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

MOST_NAMED = 5  # mistakes in one message
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How a stored tensor becomes (a part of) ours, and back."""

    read: Callable[[Tensor], Tensor]
    written: Callable[[Tensor], Tensor]


AS_IT_IS = Form(lambda tensor: tensor, lambda tensor: tensor)
TRANSPOSED = Form(lambda tensor: tensor.T, lambda tensor: tensor.T)
LESS_ONE = Form(lambda tensor: tensor + 1, lambda tensor: tensor - 1)  # a norm multiplies by 1 + what is stored


def by_head(heads: int) -> Form:
    """Stored head by head as query, key, value [H, 3, D, ...]; ours are all queries, all keys, all values."""
    return Form(
        lambda tensor: tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2),
        lambda tensor: tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2),
    )


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, and the stored ones whose rows follow each other in it."""

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...] = ()  # rows that each of several gives
    form: Form = AS_IT_IS

    def shapes(self, shape: Shape) -> list[Shape]:
        """The shapes in which the parts of our tensor of this shape are stored."""
        rows = self.sizes or shape[:1]
        return [shape[::-1] if self.form is TRANSPOSED else (count, *shape[1:]) for count in rows]


@dataclass(frozen=True)
class Layout:
    """All tensors of a model in one family's files."""

    prefix: str  # of everything but the head
    head: str
    entries: tuple[Entry, ...]
    buffers: tuple[str, ...] = ()  # endings of names that hold nothing learned

    @classmethod
    def of(cls, config: ModelConfig, prefix: str, head: str, entries: list[Entry], *buffers: str) -> Layout:
        last = [] if config.head.tied else [Entry("head.weight", (head,))]
        return cls(prefix, head, (*entries, *last), buffers)


def modern(config: ModelConfig, norms: Form = AS_IT_IS) -> Layout:
    """Llama and what followed it."""
    heads = tuple(n * config.head_width for n in (config.attention.heads, config.kv_heads, config.kv_heads))
    hidden = (config.feedforward_width,) * 2
    bias = config.attention.bias

    def weight(ours: str, theirs: str, form: Form = AS_IT_IS) -> Entry:
        return Entry(f"{ours}.weight", (f"{theirs}.weight",), (), form)

    entries = [weight("embedding", "model.embed_tokens"), weight("final_norm", "model.norm", norms)]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        entries.append(weight(f"{ours}.ln1", f"{theirs}.input_layernorm", norms))
        entries.append(weight(f"{ours}.ln2", f"{theirs}.post_attention_layernorm", norms))
        if config.attention.qk_norm:
            entries.append(weight(f"{ours}.mixer.q_norm", f"{theirs}.self_attn.q_norm"))
            entries.append(weight(f"{ours}.mixer.k_norm", f"{theirs}.self_attn.k_norm"))
        for mine, parts, sizes, biased in (
            ("mixer.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), heads, bool(bias)),
            ("mixer.out", ("self_attn.o_proj",), (), bias is True),
            ("feedforward.up", ("mlp.gate_proj", "mlp.up_proj"), hidden, config.feedforward.bias),
            ("feedforward.down", ("mlp.down_proj",), (), config.feedforward.bias),
        ):
            for kind in _kinds(biased):
                stored = tuple(f"{theirs}.{part}.{kind}" for part in parts)
                entries.append(Entry(f"{ours}.{mine}.{kind}", stored, sizes))
    return Layout.of(config, "model.", "lm_head.weight", entries, ".inv_freq")


def gemma(config: ModelConfig) -> Layout:
    return modern(config, LESS_ONE)


def gpt2(config: ModelConfig) -> Layout:
    entries = [
        *_both("embedding", "transformer.wte", bias=False),
        *_both("position_embedding", "transformer.wpe", bias=False),
        *_both("final_norm", "transformer.ln_f"),
    ]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for mine, stored, form in (
            ("ln1", "ln_1", AS_IT_IS),
            ("ln2", "ln_2", AS_IT_IS),
            ("mixer.qkv", "attn.c_attn", TRANSPOSED),
            ("mixer.out", "attn.c_proj", TRANSPOSED),
            ("feedforward.up", "mlp.c_fc", TRANSPOSED),
            ("feedforward.down", "mlp.c_proj", TRANSPOSED),
        ):
            entries += _both(f"{ours}.{mine}", f"{theirs}.{stored}", form)
    return Layout.of(config, "transformer.", "lm_head.weight", entries, ".attn.bias", ".attn.masked_bias")


def gpt_neox(config: ModelConfig) -> Layout:
    entries = [
        *_both("embedding", "gpt_neox.embed_in", bias=False),
        *_both("final_norm", "gpt_neox.final_layer_norm"),
    ]
    biased = bool(config.attention.bias)
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
        together = by_head(config.attention.heads)
        entries += _both(f"{ours}.ln1", f"{theirs}.input_layernorm")
        entries += _both(f"{ours}.ln2", f"{theirs}.post_attention_layernorm")
        entries += _both(f"{ours}.mixer.qkv", f"{theirs}.attention.query_key_value", together, biased)
        entries += _both(f"{ours}.mixer.out", f"{theirs}.attention.dense", bias=biased)
        entries += _both(f"{ours}.feedforward.up", f"{theirs}.mlp.dense_h_to_4h")
        entries += _both(f"{ours}.feedforward.down", f"{theirs}.mlp.dense_4h_to_h")
    buffers = (".attention.bias", ".attention.masked_bias", ".inv_freq")
    return Layout.of(config, "gpt_neox.", "embed_out.weight", entries, *buffers)


def _both(ours: str, theirs: str, form: Form = AS_IT_IS, bias: bool = True) -> list[Entry]:
    """The weight of one part of a model, and its bias."""
    return [
        Entry(
            f"{ours}.{kind}",
            (f"{theirs}.{kind}",),
            (),
            AS_IT_IS if form is TRANSPOSED and kind == "bias" else form,
        )
        for kind in _kinds(bias)
    ]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


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


def stored_shapes(layout: Layout, config: ModelConfig) -> dict[str, Shape]:
    """The names and shapes of the tensors that a file of this model has to hold."""
    ours = shapes(config)
    return {
        name: shape
        for entry in layout.entries
        for name, shape in zip(entry.theirs, entry.shapes(ours[entry.ours]), strict=True)
    }


def read_tensors(stored: StoredTensors, layout: Layout, config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors from their files; whatever the settings promise and the files do not hold is named."""
    if not any(name.startswith(layout.prefix) for name in stored.tensors):
        # Folders of a model without its head leave the prefix out.
        renamed = {
            layout.prefix + name if name != layout.head else name: at for name, at in stored.tensors.items()
        }
        stored = StoredTensors(stored.folder, renamed)
    _refuse_misfits(stored, layout, config)
    return joined(layout, lambda name: stored.read(name))


def joined(layout: Layout, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Our tensors from theirs, which `read` gives by name."""
    found = {}
    for entry in layout.entries:
        parts = [entry.form.read(read(name)) for name in entry.theirs]
        found[entry.ours] = (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
    return found


def _refuse_misfits(stored: StoredTensors, layout: Layout, config: ModelConfig) -> None:
    problems, wanted = [], stored_shapes(layout, config)
    for name, shape in wanted.items():
        if name not in stored.tensors:
            problems.append(f"{name} {list(shape)} is missing")
        elif stored.tensors[name].shape != shape:
            at = stored.tensors[name]
            problems.append(f"{at.name} in {at.file.name} is {list(at.shape)}, not {list(shape)}")
    strange = [name for name in stored.tensors if name not in wanted and not name.endswith(layout.buffers)]
    if config.head.tied and layout.head in strange:
        strange.remove(layout.head)
        embedding = layout.entries[0].theirs[0]
        if embedding in stored.tensors and not torch.equal(stored.read(layout.head), stored.read(embedding)):
            problems.append(
                f"{layout.head} differs from {embedding}, though tie_word_embeddings says they are one"
            )
    refuse_differences(f"{stored.folder}: config.json", problems, sorted(strange))


def refuse_differences(settings: str, problems: list[str], strange: list[str]) -> None:
    """One error where the tensors are not those that the settings promise: some differ, or there are others."""
    reasons = [*problems, *(f"{name} has no place in this model" for name in strange)]
    if not reasons:
        return
    what = "promises what the tensors do not hold" if problems else "says nothing of tensors that are there"
    more = f"; and {len(reasons) - MOST_NAMED} more" if len(reasons) > MOST_NAMED else ""
    raise BadInput(f"{settings} {what}: {'; '.join(reasons[:MOST_NAMED])}{more}")


def written_tensors(weights: Mapping[str, Tensor], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Their tensors from ours."""
    for entry in layout.entries:
        parts = weights[entry.ours].split(entry.sizes) if entry.sizes else (weights[entry.ours],)
        yield from zip(entry.theirs, map(entry.form.written, parts), strict=True)
