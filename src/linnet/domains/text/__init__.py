"""Text: corpora, tokenizers, token stores and the n-gram models that a network has to beat.

What is read is in `sources` and `corpus`, tokens in `tokenization`, `tokenizer_training` and `store`, counting
models in `ngrams`, the block metric of the headline protocol in `blocks`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from linnet.codecs import Codec
from linnet.domains import Material, Part, Question
from linnet.domains.text.corpus import Corpus, Parts, Stream, repeated, with_split
from linnet.domains.text.finding import find_sources
from linnet.domains.text.meter import Meter
from linnet.domains.text.ngrams import NGrams
from linnet.domains.text.sources import Reading, Tally, read_passages
from linnet.domains.text.store import (
    Wanted,
    begun_with,
    encode_rows,
    is_complete,
    open_store,
    row_type,
    write_store,
)
from linnet.domains.text.tokenization import TokenizerCodec
from linnet.domains.text.tokenizer_training import Tokenizing, tokenizer_file, train_tokenizer
from linnet.errors import BadInput
from linnet.records import Baseline
from linnet.sequences import Sequences

__all__ = ["TextData", "TokenizerCodec", "Tokenizing"]

SMALL = 256 << 20  # stored bytes up to which a corpus is also searched for repeated documents
COUNTED = 10_000_000  # training tokens that the n-gram baseline counts
PARTS = ("train", "validation")
AUTOMATIC = Path("auto")
LARGE = 1 << 29  # stored bytes above which the encoded corpus is kept on disk
LOSSY = "lossy tokenizer"


class TextData(BaseModel):
    """The `[data]` part of a text run. The split is fixed by `split_seed`, so that runs of several seeds share it.

    `documents` says what a document of a .txt file is; rows of JSON lines and Parquet are one each, and a
    `split` column (train, validation, test) is obeyed. `split=shuffled` holds out a random share of the documents,
    `tail` the last ones (of `documents=file`: the last characters). `store` is a folder that keeps the
    encoded corpus on disk, or `auto`, a folder of its own in the cache (LINNET_CACHE, or ~/.cache/linnet); a
    large corpus is never kept in memory. `block` is the batch and context of the
    headline protocol, whose block metric is then printed beside the full one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: Literal["text"] = "text"
    paths: tuple[Path, ...] = ()
    documents: Literal["line", "paragraph", "file"] = "line"
    field: str = "text"
    errors: Literal["strict", "replace"] = "strict"
    sample: int | None = Field(None, ge=1)  # so many documents, drawn by split_seed
    validation: float = Field(0.1, gt=0, lt=1)
    validation_paths: tuple[Path, ...] = ()
    split: Literal["shuffled", "tail"] = "shuffled"
    split_seed: int = Field(1337, ge=0)
    tokenizer: Tokenizing = Tokenizing()
    store: Path | None = None
    block: tuple[int, int] | None = None

    @field_validator("paths", "validation_paths", "store")
    @classmethod
    def _whole_paths(cls, value: Any) -> Any:
        """A run is resumed from any folder."""
        if isinstance(value, tuple):
            return tuple(path if str(path).startswith("hf:") else path.absolute() for path in value)
        return value if value in (None, AUTOMATIC) else value.absolute()

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        """The same parts for every seed. A resumed run brings the codec that it began with."""
        folder = self._folder
        if folder is not None and all(is_complete(folder / part) for part in PARTS):
            return self._stored(folder)
        parts = self._corpus.divide()
        begun = begun_with(folder / PARTS[0]) if folder is not None and self.tokenizer.file is None else None
        known = codec if isinstance(codec, TokenizerCodec) else begun
        tokenizer, said = self._codec(parts) if known is None else (known, ())
        lost = lossiness(tokenizer, parts.validation)
        again = "" if self._stored_bytes > SMALL else repeated(parts.train, parts.validation, parts.documents[1])
        notes = tuple(note for note in (*parts.notes, *said, lost, again) if note)
        train, validation = (
            self._rows(tokenizer, stream, part, notes, folder)
            for part, stream in zip(PARTS, (parts.train, parts.validation), strict=True)
        )
        return _material(tokenizer, train, validation, notes)

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        assert isinstance(codec, TokenizerCodec)

        def stream(tally: Tally) -> Any:
            passages = read_passages(find_sources(paths), self._reading, tally)
            return passages if split is None else with_split(passages, split)

        rows = rows_in_memory(codec, stream)
        said = "; ".join(text for text in (lossiness(codec, stream), unscored(codec, rows)) if text)
        return Part(rows, note=said, baseline=functools.partial(self._ngrams_on, codec, rows))

    def right(self, question: Question, answer: str) -> bool:
        """Text asks no questions of this kind; a continuation is right if it is the same text."""
        return answer == question.answer

    def baseline(self, questions: Sequence[Question]) -> Baseline:
        return Baseline(name="no answer", value=0.0)

    @property
    def _reading(self) -> Reading:
        return Reading(self.documents, self.field, self.errors)

    @property
    def _corpus(self) -> Corpus:
        return Corpus(
            self.paths,
            self._reading,
            self.sample,
            self.validation,
            self.split,
            self.validation_paths,
            self.split_seed,
        )

    def _codec(self, parts: Parts) -> tuple[TokenizerCodec, tuple[str, ...]]:
        """The tokenizer: an existing file, or one learned from the training part alone (and kept, if named)."""
        if self.tokenizer.file is not None and (file := tokenizer_file(self.tokenizer.file)).is_file():
            codec = TokenizerCodec.read(file)
            return codec, (f"tokenizer {file} with {len(codec.tokens):,} tokens, as it is",)
        tally = Tally()
        meter = Meter("tokenizer", len(self._corpus.sources()), self._stored_bytes)
        trained = train_tokenizer(
            parts.train(tally), tally, self.tokenizer, meter=meter, characters=parts.characters
        )
        if self.tokenizer.file is not None:
            trained.codec.write(tokenizer_file(self.tokenizer.file))
        return trained.codec, trained.notes

    def _rows(
        self, codec: TokenizerCodec, stream: Stream, part: str, notes: tuple[str, ...], folder: Path | None
    ) -> Sequences:
        if folder is None:
            return rows_in_memory(codec, stream)
        meter = Meter(f"encoding {part}", len(self._corpus.sources()), self._stored_bytes)
        wanted = self._wanted(part, codec.fingerprint())
        return write_store(folder / part, codec, wanted, stream, remarks=notes, meter=meter).sequences()

    def _stored(self, folder: Path) -> Material:
        """The material of a complete store; of the corpus only sizes and times are looked at then."""
        named = None if self.tokenizer.file is None else tokenizer_file(self.tokenizer.file)
        expected = TokenizerCodec.read(named).fingerprint() if named is not None and named.is_file() else None
        train, validation = (open_store(folder / part, self._wanted(part, expected)) for part in PARTS)
        notes = (*train.manifest.remarks, f"encoded documents are read from {folder}")
        return _material(train.codec, train.sequences(), validation.sequences(), notes)

    def _wanted(self, part: str, tokenizer: str | None) -> Wanted:
        """What decides the content of a store of this part."""
        others = find_sources(self.validation_paths) if self.validation_paths else ()
        left_out = {"paths", "validation_paths", "store", "block", "domain"}
        chosen = self.model_dump(mode="json", exclude={name: True for name in left_out} | {"tokenizer": {"file"}})
        return Wanted((*self._corpus.sources(), *others), chosen | {"part": part}, tokenizer)

    @property
    def _folder(self) -> Path | None:
        """Where the encoded corpus is kept; None keeps it in memory. A folder of the cache is never stale."""
        if self.store not in (None, AUTOMATIC):
            return self.store
        if self.store is None and self._stored_bytes <= LARGE:
            return None
        marks = [(source.name, source.size, source.modified) for source in self._wanted("", None).sources]
        said = json.dumps([marks, self._wanted("", None).settings], sort_keys=True)
        cache = Path(os.environ.get("LINNET_CACHE") or Path.home() / ".cache" / "linnet")
        return cache / "stores" / hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def _stored_bytes(self) -> int:
        return sum(source.size for source in self._corpus.sources())

    def _ngrams_on(self, codec: TokenizerCodec, rows: Sequences) -> Baseline | None:
        """The n-gram model of this run's training part on other rows; None where the training part is gone."""
        try:
            train = self.load(0, codec).train.sequences
        except BadInput:
            return None
        return NGrams.of(train, len(codec.tokens), COUNTED).baseline(rows)


def _material(codec: TokenizerCodec, train: Sequences, validation: Sequences, notes: tuple[str, ...]) -> Material:
    lost = next((note for note in notes if note.startswith(LOSSY)), "")
    held = Part(
        validation, note=lost, baseline=lambda: NGrams.of(train, len(codec.tokens), COUNTED).baseline(validation)
    )
    return Material(codec, Part(train), held, notes)


def rows_in_memory(codec: TokenizerCodec, stream: Stream) -> Sequences:
    """All documents of a stream as rows."""
    flat, lengths = [np.empty(0, row_type(codec))], [np.zeros(1, np.int64)]
    characters = utf8_bytes = 0
    for ids, sizes, n_characters, n_bytes in encode_rows(codec, stream(Tally())):
        flat.append(ids)
        lengths.append(sizes)
        characters += n_characters
        utf8_bytes += n_bytes
    ids = np.concatenate(flat)
    starts = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    scored = np.ones(len(ids), bool)
    scored[starts[:-1]] = False
    return Sequences(ids, starts, scored, characters, utf8_bytes)


def unscored(codec: TokenizerCodec, rows: Sequences) -> str:
    """What a model without a begin token cannot be asked for; nothing where it has one."""
    if codec.begin is not None:
        return ""
    return f"no begin token: the first token of each of {len(rows):,} documents is not scored, and its text counts"


def lossiness(codec: TokenizerCodec, stream: Stream) -> str:
    """Whether documents come back from their tokens, and what the first loss is; nothing if all do."""
    total, lost, first = 0, 0, ""
    for texts in (texts for passage in stream(Tally()) for texts in passage.portions()):
        for text, back in zip(texts, codec.texts_of(codec.ids_of(texts)), strict=True):
            total += 1
            if back != text:
                first = first or f"{text[:40]!r} becomes {back[:40]!r}"
                lost += 1
    return f"{LOSSY}: {lost:,} of {total:,} documents do not come back ({first})" if lost else ""
