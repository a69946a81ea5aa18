"""How a tokenizer is made from a stream of documents: byte-level BPE, unigram, words or characters.

The work is done by the `tokenizers` library; here are the choices, and the rules that keep URLs, numbers and
mentions whole. A vocabulary that the corpus cannot support is made smaller, and a note says so.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from linnet.domains.text.chat import Template
from linnet.domains.text.sources import Passage
from linnet.errors import BadInput
from linnet.tokenization import END, UNKNOWN, TokenizerCodec, tokenizers_library
from linnet.untrusted import parse_object

SUPPORT = 100  # characters of training text that a learned token should stand on
SMALLEST = 512  # a vocabulary that every corpus may have
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
URLS = r" ?(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)\]'’”]"  # a mark at its end belongs to the sentence
MENTIONS = r" ?(?<!\w)@\w+"  # not inside of an address such as ann@example.org
RUN = 256  # characters of one kind; byte pairs of a run of 200,000 take minutes, and give the same
UNBROKEN = re.compile(rf"\w{{{RUN}}}|[^\w\s]{{{RUN}}}|\s{{{RUN}}}")
NUMBERS = {"digits": r" ?\p{N}", "groups": r" ?\p{N}{1,3}"}


class Tokenizing(BaseModel):
    """Which tokenizer. `file` is one that exists, or where the trained one is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bpe", "unigram", "words", "characters"] = Field("bpe", description="what pieces are")
    vocabulary: int = Field(16_000, ge=2, description="how many tokens")
    file: str | None = Field(None, description="a tokenizer.json to use, or where to keep the new one")
    urls: bool = Field(False, description="a URL may become few tokens; otherwise punctuation cuts it")
    mentions: bool = Field(False, description="the same for @names")
    numbers: Literal["whole", "digits", "groups"] = Field("whole", description="groups: at most three digits")
    lowercase: bool = Field(False, description="loses case, and every report says so")
    specials: tuple[str, ...] = Field((), description="tokens such as <|user|> that texts may contain")
    min_count: int = Field(2, ge=1, description="of a merge or a word")

    @field_validator("specials", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        """A single token may be given as it is."""
        return (value,) if isinstance(value, str) else value


def with_markers(wanted: Tokenizing, template: str | None) -> Tokenizing:
    """The same with the marks of a template as tokens of their own."""
    markers = () if template is None else Template.of(template).markers
    return wanted.model_copy(update={"specials": tuple(dict.fromkeys([*wanted.specials, *markers]))})


class Trained(NamedTuple):
    codec: TokenizerCodec
    notes: tuple[str, ...]


def train_tokenizer(passages: Iterable[Passage], wanted: Tokenizing, characters: int | None = None) -> Trained:
    """Learn a tokenizer from these documents. `characters` is how many there are, where that is known."""
    stream = iter(passages)
    first = next(stream, None)
    if first is None:
        raise BadInput("there are no documents to learn a tokenizer from: the corpus is empty")
    vocabulary, notes = supported(wanted, characters)
    makers = {"bpe": _byte_pairs, "unigram": _unigram, "words": _words, "characters": _characters}
    documents = (passage.texts for passage in itertools.chain([first], stream))
    content = makers[wanted.kind](documents, wanted, vocabulary)
    codec = TokenizerCodec(_plain_specials(content, wanted.specials), END, END)
    if len(codec.tokens) < vocabulary and wanted.kind != "characters":
        what = "words" if wanted.kind == "words" else "pieces"
        notes = (
            f"the vocabulary has {len(codec.tokens):,} tokens instead of {wanted.vocabulary:,}: the corpus has no "
            f"more {what} that occur {wanted.min_count} times",
        )
    return Trained(codec, notes)


def supported(wanted: Tokenizing, characters: int | None) -> tuple[int, tuple[str, ...]]:
    """The vocabulary that so much text can teach, and a note if it is smaller than the one wanted."""
    learned = wanted.kind in ("bpe", "unigram")
    most = 0 if characters is None else max(SMALLEST, characters // SUPPORT)
    if characters is None or not learned or wanted.vocabulary <= most:
        return wanted.vocabulary, ()
    note = (
        f"vocabulary {wanted.vocabulary:,} was shrunk to {most:,}: the training text has about {characters:,} "
        f"characters, {SUPPORT} for each token"
    )
    return most, (note,)


def _without_long_runs(documents: Iterable[list[str]]) -> Iterator[list[str]]:
    """The same texts, cut where characters of one kind go on for long without a break."""
    for texts in documents:
        yield [piece for text in texts for piece in ([text] if _is_broken(text) else _cut_runs(text))]


def _is_broken(text: str) -> bool:
    """Whether each stretch of `RUN` characters has a space between others: a cheap test that most texts pass."""
    return all(len(text[i : i + RUN].split(None, 1)) > 1 for i in range(0, len(text) - RUN + 1, RUN))


def _cut_runs(text: str) -> list[str]:
    edges = [0, *(found.end() for found in UNBROKEN.finditer(text)), len(text)]
    return [text[first:last] for first, last in itertools.pairwise(edges)]


def _rules(wanted: Tokenizing) -> list[str]:
    """What is kept whole, or cut finer than words."""
    numbers = [NUMBERS[wanted.numbers]] if wanted.numbers != "whole" else []
    return [URLS] * wanted.urls + [MENTIONS] * wanted.mentions + numbers


def splitter(wanted: Tokenizing) -> Any:
    """How a text is cut before pieces are learned: no piece ever reaches over such a cut."""
    library = tokenizers_library()
    cuts = library.pre_tokenizers
    if not (rules := _rules(wanted)):
        return cuts.ByteLevel(add_prefix_space=False, use_regex=True)
    pattern = library.Regex("|".join([*rules, WORDS]))
    return cuts.Sequence(
        [cuts.Split(pattern, "isolated"), cuts.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _tokenizer(wanted: Tokenizing, model: Any, cuts: Any, decoder: Any) -> Any:
    library = tokenizers_library()
    tokenizer = library.Tokenizer(model)
    if wanted.lowercase:
        tokenizer.normalizer = library.normalizers.Lowercase()
    if cuts is not None:
        tokenizer.pre_tokenizer = cuts
    tokenizer.decoder = decoder
    return tokenizer


def _learned(tokenizer: Any, documents: Iterable[list[str]], trainer: Any) -> str:
    tokenizer.train_from_iterator(documents, trainer)
    return str(tokenizer.to_str())


def _byte_level(wanted: Tokenizing, vocabulary: int, model: Any) -> tuple[Any, dict[str, Any]]:
    """A tokenizer of bytes, and the options of its trainer."""
    library = tokenizers_library()
    specials = [END, *wanted.specials]
    _refuse_small(vocabulary, 256 + len(specials), "one token for each byte")
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    options = {"vocab_size": vocabulary, "special_tokens": specials, "initial_alphabet": alphabet}
    tokenizer = _tokenizer(wanted, model, splitter(wanted), library.decoders.ByteLevel())
    return tokenizer, options | {"show_progress": False}


def _byte_pairs(documents: Iterable[list[str]], wanted: Tokenizing, vocabulary: int) -> str:
    library = tokenizers_library()
    tokenizer, options = _byte_level(wanted, vocabulary, library.models.BPE())
    trainer = library.trainers.BpeTrainer(min_frequency=wanted.min_count, **options)
    return _learned(tokenizer, _without_long_runs(documents), trainer)


def _unigram(documents: Iterable[list[str]], wanted: Tokenizing, vocabulary: int) -> str:
    """The library's trainer: its scores differ a little from process to process."""
    library = tokenizers_library()
    tokenizer, options = _byte_level(wanted, vocabulary, library.models.Unigram())
    return _learned(tokenizer, documents, library.trainers.UnigramTrainer(**options))


def _words(documents: Iterable[list[str]], wanted: Tokenizing, vocabulary: int) -> str:
    """Words and single marks, the most frequent first, equal counts in the order of their bytes."""
    library = tokenizers_library()
    specials = [END, UNKNOWN, *wanted.specials]
    _refuse_small(vocabulary, 1 + len(specials), "the special tokens and a word")
    rules = [rule.removeprefix(" ?") for rule in _rules(wanted)]
    pattern = library.Regex("|".join([*rules, r"\w+", r"[^\w\s]"]))
    cuts = library.pre_tokenizers.Split(pattern, "removed", invert=True)
    decoder = library.decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = _tokenizer(wanted, library.models.WordLevel(unk_token=UNKNOWN), cuts, decoder)
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=vocabulary, min_frequency=wanted.min_count, special_tokens=specials, show_progress=False
    )
    return _learned(tokenizer, documents, trainer)


def _characters(documents: Iterable[list[str]], wanted: Tokenizing, vocabulary: int) -> str:
    """The characters of the corpus in the order of code points; the rarest give way to the vocabulary."""
    library = tokenizers_library()
    counts: Counter[str] = Counter()
    for text in itertools.chain.from_iterable(documents):
        counts.update(text.lower() if wanted.lowercase else text)
    specials = [END, UNKNOWN, *wanted.specials]
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: max(vocabulary - len(specials), 1)]
    entries = {token: i for i, token in enumerate([*specials, *sorted(kept)])}
    model = library.models.BPE(vocab=entries, merges=[], unk_token=UNKNOWN, fuse_unk=False)
    tokenizer = _tokenizer(wanted, model, None, library.decoders.Fuse())
    tokenizer.add_special_tokens(specials)
    return str(tokenizer.to_str())


def _refuse_small(vocabulary: int, least: int, what: str) -> None:
    if vocabulary < least:
        raise BadInput(f"a vocabulary of {vocabulary} has no room for {what}: at least {least} are needed")


def _plain_specials(content: str, names: Sequence[str]) -> str:
    """Let texts contain these tokens, which `<end>` and the like never are in a text."""
    if not names:
        return content
    stored = parse_object(content, "the tokenizer")
    for token in stored["added_tokens"]:
        if token["content"] in names:
            token["special"] = False
    return json.dumps(stored, ensure_ascii=False)


def contradictions(codec: TokenizerCodec, wanted: Tokenizing) -> list[str]:
    """The settings that a tokenizer which exists does not obey, as `kind=words (it is bpe)`."""
    stored = parse_object(codec.content, "the tokenizer")
    model = stored["model"]
    kind = {"BPE": "bpe", "Unigram": "unigram", "WordLevel": "words"}.get(model.get("type"), model.get("type"))
    if kind == "bpe" and not model.get("merges"):
        kind = "characters"
    lowercase = "Lowercase" in str(stored.get("normalizer"))
    found = [
        f"data.tokenizer.{key}={str(getattr(wanted, key)).lower()} (it is {str(value).lower()})"
        for key, value in (("kind", kind), ("vocabulary", len(codec.tokens)), ("lowercase", lowercase))
        if getattr(wanted, key) != value
    ]
    if missing := [name for name in wanted.specials if name not in codec.tokens]:
        found.append(f"data.tokenizer.specials ({', '.join(missing)} are no tokens of it)")
    return found


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json that a `file` setting means, also where it names a folder."""
    path = Path(name)
    return path / "tokenizer.json" if path.is_dir() or not path.suffix else path
