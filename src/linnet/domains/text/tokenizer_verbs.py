"""Tokenizers by themselves: learn one from files, and see what one does to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from linnet.domains.text.checking import Findings, count_lines, examine
from linnet.domains.text.corpus import Corpus, Stream
from linnet.domains.text.meter import Meter
from linnet.domains.text.sources import Reading, Tally
from linnet.domains.text.tokenizer_training import SUPPORT, Tokenizing, train_tokenizer, with_markers
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
    file = out / "tokenizer.json" if out.is_dir() or not out.suffix else out
    refuse_existing(file, force=force)
    options = {"kind": kind, "vocabulary": vocabulary, "errors": errors}
    given = dict(map(parse_setting, settings)) | {k: v for k, v in options.items() if v is not None}
    reading, rest = _reading(given)
    wanted = _tokenizing(rest)
    if reading.template is not None:
        wanted = with_markers(wanted, reading.template)
    corpus = Corpus(tuple(located(data)), reading, sample)
    refuse_corpus(corpus, file, "--out")
    _refuse_counts(corpus, counts, force)
    size = sum(source.size for source in corpus.sources())
    meter, tally = Meter("tokenizer", len(corpus.sources()), size), Tally()
    stream, characters = corpus.everything(count=size < 4 * SUPPORT * wanted.vocabulary)
    trained = train_tokenizer(stream(tally), tally, wanted, meter=meter, characters=characters)
    found, _ = _examined(trained.codec, corpus, stream)
    tables = {} if counts is None else {counts: count_lines(trained.codec, found)}
    write_texts({file: [trained.codec.content], **tables}, force=force)
    notes = (*corpus.left_out(), *tally.remarks(), *trained.notes)
    return _record(file, trained.codec, found, "trained", trained.seconds, trained.text_bytes, notes)


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
    _refuse_counts(corpus, counts, force)
    stream, _ = corpus.everything()
    found, tally = _examined(codec, corpus, stream)
    if counts is not None:
        write_lines(counts, count_lines(codec, found), force=force)
    notes = (*corpus.left_out(), *tally.remarks())
    return _record(tokenizer, codec, found, "checked", found.seconds, found.utf8_bytes, notes)


def refuse_corpus(corpus: Corpus, file: Path, option: str) -> None:
    """Nothing is ever written over the text that is read, whatever --force says."""
    if file.exists() and any(
        source.form != "hf" and os.path.samefile(source.name, file) for source in corpus.sources()
    ):
        raise BadInput(f"{option} {file} is a file of the corpus itself; name another one")


def _refuse_counts(corpus: Corpus, counts: Path | None, force: bool) -> None:
    if counts is not None:
        refuse_existing(counts, force=force, option="--counts")
        refuse_corpus(corpus, counts, "--counts")


def _examined(codec: TokenizerCodec, corpus: Corpus, stream: Stream) -> tuple[Findings, Tally]:
    tally, sources = Tally(), corpus.sources()
    meter = Meter("check", len(sources), sum(source.size for source in sources))
    found = examine(codec, stream(tally), tally, meter)
    if not found.documents:
        raise BadInput(f"no documents in {', '.join(map(str, corpus.names))}: there is nothing to check")
    return found, tally


def _record(
    path: Path,
    codec: TokenizerCodec,
    found: Findings,
    action: Literal["trained", "checked"],
    seconds: float,
    text_bytes: int,
    notes: tuple[str, ...],
) -> TokenizerRecord:
    unused = found.unused(codec)
    return TokenizerRecord(
        path=str(path),
        action=action,
        vocabulary=len(codec.tokens),
        documents=found.documents,
        characters=found.characters,
        utf8_bytes=found.utf8_bytes,
        tokens=found.tokens,
        characters_per_token=found.characters / max(1, found.tokens),
        unknown=0 if codec.unknown is None else int(found.counts[codec.unknown]),
        unused=len(unused),
        unused_examples=tuple(codec.tokens[i] for i in unused[:10]),
        lossless=found.lossy == 0,
        lossy_documents=found.lossy,
        first_loss=found.first_loss,
        seconds=seconds,
        megabytes_per_second=text_bytes / 1e6 / max(seconds, 1e-9),
        notes=notes,
    )


def _codec(path: Path) -> TokenizerCodec:
    stored = path / "codec.json"
    if not stored.is_file():
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
    return Reading(**chosen), {key: value for key, value in given.items() if key not in READING}


def _tokenizing(given: dict[str, Any]) -> Tokenizing:
    known = sorted({*Tokenizing.model_fields, *READING} - {"file"})
    if unknown := sorted(set(given) - set(known)):
        raise BadInput(f'--set: unknown key "{unknown[0]}"{nearest(unknown[0], known)}')
    try:
        return Tokenizing.model_validate(given)
    except ValidationError as error:
        raise BadInput(f"--set: {explain(error, given, '', list(Tokenizing.model_fields))}") from None
