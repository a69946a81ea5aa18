"""Hugging Face folders: written so that transformers loads them without code of ours, and read the same way.

A folder has config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
Reading it takes no transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save

from linnet.errors import BadInput
from linnet.exchange.expressing import Family, Portable, differing, family_of, obstacles, refuse, settled
from linnet.exchange.families import config_of
from linnet.exchange.layouts import give, take
from linnet.exchange.tensors import ONE_FILE, StoredTensors
from linnet.exchange.tokens import read_tokenizer, written
from linnet.files import Layout, write_atomically
from linnet.model.config import ModelConfig
from linnet.untrusted import read_object

Dtype = Literal["f32", "f16", "bf16"]
DTYPES: dict[Dtype, tuple[torch.dtype, str]] = {
    "f32": (torch.float32, "float32"),
    "f16": (torch.float16, "float16"),
    "bf16": (torch.bfloat16, "bfloat16"),
}
EXPORTED = Layout(
    "an exported model",
    "config.json",
    ("config.json", "generation_config.json", ONE_FILE, "tokenizer.json", "tokenizer_config.json"),
)
ARCHITECTURES: dict[Family, str] = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True)
class Brought:
    """A model that was read, the family of its folder, and what its reader should know."""

    model: Portable
    family: str
    notes: tuple[str, ...] = ()


def write_folder(folder: Path, model: Portable, dtype: Dtype = "f32") -> tuple[Family, tuple[str, ...]]:
    """Write the files into an empty folder; the family that it became, and notes for its reader."""
    family = expressible(model.config)
    number, _ = DTYPES[dtype]
    tensors = {name: part.to(number, copy=True) for name, part in give(model.weights, family, model.config)}
    if too_large := [name for name, part in tensors.items() if not part.isfinite().all()]:
        raise BadInput(f"{too_large[0]} has values that {dtype} cannot hold; write bf16 or f32")
    tokenizer = written(model.codec)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: part.contiguous() for name, part in tensors.items()}, {"format": "pt"})
    write_atomically(folder / ONE_FILE, content)
    _write_json(folder / "config.json", config_json(model, family, dtype))
    framing = {"bos_token_id": model.codec.begin, "eos_token_id": _ends(model)}
    _write_json(folder / "generation_config.json", {name: i for name, i in framing.items() if i is not None})
    if tokenizer.content is None:
        return family, (f"no tokenizer is written: {tokenizer.why_not}",)
    write_atomically(folder / "tokenizer.json", tokenizer.content.encode())
    _write_json(folder / "tokenizer_config.json", tokenizer.settings(model.config.context))
    return family, ()


def expressible(config: ModelConfig) -> Family:
    """The family in which this model can be written; refuses with all that stands in the way."""
    family = family_of(config)
    what = f"a Hugging Face folder of the family {ARCHITECTURES[family]}"
    refuse(obstacles(config, family), what)
    # Settings that came later than this module are found by reading back what would be written.
    _, back = config_of(shape_json(config, family), "config.json")
    refuse(differing(settled(config), settled(back)), what)
    return family


def config_json(model: Portable, family: Family, dtype: Dtype) -> dict[str, Any]:
    numbers = DTYPES[dtype][1]
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **shape_json(model.config, family),
        "bos_token_id": model.codec.begin,
        "eos_token_id": _ends(model),
        "pad_token_id": None,
        "use_cache": True,
        "dtype": numbers,
        "torch_dtype": numbers,
    }


def _ends(model: Portable) -> int | list[int] | None:
    """One id that ends a text, or all of several."""
    if not model.further_ends:
        return model.codec.end
    return [*(() if model.codec.end is None else (model.codec.end,)), *model.further_ends]


def shape_json(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The keys that decide what is computed. Old readers look for the base beside the parameters of rotation."""
    attention = config.attention
    acts = {"swiglu": "silu", "geglu": "gelu"}
    said: dict[str, Any] = {
        "model_type": family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feedforward_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": acts.get(config.feedforward.kind, config.feedforward.kind),
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        "attention_bias": attention.bias,
        "attention_dropout": 0.0,
        "rope_theta": attention.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary_base} | _scaling(config),
    }
    if scaling := _scaling(config):
        said["rope_scaling"] = scaling
    return said | ({"mlp_bias": config.feedforward.bias} if family == "llama" else {"use_sliding_window": False})


def _scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.attention.rotary_scaling
    if scaling is None:
        return {}
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.context,
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_atomically(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_folder(folder: Path) -> Brought:
    """A model of a family that linnet knows; everything that does not fit is named with its file and field."""
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}" if not folder.exists() else f"{folder} is not a folder")
    said = read_object(folder / "config.json")
    family, config = config_of(said, folder / "config.json")
    stored = StoredTensors.open(folder)
    weights = take(stored, family, config)
    read = read_tokenizer(folder, said, config.vocabulary)
    return Brought(Portable(config, weights, read.codec, read.further_ends), family, read.notes)
