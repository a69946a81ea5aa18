"""Models in GGUF files, both ways: the architectures `llama`, `qwen2` and `qwen3` of llama.cpp.

Files are written with the `gguf` library, in F32, F16, BF16 and Q8_0 (norms and biases stay F32, as llama.cpp
wants them), and read in all types of numbers that it unpacks: packed values come back as float32.
The architecture `llama` interleaves the two halves of each head that turn together; the others keep them.
Legend: H = heads, D = head width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.exchange.families import LLAMA, QWEN2, QWEN3, Family, Imported, Portable
from linnet.exchange.gguf_file import GgufFile, gguf_library
from linnet.exchange.gguf_vocabulary import Vocabulary, read_vocabulary, vocabulary_of
from linnet.exchange.settings import Key, differences, read_keys, refuse, settled, validated, written_keys
from linnet.exchange.tensors import Form, Names, misfits, read_tensors, refuse_misfits, written_tensors
from linnet.model.config import ModelConfig
from linnet.model.layers import slowed
from linnet.untrusted import Fields, shown

Kind = Literal["f32", "f16", "bf16", "q8_0"]
BLOCK = 32  # values that share a scale in Q8_0
ARCHITECTURES = {family.name: family for family in (LLAMA, QWEN2, QWEN3)}
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
KEYS = (
    Key("context_length", "context"),
    Key("embedding_length", "width"),
    Key("block_count", "depth"),
    Key("feed_forward_length", "feedforward.width"),
    Key("attention.head_count", "attention.heads"),
    Key("attention.head_count_kv", "attention.kv_heads", default=None),
    Key("attention.key_length", "attention.head_width", default=None),
    Key("attention.layer_norm_rms_epsilon", "norm.eps", "number"),
    Key("rope.freq_base", "attention.rotary_base", "number", 10_000.0),
)
AS_WIDE_AS_A_HEAD = ("attention.value_length", "rope.dimension_count")
GGUF_NAMES = Names(
    "",
    "blk.",
    {
        "embedding": "token_embd",
        "final_norm": "output_norm",
        "head": "output",
        "ln1": "attn_norm",
        "ln2": "ffn_norm",
        "mixer.qkv": "attn_q attn_k attn_v",
        "mixer.out": "attn_output",
        "mixer.q_norm": "attn_q_norm",
        "mixer.k_norm": "attn_k_norm",
        "feedforward.up": "ffn_gate ffn_up",
        "feedforward.down": "ffn_down",
    },
)


def interleaved(heads: int) -> Form:
    """Stored with rows (i, i + D/2) of a head next to each other, [H, D/2, 2, ...]; ours are [H, 2, D/2, ...]."""
    return Form(
        lambda tensor: tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2),
        lambda tensor: tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2),
    )


def names_of(family: Family) -> Names:
    def turned(config: ModelConfig) -> dict[str, Form]:
        return {"attn_q": interleaved(config.attention.heads), "attn_k": interleaved(config.kv_heads)}

    return replace(GGUF_NAMES, forms=turned) if family is LLAMA else GGUF_NAMES


# --- settings --------------------------------------------------------------------------------------


def settings_of(fields: Fields, family: Family, tensors: Collection[str]) -> dict[str, Any]:
    """Settings by their dotted names, from the keys of a file and from which tensors it has."""
    prefix = f"{family.name}."
    settings = {**family.settings, **read_keys(fields, KEYS, prefix)}
    width = settings.get("attention.head_width") or settings["width"] // settings["attention.heads"]
    for key in AS_WIDE_AS_A_HEAD:
        if fields.integer(prefix + key, max(1, width)) != width:
            fields.problems.append(f"{prefix}{key} is not the width of a head, {width}")
    fields.only(f"{prefix}expert_count", 0)
    fields.only(f"{prefix}rope.scaling.type", "none", "linear")
    if fields.values.get(f"{prefix}rope.scaling.type") == "linear":
        factor = fields.number(f"{prefix}rope.scaling.factor")
        settings["attention.rotary_scaling"] = {"kind": "linear", "factor": factor}
    if family is LLAMA:
        out = "blk.0.attn_output.bias" in tensors
        settings["attention.bias"] = out or ("qkv" if "blk.0.attn_q.bias" in tensors else False)
        settings["feedforward.bias"] = "blk.0.ffn_up.bias" in tensors
    settings["head.tied"] = "output.weight" not in tensors
    return settings


def written_settings(config: ModelConfig) -> dict[str, Any]:
    """The keys of a file without their prefix."""
    found = written_keys(config, KEYS) | dict.fromkeys(AS_WIDE_AS_A_HEAD, config.head_width)
    scaling = config.attention.rotary_scaling
    if scaling is not None and scaling.kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    return found


def gguf_family(config: ModelConfig) -> Family:
    """The architecture that llama.cpp loads this model as; refuses with all that stands in the way."""
    attention, scaling = config.attention, config.attention.rotary_scaling
    family = QWEN3 if attention.qk_norm else QWEN2 if attention.bias == "qkv" else LLAMA
    title = f"{family.title} of llama.cpp"
    keys = {f"{family.name}.{key}": value for key, value in written_settings(config).items()}
    names = [name for entry in names_of(family).entries(config) for name in entry.theirs]
    back = settings_of(Fields("", keys), family, names) | {"vocabulary": config.vocabulary}
    if family is LLAMA and scaling is not None and scaling.kind == "llama3":
        back["attention.rotary_scaling"] = settled(config)["attention.rotary_scaling"]  # written as a table
    reasons = [*differences(config, back, title), *family.obstacles(config)]
    found = list({reason.partition("=")[0]: reason for reason in reasons}.values())
    if attention.bias and config.width != attention.heads * config.head_width:
        found.append(f"model.attention.bias={attention.bias}: {title} has biases as wide as the model only")
    refuse(found, "a GGUF file")
    return family


# --- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """Whether a tokenizer went along, and what the reader of the file should know."""

    tokenizer: bool
    notes: tuple[str, ...]


def write_gguf(file: Path, model: Portable, kind: Kind, name: str) -> Written:
    """One file; `name` is what llama.cpp shows."""
    gguf = gguf_library()
    family = gguf_family(model.config)
    vocabulary = vocabulary_of(model.codec, model.config.vocabulary)
    writer = gguf.GGUFWriter(file, family.name)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(model.config.vocabulary)
    for key, value in written_settings(model.config).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{family.name}.{key}", value)
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
        chosen = _type_of(gguf, tensor, kind)
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
    return Written(not isinstance(vocabulary, str), tuple(notes))


def _type_of(gguf: Any, tensor: Tensor, kind: Kind) -> Any:
    """Vectors stay as they are; a matrix whose rows are not whole blocks falls back to half precision."""
    types = gguf.GGMLQuantizationType
    if tensor.ndim < 2:
        return types.F32
    if kind == "q8_0" and tensor.shape[-1] % BLOCK:
        return types.F16
    return types[kind.upper()]


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
    """llama.cpp has a key for the end of a turn and one for the end of a message beside that of a text."""
    for write, end in zip((writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False):
        write(end)
    left = ", ".join(map(str, ends[2:]))
    return (f"samples of this model end at the ids {left}, too, which a GGUF file has no key for",) if left else ()


def gguf_tensors(model: Portable, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its GGUF name, and a table of angles where they are slowed down by parts."""
    config = model.config
    scaling = config.attention.rotary_scaling
    if scaling is not None and scaling.kind == "llama3":
        exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
        rates = 1.0 / config.attention.rotary_base**exponents
        yield "rope_freqs.weight", rates / slowed(rates, scaling)
    yield from written_tensors(model.weights, names_of(family).entries(config))


# --- reading ---------------------------------------------------------------------------------------


def read_gguf(path: Path) -> Imported:
    """The model of a GGUF file; everything that does not fit is named with its key or tensor."""
    file = GgufFile.open(path)
    name = file.keys.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BadInput(f"{path}: general.architecture is {shown(name)}; linnet reads {known}")
    config = read_settings(file, ARCHITECTURES[name])
    entries = names_of(ARCHITECTURES[name]).entries(config)
    misfit = misfits(entries, {name: stored.shape for name, stored in file.tensors.items()})
    refuse_misfits(f"{file.path}: its header", *misfit)
    weights = read_tensors(entries, file.read)
    codec, notes, further_ends = read_vocabulary(file, config.vocabulary)
    return Imported(Portable(config, weights, codec, further_ends), name, notes)


def read_settings(file: GgufFile, family: Family) -> ModelConfig:
    fields = Fields(str(file.path), file.keys)
    settings = settings_of(fields, family, file.tensors)
    if "rope_freqs.weight" in file.tensors:
        fields.problems.append("rope_freqs.weight is a table of angles; import the Hugging Face folder instead")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        fields.problems.append("token_embd.weight is missing")
    return validated(fields, settings | {"vocabulary": embedding.shape[0] if embedding else 1})
