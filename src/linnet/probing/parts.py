"""The parts of a decoder that write into its residual stream and read from it, under names of their own.

Writers: `embed`, `head.LAYER.HEAD`, `mixer.LAYER` (a recurrent layer), `mlp.LAYER`, `bias` (of the outputs of
attention). Readers: `q.LAYER.HEAD`, `k.LAYER.KEYHEAD`, `v.LAYER.KEYHEAD`, `mixer.LAYER`, `mlp.LAYER`, `logits`.
Heads that share keys share readers of keys and values. An edge is written `head.0.1->k.1.0`.
Legend: P = parts, B = rows, T = tokens, W = model width, H = heads, D = head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import refuse_unknown
from linnet.model.config import ModelConfig
from linnet.model.mixers import Attention
from linnet.model.model import Model

EMBED, LOGITS, BIAS = "embed", "logits", "bias"
START = "blocks.0.hook_resid_pre"


@dataclass(frozen=True)
class Part:
    """One writer or reader: what it is, its layer, and its head where it is one of several."""

    kind: str  # embed, head, mixer, mlp; q, k, v, logits
    layer: int = -1
    head: int = -1

    @property
    def name(self) -> str:
        numbers = [str(number) for number in (self.layer, self.head) if number >= 0]
        return ".".join([self.kind, *numbers])

    @property
    def tap(self) -> str:
        """Where a writer's value is."""
        ends = {"head": "attn.hook_z", "mixer": "hook_attn_out", "mlp": "hook_mlp_out"}
        return START if self.kind == EMBED else f"blocks.{self.layer}.{ends[self.kind]}"


def writers(config: ModelConfig) -> tuple[Part, ...]:
    """Everything that adds to the residual stream, in the order of the pass."""
    found = [Part(EMBED)]
    for layer, mixer in enumerate(config.mixers):
        if mixer == "attention":
            found += [Part("head", layer, head) for head in range(config.attention.heads)]
        else:
            found.append(Part("mixer", layer))
        found.append(Part("mlp", layer))
    return tuple(found)


def readers(config: ModelConfig) -> tuple[Part, ...]:
    """Everything that reads the residual stream, in the order of the pass."""
    found = []
    for layer, mixer in enumerate(config.mixers):
        if mixer == "attention":
            found += [Part("q", layer, head) for head in range(config.attention.heads)]
            found += [Part(kind, layer, head) for kind in "kv" for head in range(config.kv_heads)]
        else:
            found.append(Part("mixer", layer))
        found.append(Part("mlp", layer))
    return (*found, Part(LOGITS))


def depth(part: Part, config: ModelConfig, *, writes: bool) -> int:
    """When a part reads or writes: it reads what writers of a smaller depth wrote. Mixers come before mlps."""
    if part.kind == EMBED:
        return -1
    if part.kind == LOGITS:
        return 2 * config.depth
    second = part.kind == "mlp"
    if config.parallel:  # both read the stream before either has written
        return 2 * part.layer + (1 if writes else 0)
    return 2 * part.layer + second


def before(reader: Part, config: ModelConfig) -> tuple[int, ...]:
    """The indices among `writers` of those that this reader sees."""
    limit = depth(reader, config, writes=False)
    return tuple(i for i, writer in enumerate(writers(config)) if depth(writer, config, writes=True) < limit)


def edges(config: ModelConfig) -> tuple[tuple[Part, Part], ...]:
    """Every (writer, reader) where the reader sees the writer, grouped by reader."""
    found = writers(config)
    return tuple((found[i], reader) for reader in readers(config) for i in before(reader, config))


def edge_name(writer: Part, reader: Part) -> str:
    return f"{writer.name}->{reader.name}"


def parse_parts(names: Sequence[str], config: ModelConfig) -> tuple[Part, ...]:
    """The writers with these names; `heads`, `mlps` and `layer.N` stand for several."""
    table = {part.name: (part,) for part in writers(config) if part.kind != EMBED}
    several = {
        f"{kind}s": tuple(part for (part,) in table.values() if part.kind == kind)
        for kind in ("head", "mlp", "mixer")
    }
    for layer in range(config.depth):
        several[f"layer.{layer}"] = tuple(p for (p,) in table.values() if p.layer == layer)
    known = table | {name: parts for name, parts in several.items() if parts}
    chosen: dict[Part, None] = {}
    for name in names:
        refuse_unknown(name, known, "this model has no part")
        chosen.update(dict.fromkeys(known[name]))
    return tuple(part for (part,) in table.values() if part in chosen)


def attention_of(model: Model, layer: int) -> Attention:
    mixer = model.block(layer).mixer
    assert isinstance(mixer, Attention), "a part of heads belongs to an attention layer"
    return mixer


def output_weights(model: Model, layer: int) -> Tensor:
    """[H, D, W]: what each head of this layer writes for each of its values."""
    mixer = attention_of(model, layer)
    return mixer.out.weight.T.reshape(mixer.heads, mixer.head_width, -1)


def writer_taps(config: ModelConfig) -> tuple[str, ...]:
    """The taps that `written` reads."""
    return tuple(dict.fromkeys(part.tap for part in writers(config)))


def written(model: Model, kept: Mapping[str, Tensor], parts: Sequence[Part]) -> Tensor:
    """[P, B, T, W]: what each of these writers adds to the residual stream."""
    found = []
    for part in parts:
        value = kept[part.tap]
        if part.kind == "head":
            value = value[:, :, part.head] @ output_weights(model, part.layer)[part.head]
        found.append(value)
    return torch.stack(found)
