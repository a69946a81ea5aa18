"""The vocabulary of a GGUF file: what llama.cpp needs to cut a text as we do, where it can.

llama.cpp knows byte-level BPE with a handful of rules for words by name. A tokenizer is written only when its
rules are exactly one of those; with any other, texts would silently become other ids there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linnet.codecs import CharacterCodec, Codec
from linnet.exchange.tokens import written
from linnet.tokenization import TokenizerCodec

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # kinds of tokens, as llama.cpp numbers them

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids with their kinds; `pre` names the rules for words."""

    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    begin: int | None
    end: int | None
    notes: tuple[str, ...] = ()


def vocabulary_of(codec: Codec, size: int) -> Vocabulary | str:
    """The vocabulary of a model with `size` embeddings, or why llama.cpp would cut texts differently."""
    if isinstance(codec, CharacterCodec):
        return _characters(codec.tokens, codec.characters, codec.begin, codec.end)
    if not isinstance(codec, TokenizerCodec):
        return written(codec).why_not or "llama.cpp has no tokenizer that leaves out spaces"
    stored = codec.stored
    model, pre = stored["model"], pre_of(stored)
    notes: tuple[str, ...] = ()
    if model["type"] != "BPE":
        return f"llama.cpp has no byte-level tokenizer of the kind {model['type']}"
    if not model["merges"] and stored["pre_tokenizer"] is None and stored["normalizer"] is None:
        special = codec.tokenizer.get_added_tokens_decoder()
        letters = "".join(name for i, name in enumerate(codec.tokens) if i not in special)
        return _characters(codec.tokens, letters, codec.begin, codec.end)
    if pre is None:
        return "no rule of llama.cpp cuts words as this tokenizer does"
    if stored.get("normalizer") is not None:
        if stored["normalizer"] != {"type": "NFC"}:
            return f"llama.cpp does not change texts before it cuts them ({stored['normalizer'].get('type')})"
        notes = ("llama.cpp does not compose accents (NFC), which this tokenizer does before it cuts",)
    added = {i: token.special for i, token in codec.tokenizer.get_added_tokens_decoder().items()}
    names = [*codec.tokens[:size], *(f"<unused {i}>" for i in range(len(codec.tokens), size))]
    kinds = tuple(
        (CONTROL if added[i] else USER_DEFINED) if i in added else UNUSED if name == f"<unused {i}>" else NORMAL
        for i, name in enumerate(names)
    )
    end, said = _ending(codec, kinds)
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    return Vocabulary(pre, tuple(names), kinds, merges, codec.begin, end, (*notes, *said))


def _characters(tokens: Sequence[str], letters: str, begin: int | None, end: int | None) -> Vocabulary | str:
    """One token a character: byte-level BPE that merges nothing, so each character has to be one byte."""
    if not letters.isascii() or len(letters) + 3 < len(tokens):
        return "llama.cpp has no tokenizer of single characters beyond ASCII"
    names = tuple(_as_byte(token) if len(token) == 1 else token for token in tokens)
    kinds = tuple(NORMAL if len(token) == 1 else CONTROL for token in tokens)
    note = "llama.cpp leaves characters out that this model has no token for"
    return Vocabulary("gpt-2", names, kinds, (f"{_as_byte(chr(0))} {_as_byte(chr(0))}",), begin, end, (note,))


def _as_byte(character: str) -> str:
    """The visible sign that byte-level BPE writes for an ASCII character."""
    return as_bytes()[ord(character)]


@functools.cache
def as_bytes() -> tuple[str, ...]:
    """The visible signs that byte-level BPE writes for all 256 bytes."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return tuple(chr(256 + hidden.index(byte)) if byte in hidden else chr(byte) for byte in range(256))


def _ending(codec: TokenizerCodec, kinds: tuple[int, ...]) -> tuple[int | None, tuple[str, ...]]:
    """llama.cpp takes token 11 for the end unless another is named, so a model without one names a free id."""
    if codec.end is not None:
        return codec.end, ()
    if UNUSED in kinds:
        return kinds.index(UNUSED), ()
    return None, ("this model has no end token, and llama.cpp then stops at token 11: run it with --ignore-eos",)


def pre_of(stored: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the rules by which a tokenizer.json cuts words; None if it has none."""
    steps = _steps(stored.get("pre_tokenizer"))
    ignores = bool(stored["model"].get("ignore_merges"))
    match steps:
        case [("ByteLevel", True)] if not ignores:
            return "gpt-2"
        case [("Digits", True), ("ByteLevel", True)] if not ignores:
            return "smollm"
        case [("Split", pattern), ("ByteLevel", False)] if pattern == QWEN2 and not ignores:
            return "qwen2"
        case [("Split", pattern), ("ByteLevel", False)] if pattern == LLAMA3 and ignores:
            return "llama-bpe"
    return None


def _steps(given: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    """The steps of a pre-tokenizer, each with the one setting that matters; a strange one gets None."""
    if given is None:
        return []
    if given["type"] == "Sequence":
        return [step for part in given["pretokenizers"] for step in _steps(part)]
    match given:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [("ByteLevel", given.get("use_regex", True))]
        case {"type": "Digits", "individual_digits": True}:
            return [("Digits", True)]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [("Split", pattern)]
    return [(given["type"], None)]
