"""Tokenizers by themselves: learn one from files, and see what one does to files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from linnet.domains.text.corpus import Corpus
from linnet.domains.text.sources import Reading, Stream, Tally, shown
from linnet.domains.text.tokenizer_training import (
    SUPPORT,
    Tokenizing,
    tokenizer_file,
    train_tokenizer,
    with_markers,
)
from linnet.errors import BadInput, nearest
from linnet.files import refuse_existing, write_lines, write_texts
from linnet.records import TokenizerRecord
from linnet.tokenization import TokenizerCodec
from linnet.training.checkpoint import RunFolder
from linnet.training.settings import parse_setting, validated
from linnet.workbench.open import located, read_codec, read_run


def tokenizer_train(
    out: Path,
    data: Sequence[Path],
    *,
    sample: int | None = None,
    settings: Sequence[str] = (),
    counts: Path | None = None,
    force: bool = False,
    **options: Any,
) -> TokenizerRecord:
    """Learn a tokenizer and write its tokenizer.json; then check it on what it was learned from.

    `options` are settings, too: `kind`, `vocabulary`, `errors` and the like.
    """
    file = tokenizer_file(str(out))
    chosen = _settings(settings, options, (Reading, Tokenizing))
    reading, wanted = chosen[Reading], with_markers(chosen[Tokenizing], chosen[Reading].template)
    corpus = Corpus(tuple(located(data)), reading, sample)
    _refuse_output(corpus, file, force, "--out")
    _refuse_output(corpus, counts, force, "--counts")
    size = sum(source.size for source in corpus.sources())
    stream, characters = corpus.everything(count=size < 4 * SUPPORT * wanted.vocabulary)
    tally, began = Tally(), time.perf_counter()
    trained = train_tokenizer(shown(stream(tally), "tokenizer", corpus.sources(), tally), wanted, characters)
    seconds = time.perf_counter() - began
    checked = _Check(trained.codec, corpus, stream)
    tables = {} if counts is None else {counts: checked.count_lines()}
    write_texts({file: [trained.codec.content], **tables}, force=force)
    return checked.record(file, "trained", seconds, (*corpus.left_out(), *tally.remarks(), *trained.notes))


def tokenizer_check(
    tokenizer: Path,
    data: Sequence[Path],
    *,
    sample: int | None = None,
    settings: Sequence[str] = (),
    counts: Path | None = None,
    force: bool = False,
    **options: Any,
) -> TokenizerRecord:
    """What a tokenizer.json, a folder with one, or the tokenizer of a run does to these files."""
    codec = _codec(tokenizer)
    reading = _settings(settings, options, (Reading,))[Reading]
    corpus = Corpus(tuple(located(data)), reading, sample)
    _refuse_output(corpus, counts, force, "--counts")
    checked = _Check(codec, corpus, corpus.everything()[0])
    if counts is not None:
        write_lines(counts, checked.count_lines(), force=force)
    return checked.record(tokenizer, "checked", checked.seconds, (*corpus.left_out(), *checked.tally.remarks()))


class _Check:
    """Whether texts come back from a tokenizer, how short they get, and which tokens are never used."""

    def __init__(self, codec: TokenizerCodec, corpus: Corpus, stream: Stream) -> None:
        self.codec, self.tally = codec, Tally()
        self.counts = np.zeros(len(codec.tokens), np.int64)
        self.documents = self.characters = self.utf8_bytes = self.lossy = 0
        self.first_loss, self.seconds = "", 0.0
        for passage in shown(stream(self.tally), "check", corpus.sources(), self.tally):
            for part in passage.portions():
                self._add(part.texts)
        if not self.documents:
            raise BadInput(f"no documents in {', '.join(map(str, corpus.names))}: there is nothing to check")

    def _add(self, texts: list[str]) -> None:
        began = time.perf_counter()
        ids = self.codec.ids_of(texts)
        self.seconds += time.perf_counter() - began
        self.counts += np.bincount(self.codec.flat(ids)[0], minlength=len(self.counts))
        for text, back in zip(texts, self.codec.texts_of(ids), strict=True):
            if back != text:
                self.lossy += 1
                self.first_loss = self.first_loss or f"{text[:60]!r} becomes {back[:60]!r}"
        self.documents += len(texts)
        self.characters += sum(map(len, texts))
        self.utf8_bytes += sum(len(text.encode()) for text in texts)

    def count_lines(self) -> Iterator[str]:
        """`count<TAB>token` lines, the most frequent first, equal counts in the order of their bytes."""
        named = zip(self.counts.tolist(), self.codec.tokens, strict=True)
        return (f"{n}\t{token}\n" for n, token in sorted(named, key=lambda pair: (-pair[0], pair[1].encode())))

    def record(
        self, path: Path, action: Literal["trained", "checked"], seconds: float, notes: tuple[str, ...]
    ) -> TokenizerRecord:
        """The findings; the text was learned from or encoded in so many seconds."""
        codec, tokens = self.codec, int(self.counts.sum())
        framing = (codec.begin, codec.end)  # never in a text
        unused = [i for i in np.flatnonzero(self.counts == 0).tolist() if i not in framing]
        return TokenizerRecord(
            path=str(path),
            action=action,
            vocabulary=len(codec.tokens),
            documents=self.documents,
            characters=self.characters,
            utf8_bytes=self.utf8_bytes,
            tokens=tokens,
            characters_per_token=self.characters / max(1, tokens),
            unknown=0 if codec.unknown is None else int(self.counts[codec.unknown]),
            unused=len(unused),
            unused_examples=tuple(codec.tokens[i] for i in unused[:10]),
            lossless=self.lossy == 0,
            lossy_documents=self.lossy,
            first_loss=self.first_loss,
            seconds=seconds,
            megabytes_per_second=self.utf8_bytes / 1e6 / max(seconds, 1e-9),
            notes=notes,
        )


def _refuse_output(corpus: Corpus, file: Path | None, force: bool, option: str) -> None:
    """Nothing is ever written over the text that is read, whatever --force says."""
    if file is None:
        return
    refuse_existing(file, force=force, option=option)
    files = [source.name for source in corpus.sources() if source.form != "hf"]
    if file.exists() and any(os.path.samefile(name, file) for name in files):
        raise BadInput(f"{option} {file} is a file of the corpus itself; name another one")


def _codec(path: Path) -> TokenizerCodec:
    if not (path / "codec.json").is_file():
        return TokenizerCodec.read(path)
    codec = read_codec(RunFolder(path), read_run(RunFolder(path)))
    if not isinstance(codec, TokenizerCodec):
        raise BadInput(f"{path} is no run of text, so it has no tokenizer to check")
    return codec


def _settings(
    settings: Sequence[str], options: Mapping[str, Any], kinds: Sequence[type[BaseModel]]
) -> dict[type[BaseModel], Any]:
    """The settings of each kind, and a refusal of those that are of none."""
    given = dict(map(parse_setting, settings)) | {k: v for k, v in options.items() if v is not None}
    known = sorted({key for kind in kinds for key in kind.model_fields} - {"file"})
    if unknown := sorted(set(given) - set(known)):
        raise BadInput(f'--set: unknown key "{unknown[0]}"{nearest(unknown[0], known)}')
    return {
        kind: validated(kind, {k: v for k, v in given.items() if k in kind.model_fields}, "", "--set", known)
        for kind in kinds
    }
