"""Tokenizers in other people's folders: read from them, and written so that they give the same ids there.

What is written adds the begin token exactly where linnet does, and takes special tokens in a text as text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnet.codecs import CharacterCodec, Codec
from linnet.errors import BadInput
from linnet.tokenization import TokenizerCodec, tokenizers_library
from linnet.untrusted import read_object, read_text, refusing, shown

# What transformers writes into a config where nobody chose; such an id may lie beyond a small vocabulary.
UNCHOSEN: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"bos_token_id": 50256, "eos_token_id": 50256},
    "gpt_neox": {"bos_token_id": 0, "eos_token_id": 2},
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"bos_token_id": 1, "eos_token_id": 2},
    "gemma": {"bos_token_id": 2, "eos_token_id": 1},
}
NO_SUCH_ID = "<no such id>"
ReadTokenizer = tuple[TokenizerCodec, tuple[str, ...], tuple[int, ...]]  # notes, and further ids that end a text


# --- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrittenTokenizer:
    """The text of a tokenizer.json with the names of its begin and end tokens, or why there is none."""

    content: str | None
    begin: str | None = None
    end: str | None = None
    why_not: str = ""

    def settings(self, context: int) -> dict[str, Any]:
        """The tokenizer_config.json beside it."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.begin,
            "eos_token": self.end,
            "model_max_length": context,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        }


def written_tokenizer(codec: Codec) -> WrittenTokenizer:
    """The tokenizer that gives the ids of this codec, where one can."""
    match codec:
        case TokenizerCodec():
            return WrittenTokenizer(_with_begin(codec), codec.begin_name, codec.end_name)
        case CharacterCodec():
            return _characters(codec.tokens, "<begin>" if codec.has_begin else None, spaces=True)
    if codec.rewriting:
        rules = ", ".join(codec.rewriting)
        return WrittenTokenizer(None, why_not=f"the codec of this run {rules}, which no tokenizer.json can say")
    return _characters(tuple(codec.tokens), "<begin>", spaces=False)


def _with_begin(codec: TokenizerCodec) -> str:
    """The tokenizer.json of a codec, set to add its begin token and nothing else."""
    if added_ids(codec) == (() if codec.begin is None else (codec.begin,), ()):
        return codec.content
    stored = codec.stored
    stored["post_processor"] = None if codec.begin_name is None else _template(codec.begin_name, codec.begin)
    return json.dumps(stored, ensure_ascii=False)


def added_ids(codec: TokenizerCodec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer by itself puts before and after a text."""
    probe = _encodable(codec)
    bare = codec.encode(probe).ids.tolist()
    with refusing("the post-processor of this tokenizer fails"):
        whole = codec.tokenizer.encode(probe).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


def _encodable(codec: TokenizerCodec) -> str:
    """A short text that this tokenizer has tokens for."""
    special = codec.tokenizer.get_added_tokens_decoder()
    learned = (i for i in range(len(codec.tokens)) if i not in special)
    for i in itertools.chain([None], learned):
        with contextlib.suppress(BadInput):
            text = "a" if i is None else codec.decode([i])
            if len(codec.encode(text)):
                return text
    return ""


def _template(name: str, token: int | None) -> dict[str, Any]:
    added = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [added, first],
        "pair": [added, first, added, second],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _characters(tokens: tuple[str, ...], begin: str | None, *, spaces: bool) -> WrittenTokenizer:
    """One token a character. A character without a token is an error there too: nothing stands for it."""
    library = tokenizers_library()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="<no such character>"))
    if not spaces:
        tokenizer.normalizer = library.normalizers.Replace(" ", "")
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = library.decoders.Fuse()
    tokenizer.add_special_tokens([name for name in (begin, "<end>") if name is not None])
    stored = json.loads(tokenizer.to_str())
    if begin is not None:
        stored["post_processor"] = _template(begin, vocabulary[begin])
    return WrittenTokenizer(json.dumps(stored, ensure_ascii=False), begin, "<end>")


# --- reading ---------------------------------------------------------------------------------------


@dataclass
class SpecialIds:
    """The begin and end ids that the files of a model name, each checked against its vocabulary.

    `notes` says which were left out and why.
    """

    family: str
    vocabulary: int
    unchosen: dict[str, str] = field(default_factory=dict)  # a note for each key, whichever file had it first

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.unchosen.values())

    def of(self, tree: Mapping[str, Any], file: object, key: str) -> tuple[int, ...]:
        """The ids under this key of a file: one, a list, or none; -1 says that there is none."""
        value = tree.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in values):
            raise BadInput(f"{file}: {key} is {shown(value)}, neither a token id nor a list of them")
        return tuple(dict.fromkeys(i for i in values if self._exists(i, file, key)))

    def _exists(self, i: int, file: object, key: str) -> bool:
        if i == -1:
            return False
        if 0 <= i < self.vocabulary:
            return True
        wrong = f"{file}: {key} names {shown(i)}, and the ids of this model are 0..{self.vocabulary - 1}"
        if UNCHOSEN.get(self.family, {}).get(key) != i:
            raise BadInput(wrong)
        self.unchosen.setdefault(key, f"{wrong}; transformers writes that where nobody chose, so it is left out")
        return False


def read_tokenizer(folder: Path, config: Mapping[str, Any], vocabulary: int) -> ReadTokenizer:
    """The tokenizer of a model folder.

    The begin token is the one that its own library puts before a text, if it does. Texts end where `generate` of
    transformers ends them: at the ids in generation_config.json, else in config.json, and only where neither names
    one at the end token of tokenizer_config.json.
    """
    settings = _optional(folder / "tokenizer_config.json")
    special = SpecialIds(str(config.get("model_type")), vocabulary)
    begins, ends, source = _framing(folder, config, special)
    file = folder / "tokenizer.json"
    if file.is_file():
        content = read_text(file)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        file = folder / "vocab.json"
        content = _byte_pairs(folder, config)
    elif others := [name for name in ("tokenizer.model", "vocab.json") if (folder / name).is_file()]:
        raise BadInput(
            f"{folder} has {others[0]} and no tokenizer.json; let transformers write one: "
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    else:
        codec, notes, further = ids_codec(str(folder), vocabulary, ends, begins)
        return codec, (*notes, *special.notes), further
    try:
        bare = TokenizerCodec(content, None, None)
        own = _name(settings, "eos_token", bare.tokens)
        end, further = end_tokens(bare, own, ends)
        begin = _begin(bare, settings)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    _refuse_beyond(file, bare, vocabulary, (begin, end))
    notes = (*special.notes, *ends_note(bare, own, ends, source))
    return TokenizerCodec(content, begin, end), notes, further


def _framing(
    folder: Path, config: Mapping[str, Any], special: SpecialIds
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """The begin and end ids that the model's own files name, and the file that names the ends."""
    files = {"generation_config.json": _optional(folder / "generation_config.json"), "config.json": config}
    begins = [special.of(tree, folder / name, "bos_token_id") for name, tree in files.items()]
    ends = {name: special.of(tree, folder / name, "eos_token_id") for name, tree in files.items()}
    source = next((name for name, ids in ends.items() if ids), "config.json")
    return next(filter(None, begins), ()), ends[source], source


def end_tokens(bare: TokenizerCodec, own: str | None, ends: Sequence[int]) -> tuple[str | None, tuple[int, ...]]:
    """The end token of the codec, and the ids that end a text beside it.

    Of several the tokenizer's `own` end is taken, where it is among them, and else the first that has a name.
    """
    if not ends:
        return own, ()
    named = {i: name for i in ends if (name := bare.tokenizer.id_to_token(i)) is not None}
    first = next((i for i, name in named.items() if name == own), next(iter(named), None))
    return (None if first is None else named[first]), tuple(i for i in ends if i != first)


def ends_note(bare: TokenizerCodec, own: str | None, ends: Sequence[int], source: str) -> tuple[str, ...]:
    """What a person should know about where texts end: several ids, or others than the tokenizer's own."""
    names = " or ".join(f"{bare.tokenizer.id_to_token(i) or 'a token without a name'} ({i})" for i in ends)
    if ends and own is not None and bare.tokenizer.token_to_id(own) not in ends:
        return (f"samples end at {names}, as {source} says, and not at the {own} of tokenizer_config.json",)
    return (f"samples end at {names}, as {source} says",) if len(ends) > 1 else ()


def _optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _name(settings: Mapping[str, Any], key: str, names: tuple[str, ...]) -> str | None:
    value = settings.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and name in names else None


def _begin(codec: TokenizerCodec, settings: Mapping[str, Any]) -> str | None:
    """The token that this tokenizer puts in front of every text, if it does."""
    if settings.get("add_bos_token") is False:
        return None
    if settings.get("add_bos_token") is True and (named := _name(settings, "bos_token", codec.tokens)):
        return named
    before, _ = added_ids(codec)
    return codec.tokens[before[0]] if before and before[0] < len(codec.tokens) else None


def _refuse_beyond(
    file: Path, codec: TokenizerCodec, vocabulary: int, framing: tuple[str | None, str | None]
) -> None:
    """Every token that a text may become needs an embedding; special tokens never come from a text."""
    if len(codec.tokens) <= vocabulary:
        return
    special = {i for i, token in codec.tokenizer.get_added_tokens_decoder().items() if token.special}
    for i in range(vocabulary, len(codec.tokens)):
        if i not in special or codec.tokens[i] in framing:
            size = f"config.json says vocab_size={vocabulary}"
            raise BadInput(f'{file} has the token "{codec.tokens[i]}" with id {i}, and {size}')


def _byte_pairs(folder: Path, config: Mapping[str, Any]) -> str:
    """The tokenizer of a folder that only has the two files of the first GPT-2."""
    if config.get("model_type") != "gpt2":
        raise BadInput(f"{folder} has no tokenizer.json, and vocab.json alone does not say how it cuts words")
    library = tokenizers_library()
    with refusing(f"{folder}: vocab.json and merges.txt cannot be read"):
        model = library.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return str(tokenizer.to_str())


# --- models without a tokenizer --------------------------------------------------------------------


def ids_codec(source: str, vocabulary: int, ends: Sequence[int], begins: Sequence[int] = ()) -> ReadTokenizer:
    """Without a tokenizer a prompt is its ids, in words: `5 17 3`."""
    library = tokenizers_library()
    names = {str(i): i for i in range(vocabulary)}
    tokenizer = library.Tokenizer(library.models.WordLevel(names, unk_token=NO_SUCH_ID))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    end = str(ends[0]) if ends else None
    notes = [f'{source} has no tokenizer: prompts and answers are token ids, such as "5 17 3"']
    if begins:
        notes.append(f"texts of this model begin with the id {begins[0]}: type it first")
    if len(ends) > 1:
        notes.append(f"samples end at the ids {' or '.join(map(str, ends))}")
    return TokenizerCodec(str(tokenizer.to_str()), None, end), tuple(notes), tuple(ends[1:])


def is_ids_codec(codec: Codec) -> bool:
    """Whether this is the codec of a model that came without a tokenizer."""
    if not isinstance(codec, TokenizerCodec) or NO_SUCH_ID not in codec.content:
        return False
    return bool(codec.stored["model"].get("unk_token") == NO_SUCH_ID)


def parse_ids(text: str, vocabulary: int) -> tuple[int, ...]:
    """The ids of a prompt such as `5 17 3`."""
    for word in text.split():
        if not word.isascii() or not word.isdigit() or len(word) > 9 or int(word) >= vocabulary:
            raise BadInput(f"{word[:60]} is no id of this model; ids are 0..{vocabulary - 1}, separated by spaces")
    return tuple(map(int, text.split()))
