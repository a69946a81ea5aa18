"""Tokenizers in other people's folders: read from them, and written so that they give the same ids there.

What is written adds the begin token exactly where linnet does, and takes special tokens in a text as text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from linnet.codecs import CharacterCodec, Codec
from linnet.errors import BadInput
from linnet.exchange.special_ids import SpecialIds
from linnet.tokenization import TokenizerCodec, tokenizers_library
from linnet.untrusted import read_object, read_text


@dataclass(frozen=True)
class Written:
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


def written(codec: Codec) -> Written:
    """The tokenizer that gives the ids of this codec, where one can."""
    match codec:
        case TokenizerCodec():
            return Written(with_begin(codec), codec.begin_name, codec.end_name)
        case CharacterCodec():
            return _characters(codec.tokens, "<begin>" if codec.has_begin else None, spaces=True)
    if rules := codec.rewriting:
        return Written(None, why_not=f"the codec of this run {', '.join(rules)}, which no tokenizer.json can say")
    return _characters(tuple(codec.tokens), "<begin>", spaces=False)


def with_begin(codec: TokenizerCodec) -> str:
    """The tokenizer.json of a codec, set to add its begin token and nothing else."""
    if added(codec) == (() if codec.begin is None else (codec.begin,), ()):
        return codec.content
    stored = codec.stored
    stored["post_processor"] = None if codec.begin_name is None else _template(codec.begin_name, codec.begin)
    return json.dumps(stored, ensure_ascii=False)


def added(codec: TokenizerCodec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer by itself puts before and after a text."""
    probe = _readable(codec)
    bare = codec.encode(probe).ids.tolist()
    whole = codec.tokenizer.encode(probe).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


def _readable(codec: TokenizerCodec) -> str:
    """A short text that this tokenizer has tokens for."""
    special = codec.tokenizer.get_added_tokens_decoder()
    learned = (codec.decode([i]) for i in range(len(codec.tokens)) if i not in special)
    for text in itertools.chain("a", learned):
        with contextlib.suppress(BadInput):
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


def _characters(tokens: tuple[str, ...], begin: str | None, *, spaces: bool) -> Written:
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
    return Written(json.dumps(stored, ensure_ascii=False), begin, "<end>")


@dataclass(frozen=True)
class Read:
    """The codec of a folder, and what its reader should know about it."""

    codec: TokenizerCodec
    notes: tuple[str, ...] = ()
    further_ends: tuple[int, ...] = ()  # ids beside the codec's end that end a text, too


def read_tokenizer(folder: Path, config: Mapping[str, Any], vocabulary: int) -> Read:
    """The tokenizer of a model folder.

    The begin token is the one that its own library puts before a text, if it does. Texts end where `generate` of
    transformers ends them: at the ids in generation_config.json, else in config.json, and only where neither names
    one at the end token of tokenizer_config.json.
    """
    said = _optional(folder / "tokenizer_config.json")
    special = SpecialIds(str(config.get("model_type")), vocabulary)
    begins, ending, source = _framing(folder, config, special)
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
        found = numbers(str(folder), vocabulary, ending, begins)
        return replace(found, notes=(*found.notes, *special.notes))
    try:
        bare = TokenizerCodec(content, None, None)
        names = bare.tokens
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    own = _name(said, "eos_token", names)
    end, further = ended(bare, own, ending)
    begin = _begin(bare, said)
    _refuse_beyond(file, bare, vocabulary, (begin, end))
    notes = (*special.notes, *ends_note(bare, own, ending, source))
    return Read(TokenizerCodec(content, begin, end), notes, further)


def _framing(
    folder: Path, config: Mapping[str, Any], special: SpecialIds
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """The begin and end ids that the model's own files name, and the file that names the ends."""
    files = {"generation_config.json": _optional(folder / "generation_config.json"), "config.json": config}
    begins = [special.of(said, folder / name, "bos_token_id") for name, said in files.items()]
    ends = {name: special.of(said, folder / name, "eos_token_id") for name, said in files.items()}
    source = next((name for name, ids in ends.items() if ids), "config.json")
    return next(filter(None, begins), ()), ends[source], source


def ended(bare: TokenizerCodec, own: str | None, ending: Sequence[int]) -> tuple[str | None, tuple[int, ...]]:
    """The end token of the codec, and the ids that end a text beside it.

    Of several the tokenizer's `own` end is taken, where it is among them, and else the first that has a name.
    """
    if not ending:
        return own, ()
    named = {i: name for i in ending if (name := bare.tokenizer.id_to_token(i)) is not None}
    first = next((i for i, name in named.items() if name == own), next(iter(named), None))
    return (None if first is None else named[first]), tuple(i for i in ending if i != first)


def ends_note(bare: TokenizerCodec, own: str | None, ending: Sequence[int], source: str) -> tuple[str, ...]:
    """What a person should know about where texts end: several ids, or others than the tokenizer's own."""
    shown = " or ".join(f"{bare.tokenizer.id_to_token(i) or 'a token without a name'} ({i})" for i in ending)
    if ending and own is not None and bare.tokenizer.token_to_id(own) not in ending:
        return (f"samples end at {shown}, as {source} says, and not at the {own} of tokenizer_config.json",)
    return (f"samples end at {shown}, as {source} says",) if len(ending) > 1 else ()


def _optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _name(said: Mapping[str, Any], key: str, names: tuple[str, ...]) -> str | None:
    value = said.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and name in names else None


def _begin(codec: TokenizerCodec, said: Mapping[str, Any]) -> str | None:
    """The token that this tokenizer puts in front of every text, if it does."""
    if said.get("add_bos_token") is False:
        return None
    if said.get("add_bos_token") is True and (named := _name(said, "bos_token", codec.tokens)):
        return named
    before, _ = added(codec)
    return codec.tokens[before[0]] if before else None


def _refuse_beyond(
    file: Path, codec: TokenizerCodec, vocabulary: int, framing: tuple[str | None, str | None]
) -> None:
    """Every token that a text may become needs an embedding; special tokens never come from a text."""
    if len(codec.tokens) <= vocabulary:
        return
    special = {i for i, token in codec.tokenizer.get_added_tokens_decoder().items() if token.special}
    for i in range(vocabulary, len(codec.tokens)):
        if i not in special or codec.tokens[i] in framing:
            said = f"config.json says vocab_size={vocabulary}"
            raise BadInput(f'{file} has the token "{codec.tokens[i]}" with id {i}, and {said}')


def _byte_pairs(folder: Path, config: Mapping[str, Any]) -> str:
    """The tokenizer of a folder that only has the two files of the first GPT-2."""
    if config.get("model_type") != "gpt2":
        raise BadInput(f"{folder} has no tokenizer.json, and vocab.json alone does not say how it cuts words")
    library = tokenizers_library()
    try:
        model = library.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises a bare Exception for any flaw in the files
        raise BadInput(f"{folder}: vocab.json and merges.txt cannot be read: {error}") from error
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return str(tokenizer.to_str())


NO_SUCH_ID = "<no such id>"


def numbers(source: str, vocabulary: int, ending: Sequence[int], begins: Sequence[int] = ()) -> Read:
    """Without a tokenizer a prompt is its ids, in words: `5 17 3`."""
    library = tokenizers_library()
    names = {str(i): i for i in range(vocabulary)}
    tokenizer = library.Tokenizer(library.models.WordLevel(names, unk_token=NO_SUCH_ID))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    end = str(ending[0]) if ending else None
    notes = [f'{source} has no tokenizer: prompts and answers are token ids, such as "5 17 3"']
    if begins:
        notes.append(f"texts of this model begin with the id {begins[0]}: type it first")
    if len(ending) > 1:
        notes.append(f"samples end at the ids {' or '.join(map(str, ending))}")
    return Read(TokenizerCodec(str(tokenizer.to_str()), None, end), tuple(notes), tuple(ending[1:]))


def speaks_in_ids(codec: Codec) -> bool:
    """Whether this is the codec of a model that came without a tokenizer."""
    if not isinstance(codec, TokenizerCodec) or NO_SUCH_ID not in codec.content:
        return False
    return bool(codec.stored["model"].get("unk_token") == NO_SUCH_ID)


def ids_in_words(text: str, vocabulary: int) -> tuple[int, ...]:
    """The ids of a prompt such as `5 17 3`."""
    for word in text.split():
        if not word.isascii() or not word.isdigit() or int(word) >= vocabulary:
            raise BadInput(f"{word} is no id of this model; ids are 0..{vocabulary - 1}, separated by spaces")
    return tuple(map(int, text.split()))
