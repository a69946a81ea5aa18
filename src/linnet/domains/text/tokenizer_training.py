"""How a tokenizer is made from a stream of documents: byte-level BPE, unigram, words or characters.

The work is done by the `tokenizers` library; here are the choices, the rules that keep URLs, numbers and
mentions whole, and the honesty: a vocabulary that the corpus cannot support is made smaller, and that is said.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from linnet.domains.text.chat import Template
from linnet.domains.text.meter import Meter
from linnet.domains.text.sources import Passage, Tally
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
    """Which tokenizer. `file` is one that exists, or the place where the trained one is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bpe", "unigram", "words", "characters"] = "bpe"
    vocabulary: int = Field(16_000, ge=2)
    file: str | None = None
    urls: bool = False  # a URL may become few tokens; otherwise punctuation cuts it
    mentions: bool = False  # the same for @names
    numbers: Literal["whole", "digits", "groups"] = "whole"  # groups: at most three digits
    lowercase: bool = False  # loses case, and every report says so
    specials: tuple[str, ...] = ()  # tokens such as <|user|> that texts may contain
    min_count: int = Field(2, ge=1)  # of a merge or a word

    @field_validator("specials", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        """A single token may be given as it is."""
        return (value,) if isinstance(value, str) else value


def with_markers(wanted: Tokenizing, template: str) -> Tokenizing:
    """The same with the marks of a template as tokens of their own."""
    return wanted.model_copy(
        update={"specials": tuple(dict.fromkeys([*wanted.specials, *Template.of(template).markers]))}
    )


@dataclass(frozen=True)
class Trained:
    codec: TokenizerCodec
    notes: tuple[str, ...]
    tally: Tally
    text_bytes: int
    seconds: float


def train_tokenizer(
    passages: Iterable[Passage],
    tally: Tally,
    wanted: Tokenizing,
    *,
    meter: Meter | None = None,
    characters: int | None = None,
) -> Trained:
    """Learn a tokenizer from these documents. `characters` is how many there are, where that is known."""
    fed = _Fed(passages, tally, meter or Meter("tokenizer", 0, 0))
    vocabulary, notes = supported(wanted, characters)
    makers = {"bpe": _byte_pairs, "unigram": _unigram, "words": _words, "characters": _characters}
    content = makers[wanted.kind](fed, wanted, vocabulary)
    if not tally.documents:
        raise BadInput("the tokenizer was given no documents: the corpus is empty")
    codec = TokenizerCodec(_plain_specials(content, wanted.specials), END, END)
    if len(codec.tokens) < vocabulary and wanted.kind != "characters":
        notes = (
            f"the vocabulary has {len(codec.tokens):,} tokens instead of {vocabulary:,}: the corpus has no more "
            f"{'words' if wanted.kind == 'words' else 'pieces'} that occur {wanted.min_count} times",
        )
    return Trained(codec, notes, tally, fed.text_bytes, fed.meter.seconds)


def supported(wanted: Tokenizing, characters: int | None) -> tuple[int, tuple[str, ...]]:
    """The vocabulary that so much text can teach, and what to say if it is smaller than the one wanted."""
    if characters is None or wanted.kind not in ("bpe", "unigram"):
        return wanted.vocabulary, ()
    most = max(SMALLEST, characters // SUPPORT)
    if wanted.vocabulary <= most:
        return wanted.vocabulary, ()
    said = (
        f"vocabulary {wanted.vocabulary:,} was shrunk to {most:,}: the training text has about {characters:,} "
        f"characters, {SUPPORT} for each token"
    )
    return most, (said,)


class _Fed:
    """Documents on their way into a trainer, counted as they pass."""

    def __init__(self, passages: Iterable[Passage], tally: Tally, meter: Meter) -> None:
        self.passages, self.tally, self.meter = passages, tally, meter
        self.text_bytes = 0

    def __iter__(self) -> Iterator[list[str]]:
        for passage in self.passages:
            size = sum(len(text.encode()) for text in passage.texts)
            self.text_bytes += size
            self.meter.advance(self.tally, size)
            yield passage.texts
        self.meter.close(self.tally)


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


def splitter(wanted: Tokenizing) -> Any:
    """How a text is cut before pieces are learned: no piece ever reaches over such a cut."""
    library = tokenizers_library()
    cuts = library.pre_tokenizers
    rules = [URLS] * wanted.urls + [MENTIONS] * wanted.mentions
    rules += [NUMBERS[wanted.numbers]] if wanted.numbers != "whole" else []
    if not rules:
        return cuts.ByteLevel(add_prefix_space=False, use_regex=True)
    pattern = library.Regex("|".join([*rules, WORDS]))
    return cuts.Sequence(
        [cuts.Split(pattern, "isolated"), cuts.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _byte_level(wanted: Tokenizing, model: Any) -> Any:
    library = tokenizers_library()
    tokenizer = library.Tokenizer(model)
    if wanted.lowercase:
        tokenizer.normalizer = library.normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter(wanted)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _byte_pairs(fed: _Fed, wanted: Tokenizing, vocabulary: int) -> str:
    library = tokenizers_library()
    specials = [END, *wanted.specials]
    _refuse_small(vocabulary, 256 + len(specials), "one token for each byte")
    tokenizer = _byte_level(wanted, library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=wanted.min_count,
        special_tokens=specials,
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_long_runs(fed), trainer)
    return str(tokenizer.to_str())


def _unigram(fed: _Fed, wanted: Tokenizing, vocabulary: int) -> str:
    """The library's trainer: its scores differ a little from process to process."""
    library = tokenizers_library()
    specials = [END, *wanted.specials]
    _refuse_small(vocabulary, 256 + len(specials), "one token for each byte")
    tokenizer = _byte_level(wanted, library.models.Unigram())
    trainer = library.trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=_alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(fed, trainer)
    return str(tokenizer.to_str())


def _words(fed: _Fed, wanted: Tokenizing, vocabulary: int) -> str:
    """Words and single marks, the most frequent first, equal counts in the order of their bytes."""
    library = tokenizers_library()
    specials = [END, UNKNOWN, *wanted.specials]
    _refuse_small(vocabulary, 1 + len(specials), "the special tokens and a word")
    cuts = library.pre_tokenizers
    tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
    if wanted.lowercase:
        tokenizer.normalizer = library.normalizers.Lowercase()
    rules = [rule.removeprefix(" ?") for rule in [URLS] * wanted.urls + [MENTIONS] * wanted.mentions]
    rules += [NUMBERS[wanted.numbers].removeprefix(" ?")] if wanted.numbers != "whole" else []
    pattern = library.Regex("|".join([*rules, r"\w+", r"[^\w\s]"]))
    tokenizer.pre_tokenizer = cuts.Split(pattern, "removed", invert=True)
    tokenizer.decoder = library.decoders.WordPiece(prefix="##", cleanup=True)
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=vocabulary, min_frequency=wanted.min_count, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(fed, trainer)
    return str(tokenizer.to_str())


def _characters(fed: _Fed, wanted: Tokenizing, vocabulary: int) -> str:
    """The characters of the corpus in the order of code points; the rarest give way to the vocabulary."""
    library = tokenizers_library()
    counts: Counter[str] = Counter()
    for texts in fed:
        for text in texts:
            counts.update(text.lower() if wanted.lowercase else text)
    specials = [END, UNKNOWN, *wanted.specials]
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: max(vocabulary - len(specials), 1)]
    entries = {token: i for i, token in enumerate([*specials, *sorted(kept)])}
    tokenizer = library.Tokenizer(library.models.BPE(vocab=entries, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    if wanted.lowercase:
        tokenizer.normalizer = library.normalizers.Lowercase()
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = library.decoders.Fuse()
    return str(tokenizer.to_str())


def _alphabet() -> list[str]:
    return sorted(tokenizers_library().pre_tokenizers.ByteLevel.alphabet())


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
    kinds = {"BPE": "bpe", "Unigram": "unigram", "WordLevel": "words"}
    kind = kinds.get(model.get("type"), model.get("type"))
    if kind == "bpe" and not model.get("merges"):
        kind = "characters"
    is_so = {
        "kind": kind,
        "vocabulary": len(codec.tokens),
        "lowercase": "Lowercase" in str(stored.get("normalizer")),
    }
    missing = [name for name in wanted.specials if name not in codec.tokens]
    said = [
        f"data.tokenizer.{key}={_toml(getattr(wanted, key))} (it is {_toml(value)})"
        for key, value in is_so.items()
        if getattr(wanted, key) != value
    ]
    return said + [f"data.tokenizer.specials ({', '.join(missing)} are no tokens of it)"] * bool(missing)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json that a `file` setting means, also where it names a folder."""
    path = Path(name)
    return path / "tokenizer.json" if path.is_dir() or not path.suffix else path
