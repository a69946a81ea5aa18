"""Models from GGUF files: the architectures `llama` and `qwen3`, in all types of numbers that the library unpacks.

Weights that were packed into fewer bits come back as float32 of the same values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, cat

from linnet.errors import BadInput
from linnet.exchange.expressing import Portable
from linnet.exchange.families import Said, mistakes
from linnet.exchange.gguf_file import GgufFile
from linnet.exchange.gguf_vocabulary import CONTROL, LLAMA3, QWEN2, UNUSED, USER_DEFINED, as_bytes
from linnet.exchange.gguf_writing import gguf_name, parted
from linnet.exchange.hf import Brought
from linnet.exchange.layouts import layout, refuse_differences, shapes, wanted
from linnet.exchange.special_ids import SpecialIds
from linnet.exchange.tokens import Read, ended, ends_note, numbers
from linnet.model.config import ModelConfig
from linnet.tokenization import TokenizerCodec

ARCHITECTURES = ("llama", "qwen3")
NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


def read_gguf(path: Path) -> Brought:
    """The model of a GGUF file; everything that does not fit is named with its key or tensor."""
    file = GgufFile.open(path)
    family = file.fields.get("general.architecture")
    if family not in ARCHITECTURES:
        raise BadInput(f"{path}: general.architecture is {family!r}; linnet reads {', '.join(ARCHITECTURES)}")
    config = config_of(file, family)
    weights = take(file, family, config)
    read = vocabulary_of(file, config.vocabulary)
    return Brought(Portable(config, weights, read.codec, read.further_ends), family, read.notes)


def config_of(file: GgufFile, family: str) -> ModelConfig:
    said = Said(str(file.path), file.fields)
    heads, width = said.whole(f"{family}.attention.head_count"), said.whole(f"{family}.embedding_length")
    head_width = said.whole(f"{family}.attention.key_length", max(1, width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.whole(f"{family}.{key}", head_width) != head_width:
            said.problems.append(f"{family}.{key} is not the width of a head, {head_width}")
    said.only(f"{family}.expert_count", 0)
    said.only(f"{family}.rope.scaling.type", "none", "linear")
    if "rope_freqs.weight" in file.tensors:
        said.problems.append("rope_freqs.weight is a table of angles; import the Hugging Face folder instead")
    scaling = None
    if file.fields.get(f"{family}.rope.scaling.type") == "linear":
        scaling = {"kind": "linear", "factor": said.number(f"{family}.rope.scaling.factor")}
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        said.problems.append("token_embd.weight is missing")
    fields = {
        "vocabulary": embedding.shape[0] if embedding else 1,
        "context": said.whole(f"{family}.context_length"),
        "width": width,
        "depth": said.whole(f"{family}.block_count"),
        "attention": {
            "heads": heads,
            "kv_heads": said.whole(f"{family}.attention.head_count_kv", heads),
            "head_width": head_width,
            "qk_norm": family == "qwen3",
            "bias": "blk.0.attn_q.bias" in file.tensors,
            "rotary_base": said.number(f"{family}.rope.freq_base", 10_000.0),
            "rotary_scaling": scaling,
        },
        "feedforward": {
            "width": said.whole(f"{family}.feed_forward_length"),
            "bias": "blk.0.ffn_up.bias" in file.tensors,
        },
        "norm": {"eps": said.number(f"{family}.attention.layer_norm_rms_epsilon")},
        "head": {"tied": "output.weight" not in file.tensors},
    }
    if not said.problems:
        try:
            return ModelConfig.model_validate(fields)
        except ValidationError as error:
            said.problems += mistakes(error)
    raise BadInput(f"{file.path}: {'; '.join(said.problems)}")


def take(file: GgufFile, family: str, config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors; rows that llama.cpp wants interleaved go back to their places."""
    entries, ours = layout(family, config).entries, shapes(config)
    labels = {theirs: ".".join(gguf_name(theirs)) for entry in entries for theirs in entry.theirs}
    problems = []
    for entry in entries:
        for theirs, shape in zip(entry.theirs, wanted(entry, ours[entry.ours]), strict=True):
            label = labels[theirs]
            if label not in file.tensors:
                problems.append(f"{label} {list(shape)} is missing")
            elif file.tensors[label].shape != shape:
                problems.append(f"{label} is {list(file.tensors[label].shape)}, not {list(shape)}")
    strange = sorted(set(file.tensors) - set(labels.values()))
    refuse_differences(f"{file.path}: its header", problems, strange)
    heads = {"attn_q": config.attention.heads, "attn_k": config.kv_heads}
    taken = {}
    for entry in entries:
        parts = []
        for theirs in entry.theirs:
            tensor = file.read(labels[theirs])
            turned = heads.get(gguf_name(theirs)[0].rpartition(".")[2]) if family == "llama" else None
            parts.append(parted(tensor, turned) if turned else tensor)
        taken[entry.ours] = cat(parts).contiguous() if len(parts) > 1 else parts[0].contiguous()
    return taken


def vocabulary_of(file: GgufFile, size: int) -> Read:
    """The tokenizer of a GGUF file, built from its tokens and merges."""
    kind, pre = file.fields.get("tokenizer.ggml.model", "none"), file.fields.get("tokenizer.ggml.pre", "default")
    begins, ending = framing(file, size)
    if kind in ("none", "no_vocab"):
        return numbers(str(file.path), size, ending, begins)
    cuts = pre_tokenizer(pre)
    if kind != "gpt2" or cuts is None:
        said = f"tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={pre!r}"
        raise BadInput(f"{file.path}: {said} cannot be read; import the Hugging Face folder instead")
    tokens = list(file.fields.get("tokenizer.ggml.tokens", ()))
    kinds = [int(k) for k in file.fields.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    if len(tokens) != size or len(kinds) != size:
        raise BadInput(
            f"{file.path}: tokenizer.ggml.tokens has {len(tokens)} entries, and token_embd.weight {size} rows"
        )
    content = json.dumps(_bpe(file.fields, tokens, kinds, pre, cuts), ensure_ascii=False)
    ending = tuple(i for i in ending if kinds[i] != UNUSED)  # which stands for a model without an end
    begin = (
        tokens[begins[0]]
        if begins and file.fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")
        else None
    )
    bare = TokenizerCodec(content, None, None)
    end, further = ended(bare, None, ending)
    notes = (*ends_note(bare, None, ending, file.path.name), *silent_note(tokens))
    return Read(TokenizerCodec(content, begin, end), notes, further)


def framing(file: GgufFile, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that begin texts, and those that end them: of a text, a turn and a message."""
    special = SpecialIds(str(file.fields.get("general.architecture")), size)
    begins = special.of(file.fields, file.path, "tokenizer.ggml.bos_token_id")
    found = [special.of(file.fields, file.path, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    return begins, tuple(dict.fromkeys(i for ids in found for i in ids))


def silent_note(tokens: Sequence[str]) -> tuple[str, ...]:
    """Whether some bytes have no token of their own: characters that they spell may vanish."""
    written = [sign for byte, sign in enumerate(as_bytes()) if byte not in NEVER_IN_UTF8]
    lacking = len(set(written) - set(tokens))
    if not lacking:
        return ()
    return (
        f"{lacking} of {len(written)} bytes have no token here: characters that need them are left out of a text",
    )


def pre_tokenizer(pre: str) -> dict[str, Any] | None:
    """The rules for words that llama.cpp knows by this name."""

    def level(regex: bool) -> dict[str, Any]:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}

    def split(pattern: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    digits = {"type": "Digits", "individual_digits": True}
    match pre:
        case "gpt-2":
            return level(True)
        case "smollm":
            return {"type": "Sequence", "pretokenizers": [digits, level(True)]}
        case "qwen2":
            return {"type": "Sequence", "pretokenizers": [split(QWEN2), level(False)]}
        case "llama-bpe":
            return {"type": "Sequence", "pretokenizers": [split(LLAMA3), level(False)]}
    return None


def _bpe(
    fields: Mapping[str, Any], tokens: list[str], kinds: list[int], pre: str, cuts: dict[str, Any]
) -> dict[str, Any]:
    known = set(tokens)
    merges = [str(pair).split(" ", 1) for pair in fields.get("tokenizer.ggml.merges", ())]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": kinds[i] == CONTROL}
            for i, token in enumerate(tokens)
            if kinds[i] in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": cuts,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [
                pair for pair in merges if len(pair) == 2 and "".join(pair) in known and known.issuperset(pair)
            ],
        },
    }
