"""Hugging Face folders: written so that transformers loads them without code of ours, and read the same way.

A folder has config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
Reading it takes no transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save

from linnet.errors import BadInput
from linnet.exchange.families import Family, Imported, Portable, family_for, read_config
from linnet.exchange.tensors import ONE_FILE, StoredTensors, written_tensors
from linnet.exchange.tokens import read_tokenizer, written_tokenizer
from linnet.files import Layout, write_atomically
from linnet.untrusted import read_object

Dtype = Literal["f32", "f16", "bf16"]
DTYPES: dict[Dtype, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
EXPORTED = Layout(
    "an exported model",
    "config.json",
    ("config.json", "generation_config.json", ONE_FILE, "tokenizer.json", "tokenizer_config.json"),
)


def write_folder(folder: Path, model: Portable, dtype: Dtype = "f32") -> tuple[str, tuple[str, ...]]:
    """Write the files into an empty folder; the family that it became, and notes for its reader."""
    family = family_for(model.config)
    stored = written_tensors(model.weights, family.names.entries(model.config))
    tensors = {name: part.to(DTYPES[dtype], copy=True) for name, part in stored}
    if too_large := [name for name, part in tensors.items() if not part.isfinite().all()]:
        raise BadInput(f"{too_large[0]} has values that {dtype} cannot hold; write bf16 or f32")
    tokenizer = written_tokenizer(model.codec)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: part.contiguous() for name, part in tensors.items()}, {"format": "pt"})
    write_atomically(folder / ONE_FILE, content)
    _write_json(folder / "config.json", config_json(model, family, dtype))
    framing = {"bos_token_id": model.codec.begin, "eos_token_id": _ends(model)}
    _write_json(folder / "generation_config.json", {name: i for name, i in framing.items() if i is not None})
    if tokenizer.content is None:
        return family.name, (f"no tokenizer is written: {tokenizer.why_not}",)
    write_atomically(folder / "tokenizer.json", tokenizer.content.encode())
    _write_json(folder / "tokenizer_config.json", tokenizer.settings(model.config.context))
    return family.name, ()


def config_json(model: Portable, family: Family, dtype: Dtype) -> dict[str, Any]:
    numbers = str(DTYPES[dtype]).removeprefix("torch.")
    return {
        "architectures": [family.architecture],
        **family.write(model.config),
        "attention_dropout": 0.0,
        "bos_token_id": model.codec.begin,
        "eos_token_id": _ends(model),
        "pad_token_id": None,
        "use_cache": True,
        "dtype": numbers,
        "torch_dtype": numbers,
    }


def _ends(model: Portable) -> int | list[int] | None:
    """One id that ends a text, or all of several."""
    ends = [i for i in (model.codec.end, *model.further_ends) if i is not None]
    return ends if model.further_ends else model.codec.end


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_atomically(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_folder(folder: Path) -> Imported:
    """A model of a family that linnet knows; everything that does not fit is named with its file and field."""
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}" if not folder.exists() else f"{folder} is not a folder")
    tree = read_object(folder / "config.json")
    family, config = read_config(tree, folder / "config.json")
    weights = StoredTensors.open(folder, family.names).read_all(family.names, config)
    codec, notes, further_ends = read_tokenizer(folder, tree, config.vocabulary)
    return Imported(Portable(config, weights, codec, further_ends), family.name, notes)
