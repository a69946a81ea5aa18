"""The vocabulary of a GGUF file, both ways.

llama.cpp knows byte-level BPE with a handful of rules for words by name. A tokenizer is written only when its
rules are exactly one of those; with any other, texts would silently become other ids there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linnet.codecs import CharacterCodec, Codec
from linnet.errors import BadInput
from linnet.exchange.gguf_file import GgufFile
from linnet.exchange.tokens import SpecialIds, end_tokens, ends_note, ids_codec, written_tokenizer
from linnet.tokenization import TokenizerCodec, tokenizers_library
from linnet.untrusted import Fields, refusing, shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # kinds of tokens, as llama.cpp numbers them
ADDED = (CONTROL, USER_DEFINED)
NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"
PATTERNS = {"qwen2": QWEN2, "llama-bpe": LLAMA3}
PRE_TOKENIZERS = ("gpt-2", "smollm", *PATTERNS)  # llama.cpp's names of rules by which words are cut
SKIP_MERGES = ("llama-bpe",)  # whole words of the vocabulary are not made by merges


def rules_of(pre: str) -> Any:
    """The pre-tokenizer for which llama.cpp has this name."""
    library = tokenizers_library()
    rules, level = library.pre_tokenizers, library.pre_tokenizers.ByteLevel
    match pre:
        case "gpt-2":
            return level(add_prefix_space=False)
        case "smollm":
            return rules.Sequence([rules.Digits(individual_digits=True), level(add_prefix_space=False)])
    split = rules.Split(library.Regex(PATTERNS[pre]), "isolated")
    return rules.Sequence([split, level(add_prefix_space=False, use_regex=False)])


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """What decides where a pre-tokenizer cuts."""
    bare = tokenizers_library().Tokenizer(tokenizers_library().models.BPE())
    bare.pre_tokenizer = pre_tokenizer
    stored = json.loads(bare.to_str())["pre_tokenizer"]
    steps = stored.get("pretokenizers", [stored])
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def pre_of(codec: TokenizerCodec) -> str | None:
    """llama.cpp's name for the rules by which a tokenizer cuts words; None if it has none."""
    given, ignores = codec.tokenizer.pre_tokenizer, bool(codec.stored["model"].get("ignore_merges"))
    known = (pre for pre in PRE_TOKENIZERS if ignores == (pre in SKIP_MERGES))
    return next((pre for pre in known if given is not None and _steps(rules_of(pre)) == _steps(given)), None)


@functools.cache
def byte_signs() -> tuple[str, ...]:
    """The visible signs that byte-level BPE writes for all 256 bytes."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(chr(256 + hidden.index(byte)) if byte in hidden else chr(byte) for byte in range(256))


# --- writing ---------------------------------------------------------------------------------------


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
        return written_tokenizer(codec).why_not or "llama.cpp has no tokenizer that leaves out spaces"
    stored = codec.stored
    model, normalizer, notes = stored["model"], stored.get("normalizer"), []
    special = codec.tokenizer.get_added_tokens_decoder()
    if model.get("type") != "BPE":
        return f"llama.cpp has no byte-level tokenizer of the kind {model.get('type')}"
    if not model["merges"] and stored.get("pre_tokenizer") is None and normalizer is None:
        letters = "".join(name for i, name in enumerate(codec.tokens) if i not in special)
        return _characters(codec.tokens, letters, codec.begin, codec.end)
    pre = pre_of(codec)
    if pre is None:
        return "no rule of llama.cpp cuts words as this tokenizer does"
    if normalizer is not None:
        if normalizer != {"type": "NFC"}:
            return f"llama.cpp does not change texts before it cuts them ({normalizer.get('type')})"
        notes.append("llama.cpp does not compose accents (NFC), which this tokenizer does before it cuts")
    added = {i: CONTROL if token.special else USER_DEFINED for i, token in special.items()}
    names = [*codec.tokens[:size], *(f"<unused {i}>" for i in range(len(codec.tokens), size))]
    kinds = tuple(added.get(i, UNUSED if name == f"<unused {i}>" else NORMAL) for i, name in enumerate(names))
    end = codec.end
    if end is None:  # llama.cpp takes token 11 for the end unless another is named
        end = kinds.index(UNUSED) if UNUSED in kinds else None
        no_end = "this model has no end token, and llama.cpp then stops at token 11: run it with --ignore-eos"
        notes += [] if UNUSED in kinds else [no_end]
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    return Vocabulary(pre, tuple(names), kinds, merges, codec.begin, end, tuple(notes))


def _characters(tokens: Sequence[str], letters: str, begin: int | None, end: int | None) -> Vocabulary | str:
    """One token a character: byte-level BPE that merges nothing, so each character has to be one byte."""
    if not letters.isascii() or len(letters) + 3 < len(tokens):
        return "llama.cpp has no tokenizer of single characters beyond ASCII"
    names = tuple(byte_signs()[ord(token)] if len(token) == 1 else token for token in tokens)
    kinds = tuple(NORMAL if len(token) == 1 else CONTROL for token in tokens)
    note = "llama.cpp leaves characters out that this model has no token for"
    return Vocabulary("gpt-2", names, kinds, (f"{byte_signs()[0]} {byte_signs()[0]}",), begin, end, (note,))


# --- reading ---------------------------------------------------------------------------------------


def read_vocabulary(file: GgufFile, size: int) -> tuple[TokenizerCodec, tuple[str, ...], tuple[int, ...]]:
    """The tokenizer of a GGUF file, built from its tokens and merges; notes, and further ids that end a text."""
    fields = Fields(str(file.path), file.keys)
    kind = fields.text("tokenizer.ggml.model", "none")
    pre = fields.text("tokenizer.ggml.pre", "default")
    begins, ends = _framing(file, size)
    if kind in ("none", "no_vocab"):
        fields.refuse()
        return ids_codec(str(file.path), size, ends, begins)
    tokens = fields.texts("tokenizer.ggml.tokens", [])
    kinds = fields.integers("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    merges = fields.texts("tokenizer.ggml.merges", [])
    begin_is_added = fields.flag("tokenizer.ggml.add_bos_token", pre == "llama-bpe")
    fields.refuse()
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        names = f"tokenizer.ggml.model={shown(kind)} with tokenizer.ggml.pre={shown(pre)}"
        raise BadInput(f"{file.path}: {names} cannot be read; import the Hugging Face folder instead")
    if len(tokens) != size or len(kinds) != size:
        counts = f"tokenizer.ggml.tokens has {len(tokens)} entries, tokenizer.ggml.token_type {len(kinds)}"
        raise BadInput(f"{file.path}: {counts}, and token_embd.weight {size} rows")
    with refusing(f"{file.path}: the tokens and merges make no tokenizer"):
        content = _bpe(tokens, kinds, merges, pre)
    ends = tuple(i for i in ends if kinds[i] != UNUSED)  # which stands for a model without an end
    begin = tokens[begins[0]] if begins and begin_is_added else None
    bare = TokenizerCodec(content, None, None)
    end, further = end_tokens(bare, None, ends)
    notes = (*ends_note(bare, None, ends, file.path.name), *_missing_bytes(tokens))
    return TokenizerCodec(content, begin, end), notes, further


def _framing(file: GgufFile, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that begin texts, and those that end them: of a text, a turn and a message."""
    special = SpecialIds(str(file.keys.get("general.architecture")), size)
    begins = special.of(file.keys, file.path, "tokenizer.ggml.bos_token_id")
    found = [special.of(file.keys, file.path, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    return begins, tuple(dict.fromkeys(i for ids in found for i in ids))


def _missing_bytes(tokens: Sequence[str]) -> tuple[str, ...]:
    """Whether some bytes have no token of their own: characters that they spell may vanish."""
    signs = [sign for byte, sign in enumerate(byte_signs()) if byte not in NEVER_IN_UTF8]
    lacking = len(set(signs) - set(tokens))
    note = f"{lacking} of {len(signs)} bytes have no token here: characters that need them are left out of a text"
    return (note,) if lacking else ()


def _bpe(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> str:
    """The text of a tokenizer.json."""
    library, known = tokenizers_library(), set(tokens)
    pairs = [tuple(pair.split(" ", 1)) for pair in merges]
    pairs = [pair for pair in pairs if len(pair) == 2 and "".join(pair) in known and known.issuperset(pair)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = library.Tokenizer(library.models.BPE(vocabulary, pairs, ignore_merges=pre in SKIP_MERGES))
    tokenizer.pre_tokenizer = rules_of(pre)
    tokenizer.decoder = library.decoders.ByteLevel()
    added = [(token, kind == CONTROL) for token, kind in zip(tokens, kinds, strict=True) if kind in ADDED]
    for special, add in ((True, tokenizer.add_special_tokens), (False, tokenizer.add_tokens)):
        add([library.AddedToken(token, special=special, normalized=False) for token, s in added if s == special])
    return str(tokenizer.to_str())
