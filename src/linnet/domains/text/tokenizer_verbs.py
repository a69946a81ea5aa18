"""Tokenizers by themselves: learn one from files, and see what one does to files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from linnet.domains.text.chat import Template
from linnet.domains.text.corpus import Corpus
from linnet.domains.text.sources import Meter, Reading, Tally
from linnet.domains.text.store import Stream
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
from linnet.training.settings import explain, parse_setting
from linnet.workbench.open import located, read_codec, read_run

READING: dict[str, Any] = {"documents": "line", "field": "text", "errors": "strict", "template": None}


def tokenizer_train(
    out: Path,
    data: Sequence[Path],
    *,
    kind: str | None = None,
    vocabulary: int | None = None,
    sample: int | None = None,
    errors: str | None = None,
    settings: Sequence[str] = (),
    counts: Path | None = None,
    force: bool = False,
) -> TokenizerRecord:
    """Learn a tokenizer and write its tokenizer.json; then check it on what it was learned from."""
    file = tokenizer_file(str(out))
    options = {"kind": kind, "vocabulary": vocabulary, "errors": errors}
    given = dict(map(parse_setting, settings)) | {k: v for k, v in options.items() if v is not None}
    reading, rest = _reading(given)
    wanted = _tokenizing(rest)
    if reading.template is not None:
        wanted = with_markers(wanted, reading.template)
    corpus = Corpus(tuple(located(data)), reading, sample)
    _refuse_output(corpus, file, force, "--out")
    _refuse_output(corpus, counts, force, "--counts")
    size = sum(source.size for source in corpus.sources())
    stream, characters = corpus.everything(count=size < 4 * SUPPORT * wanted.vocabulary)
    tally, meter = Tally(), Meter("tokenizer", corpus.sources())
    trained = train_tokenizer(stream(tally), tally, wanted, meter=meter, characters=characters)
    checked = _Check(trained.codec, corpus, stream)
    tables = {} if counts is None else {counts: checked.count_lines()}
    write_texts({file: [trained.codec.content], **tables}, force=force)
    notes = (*corpus.left_out(), *tally.remarks(), *trained.notes)
    return checked.record(file, "trained", trained.seconds, trained.text_bytes, notes)


def tokenizer_check(
    tokenizer: Path,
    data: Sequence[Path],
    *,
    sample: int | None = None,
    settings: Sequence[str] = (),
    counts: Path | None = None,
    force: bool = False,
) -> TokenizerRecord:
    """What a tokenizer.json, a folder with one, or the tokenizer of a run does to these files."""
    codec = _codec(tokenizer)
    reading, rest = _reading(dict(map(parse_setting, settings)))
    if rest:
        raise BadInput(f'--set: unknown key "{min(rest)}"{nearest(min(rest), READING)}')
    corpus = Corpus(tuple(located(data)), reading, sample)
    _refuse_output(corpus, counts, force, "--counts")
    checked = _Check(codec, corpus, corpus.everything()[0])
    if counts is not None:
        write_lines(counts, checked.count_lines(), force=force)
    notes = (*corpus.left_out(), *checked.tally.remarks())
    return checked.record(tokenizer, "checked", checked.seconds, checked.utf8_bytes, notes)


class _Check:
    """Whether texts come back from a tokenizer, how short they get, and which tokens are never used."""

    def __init__(self, codec: TokenizerCodec, corpus: Corpus, stream: Stream) -> None:
        self.codec, self.tally = codec, Tally()
        self.counts = np.zeros(len(codec.tokens), np.int64)
        self.documents = self.characters = self.utf8_bytes = self.lossy = 0
        self.first_loss, self.seconds = "", 0.0
        meter = Meter("check", corpus.sources())
        for passage in stream(self.tally):
            for part in passage.portions():
                before = self.utf8_bytes
                self._add(part.texts)
                meter.advance(self.tally, self.utf8_bytes - before)
        meter.close(self.tally)
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
        self, path: Path, action: Literal["trained", "checked"], seconds: float, size: int, notes: tuple[str, ...]
    ) -> TokenizerRecord:
        """The findings; `size` bytes of text were read in so many seconds."""
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
            megabytes_per_second=size / 1e6 / max(seconds, 1e-9),
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


def _reading(given: dict[str, Any]) -> tuple[Reading, dict[str, Any]]:
    """How files are read, and the settings that say something else."""
    chosen = {key: given.get(key, default) for key, default in READING.items()}
    for key, allowed in (("documents", ("line", "paragraph", "file")), ("errors", ("strict", "replace"))):
        if chosen[key] not in allowed:
            raise BadInput(f"{key} is one of {', '.join(allowed)}, not {chosen[key]!r}")
    if chosen["template"] is not None:
        Template.of(str(chosen["template"]))
    return Reading(**chosen), {key: value for key, value in given.items() if key not in READING}


def _tokenizing(given: dict[str, Any]) -> Tokenizing:
    known = sorted({*Tokenizing.model_fields, *READING} - {"file"})
    if unknown := sorted(set(given) - set(known)):
        raise BadInput(f'--set: unknown key "{unknown[0]}"{nearest(unknown[0], known)}')
    try:
        return Tokenizing.model_validate(given)
    except ValidationError as error:
        raise BadInput(f"--set: {explain(error, given, '', list(Tokenizing.model_fields))}") from None
