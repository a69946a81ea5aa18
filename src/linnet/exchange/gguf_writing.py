"""GGUF files for llama.cpp, written with the `gguf` library: F32, F16, BF16 and Q8_0.

Norms and biases stay F32, as llama.cpp wants them. The architecture `llama` interleaves the two halves of each
head that turn together, so rows of queries and keys change places; `qwen3` keeps them.
Legend: H = heads, D = head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.exchange.expressing import NAMES, Family, Portable, obstacles, refuse
from linnet.exchange.gguf_vocabulary import Vocabulary, vocabulary_of
from linnet.exchange.hf import expressible
from linnet.exchange.layouts import give
from linnet.model.config import ModelConfig
from linnet.model.layers import slowed

Kind = Literal["f32", "f16", "bf16", "q8_0"]
BLOCK = 32  # values that share a scale in Q8_0

# From the names of a Hugging Face folder to those of GGUF.
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def library() -> Any:
    """The `gguf` package, or the advice to install it."""
    try:
        import gguf
    except ImportError as error:
        raise BadInput("GGUF needs the gguf library: pip install linnet[gguf]") from error
    return gguf


def gguf_family(config: ModelConfig) -> Family:
    """The architecture that llama.cpp loads this model as; refuses with all that stands in the way."""
    family: Family = "qwen3" if config.attention.qk_norm else "llama"
    name = f"{NAMES[family]} of llama.cpp"
    found = obstacles(config, family)
    if config.feedforward.kind == "geglu":
        found.append(f"model.feedforward.kind=geglu: the gate of {name} is swiglu")
    if family == "qwen3" and config.attention.bias:
        found.append(f"model.attention.bias=true: {name} (which qk_norm asks for) has none")
    scaling = config.attention.rotary_scaling
    if family == "qwen3" and scaling is not None and scaling.kind != "linear":
        found.append(f"model.attention.rotary_scaling.kind={scaling.kind}: {name} has linear scaling only")
    if config.attention.bias and config.width != config.attention.heads * config.head_width:
        found.append(f"model.attention.bias=true: {name} has biases as wide as the model only")
    refuse(found, "a GGUF file")
    return expressible(config)


@dataclass(frozen=True)
class GgufWritten:
    """What became of a model: the architecture, and what its reader should know."""

    family: Family
    tokenizer: bool
    notes: tuple[str, ...]


def write_gguf(file: Path, model: Portable, kind: Kind, name: str) -> GgufWritten:
    """One file; `name` is what llama.cpp shows."""
    gguf = library()
    family = gguf_family(model.config)
    vocabulary = vocabulary_of(model.codec, model.config.vocabulary)
    writer = gguf.GGUFWriter(file, family)
    _describe(writer, model.config, name, gguf, kind)
    notes: list[str] = []
    if isinstance(vocabulary, str):
        writer.add_tokenizer_model("none")
        notes.append(f"no tokenizer is written, so llama.cpp takes and gives ids only: {vocabulary}")
    else:
        _write_vocabulary(writer, vocabulary)
        notes += vocabulary.notes
        notes += _write_further_ends(writer, model.further_ends)
    wider = 0
    for label, tensor in gguf_tensors(model, family):
        chosen = _type_of(gguf, label, tensor, kind)
        wider += tensor.ndim > 1 and chosen.name.lower() != kind
        values = gguf.quants.quantize(np.ascontiguousarray(tensor.numpy()), chosen)
        if chosen.name == "F16" and not np.isfinite(values).all():
            raise BadInput(f"{label} has values that F16 cannot hold; write bf16 or f32")
        writer.add_tensor(label, values, raw_dtype=chosen)
    if wider:
        notes.append(f"{wider} matrices have rows that {BLOCK} does not divide; they are F16 instead of Q8_0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufWritten(family, not isinstance(vocabulary, str), tuple(notes))


def _type_of(gguf: Any, label: str, tensor: Tensor, kind: Kind) -> Any:
    """Vectors stay as they are; a matrix whose rows are not whole blocks falls back to half precision."""
    types = gguf.GGMLQuantizationType
    if tensor.ndim < 2:
        return types.F32
    if kind == "q8_0" and tensor.shape[-1] % BLOCK:
        return types.F16
    return types[kind.upper()]


def _describe(writer: Any, config: ModelConfig, name: str, gguf: Any, kind: Kind) -> None:
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    attention = config.attention
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.feedforward_width)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm.eps)
    writer.add_rope_freq_base(attention.rotary_base)
    writer.add_rope_dimension_count(config.head_width)
    if attention.rotary_scaling is not None and attention.rotary_scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(attention.rotary_scaling.factor)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.begin is not None:
        writer.add_bos_token_id(vocabulary.begin)
    if vocabulary.end is not None:
        writer.add_eos_token_id(vocabulary.end)
    writer.add_add_bos_token(vocabulary.begin is not None)
    writer.add_add_eos_token(False)


def _write_further_ends(writer: Any, ends: Sequence[int]) -> tuple[str, ...]:
    """llama.cpp has a place for the end of a turn and one for the end of a message beside that of a text."""
    for write, end in zip((writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False):
        write(end)
    left = ", ".join(map(str, ends[2:]))
    return (
        (f"samples of this model end at the ids {left}, too, which a GGUF file has no place for",) if left else ()
    )


def gguf_tensors(model: Portable, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its GGUF name, its rows where llama.cpp looks for them."""
    config = model.config
    scaling = config.attention.rotary_scaling
    if scaling is not None and scaling.kind == "llama3":
        exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
        rates = 1.0 / config.attention.rotary_base**exponents
        yield "rope_freqs.weight", rates / slowed(rates, scaling)
    heads = {"attn_q": config.attention.heads, "attn_k": config.kv_heads}
    for theirs, tensor in give(model.weights, family, config):
        label, kind = gguf_name(theirs)
        turned = heads.get(label.rpartition(".")[2]) if family == "llama" else None
        yield f"{label}.{kind}", interleaved(tensor, turned) if turned else tensor


def gguf_name(theirs: str) -> tuple[str, str]:
    """`model.layers.3.mlp.up_proj.weight` is (`blk.3.ffn_up`, `weight`)."""
    stem, _, kind = theirs.rpartition(".")
    if stem in OUTER:
        return OUTER[stem], kind
    layer, _, inner = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{INNER[inner]}", kind


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows (i, i + D/2) of each head next to each other: [H * D, ...] -> [H * D, ...]."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def parted(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
