"""Where documents come from: text, JSON lines, CSV and Parquet files, plain or gzip, single or in folders.

Everything is read as a stream: the memory in use is that of one block, whatever the size of the corpus.
This module decides what a document is and whether its bytes are text; it knows nothing of tokens.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, field_validator

from linnet.domains.text.chat import COLUMNS, Spans, Template, is_chat
from linnet.domains.text.finding import WHAT_IS_READ, Source, hub_name
from linnet.errors import BadInput, counted, library
from linnet.progress import Progress
from linnet.untrusted import Malformed, kind_of, opened, parse_json, refusing

BLOCK = 1 << 20  # bytes read at a time
PORTION = 1 << 20  # characters handed on at a time
LONGEST = 1 << 22  # characters; a longer document is cut at a space, and counted
LONGEST_ROW = 1 << 26  # characters of a line of rows; a longer one is refused
BATCH = 4096  # rows of Parquet files and of the hub read at a time
MAGIC = {
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 archive (only gzip is read)",
    b"\xfd7zXZ": "an xz archive (only gzip is read)",
    b"\x28\xb5\x2f\xfd": "a zstd archive (only gzip is read)",
}
FIELD_ADVICE = "name the one with the text: --set field=NAME"
CHAT_ADVICE = (
    "these rows are conversations: --set template=chatml (or plain, or a text with {role} and {content}) says how "
    "they are written, and then only answers are scored"
)
REPLACE_ADVICE = "or read with --errors replace, which puts U+FFFD there"
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
BLANK_EDGES = re.compile(r"\A(?:[ \t]*\n)+|(?:\n[ \t]*)+\Z")


class Reading(BaseModel):
    """What counts as a document, and what happens to bytes that are not UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: Literal["line", "paragraph", "file"] = "line"  # of text files; JSON and Parquet: one a row
    field: str = "text"
    errors: Literal["strict", "replace"] = "strict"
    template: str | None = None  # of conversations; see `chat`

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str | None) -> str | None:
        if value is not None:
            Template.of(value)
        return value


@dataclass
class Tally:
    """What was met while reading; it fills as the stream is consumed."""

    files: int = 0
    stored_bytes: int = 0  # how far the files were read, as they are stored
    documents: int = 0
    empty: int = 0
    cut: int = 0
    replaced: Counter[str] = field(default_factory=Counter)  # what could not stay, by its name
    marks: int = 0  # files with a byte-order mark
    line_ends: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> tuple[str, ...]:
        """What a person should know about this corpus."""
        found = []
        if self.empty:
            found.append(f"left out: {counted(self.empty, 'empty document')}")
        if self.cut:
            found.append(f"cut at a space, {self.cut:,} times: documents of more than {LONGEST:,} characters")
        found += [f"replaced by U+FFFD: {counted(n, what)}" for what, n in sorted(self.replaced.items()) if n]
        if self.marks:
            found.append(f"dropped: the byte-order mark of {counted(self.marks, 'file')}")
        unusual = {name: n for name, n in sorted(self.line_ends.items()) if name != "LF"}
        if listed := ", ".join(f"{counted(n, 'file')} with {name}" for name, n in unusual.items()):
            found.append(f"line ends read as LF: {listed}")
        return tuple(found)


class Passage(NamedTuple):
    """Some consecutive documents, and the word in their `split` column where there is one.

    Where a document was too long, `continues` says that the first text goes on with the document before it. Of
    documents that a template wrote, `answers` are the parts that are scored.
    """

    texts: list[str]
    splits: list[str] | None = None
    continues: bool = False
    answers: list[Spans] | None = None

    def keep(self, marks: Sequence[bool]) -> Passage:
        """Only the documents that are marked."""
        if all(marks):
            return self
        splits = None if self.splits is None else list(itertools.compress(self.splits, marks))
        answers = None if self.answers is None else list(itertools.compress(self.answers, marks))
        return Passage(list(itertools.compress(self.texts, marks)), splits, self.continues and marks[0], answers)

    def portions(self) -> Iterator[Passage]:
        """The documents in parts of about a million characters, which is what one call of a tokenizer is given."""
        first = held = 0
        for stop, text in enumerate(self.texts, start=1):
            held += len(text)
            if held >= PORTION or stop == len(self.texts):
                answers = None if self.answers is None else self.answers[first:stop]
                yield Passage(self.texts[first:stop], answers=answers)
                first, held = stop, 0


Stream = Callable[[Tally], Iterator[Passage]]  # documents that can be read again and again


def read_passages(sources: Iterable[Source], reading: Reading, tally: Tally) -> Iterator[Passage]:
    """All documents in order, some thousands at a time, without those that are empty."""
    read = {"text": _plain_text, "jsonl": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows, "hf": _hub_rows}
    for source in sources:
        before = tally.stored_bytes
        for passage in read[source.form](source, reading, tally):
            full = passage.keep([bool(text) and not text.isspace() for text in passage.texts])
            tally.empty += len(passage.texts) - len(full.texts)
            tally.documents += len(full.texts)
            if full.texts:
                yield full
        tally.files += 1
        tally.stored_bytes = before + source.size


def shown(passages: Iterable[Passage], what: str, sources: Sequence[Source], tally: Tally) -> Iterator[Passage]:
    """The same passages; how far they are is shown. The share that is done is of stored bytes."""
    size = 0
    with Progress(what, sum(source.size for source in sources), counted=False) as progress:
        for passage in passages:
            yield passage
            size += sum(len(text.encode()) for text in passage.texts)
            progress.update(
                tally.stored_bytes,
                f"{tally.files:,}/{len(sources):,} files",
                f"{tally.documents:,} documents",
                f"{size / 1e6:,.1f} MB",
                f"{size / 1e6 / max(progress.seconds, 1e-9):.1f} MB/s",
            )


# --- bytes to text -------------------------------------------------------------------------------


def _text_blocks(source: Source, errors: str, tally: Tally) -> Iterator[str]:
    """The text of a file in blocks, its line ends made LF."""
    path = Path(source.name)
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    before, offset, pending, first, final = tally.stored_bytes, 0, b"", True, False
    with opened(path) as stream:
        while not final:
            block = stream.read(BLOCK)
            final = not block
            tally.stored_bytes = before + os.lseek(stream.fileno(), 0, os.SEEK_CUR)
            if first:
                first = False
                _refuse_binary(block, path)
                if block.startswith(codecs.BOM_UTF8):
                    tally.marks += 1
                    block, offset = block[3:], 3
            data = pending + block
            text, used = _decode(data, final, offset, path, errors, tally)
            pending, offset = data[used:], offset + used
            yield ends.decode(text, final)
    kinds = {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}
    seen = (ends.newlines,) if isinstance(ends.newlines, str) else ends.newlines or ()
    tally.line_ends.update([" and ".join(sorted(kinds[end] for end in seen))] if seen else [])


def _decode(data: bytes, final: bool, offset: int, path: Path, errors: str, tally: Tally) -> tuple[str, int]:
    """As much text as these bytes hold, and how many of them it took."""
    zero = data.find(b"\0")
    if zero >= 0 and errors == "strict":
        raise BadInput(
            f"{path}: byte {offset + zero:,} is NUL, which text does not contain; remove it, {REPLACE_ADVICE}"
        )
    try:
        text, used = codecs.utf_8_decode(data, errors, final)
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: byte {offset + error.start:,} (0x{data[error.start]:02x}) is not UTF-8; convert the file "
            f"(if it is from Windows: iconv -f WINDOWS-1252 -t UTF-8 {path.name}), {REPLACE_ADVICE}"
        ) from error
    if errors == "replace":
        own = data[:used].count(b"\xef\xbf\xbd")
        tally.replaced.update(
            {"invalid UTF-8 character": text.count("\ufffd") - own, "NUL character": text.count("\0")}
        )
        text = text.replace("\0", "\ufffd")
    return text, used


def _refuse_binary(block: bytes, path: Path) -> None:
    for start, what in MAGIC.items():
        if block.startswith(start):
            raise BadInput(f"{path} is {what}, not text; {WHAT_IS_READ}")
    head, marked = block[:8192], block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked or max(head[0::2].count(0), head[1::2].count(0)) * 3 > len(head):  # half of the bytes of Latin text
        order = "" if marked else "BE" if head[0] == 0 else "LE"
        raise BadInput(f"{path} is UTF-16 text; convert it: iconv -f UTF-16{order} -t UTF-8 {path.name}")
    controls = sum(head.count(bytes([c])) for c in range(32) if c not in b"\t\n\r\f\x1b")
    if controls * 10 > len(head):
        raise BadInput(
            f"{path} looks like a binary file: {controls:,} of its first {len(head):,} bytes are control "
            f"bytes; {WHAT_IS_READ}"
        )


# --- text to documents ---------------------------------------------------------------------------


def _plain_text(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    if reading.template is not None:
        raise BadInput(f"{source.name} is plain text, and data.template writes rows of JSON lines or Parquet")
    whole, lines = (reading.documents == kind for kind in ("file", "line"))
    carry, continues = "", False  # continues: the document that carry belongs to began in an earlier passage
    for block in _text_blocks(source, reading.errors, tally):
        text = carry + block
        parts = [text] if whole else text.split("\n") if lines else BLANK_LINES.split(text)
        carry = parts.pop()
        if parts:
            yield _documents(parts, continues, reading)
            continues = False
        while len(carry) > LONGEST:
            index = max(carry.rfind("\n", 0, LONGEST), carry.rfind(" ", 0, LONGEST)) + 1 or LONGEST
            tally.cut += 1
            yield _documents([carry[:index]], continues, reading)
            carry, continues = carry[index:], True
    if carry:
        yield _documents([carry], continues, reading)


def _documents(parts: list[str], continues: bool, reading: Reading) -> Passage:
    if reading.documents != "paragraph":
        return Passage(parts, continues=continues)
    texts = [BLANK_EDGES.sub("", part) for part in parts]
    full = [text for text in texts if text and not text.isspace()]  # more blank lines are no empty document
    return Passage(full, continues=continues and full[:1] == texts[:1])


# --- rows to documents ---------------------------------------------------------------------------


def _json_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    number = 0
    for lines in _lines(source, reading, tally):
        yield _parse_rows(lines, number, source.name, reading, tally)
        number += len(lines)


def _csv_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    """The rows of a CSV or TSV file, whose first line names its columns."""
    csv.field_size_limit(LONGEST_ROW)
    lines = (f"{line}\n" for some in _lines(source, reading, tally) for line in some)
    table = csv.DictReader(lines, delimiter="\t" if ".tsv" in source.name.lower() else ",")
    with refusing(f"{source.name} is no table that can be read", csv.Error):
        while rows := dict(itertools.islice(enumerate(table, start=2), BATCH)):
            yield _documents_of(rows, source.name, reading, tally)


def _lines(source: Source, reading: Reading, tally: Tally) -> Iterator[list[str]]:
    """The lines of each block of a file, without their ends."""
    carry, number = "", 0
    for block in _text_blocks(source, reading.errors, tally):
        *lines, carry = (carry + block).split("\n")
        number += len(lines)
        if len(carry) > LONGEST_ROW:
            raise BadInput(f"{source.name}, row {number + 1:,}: more than {LONGEST_ROW:,} characters in one line")
        yield lines
    yield [carry]


def _parse_rows(lines: list[str], number: int, name: str, reading: Reading, tally: Tally) -> Passage:
    rows: dict[int, Mapping[str, Any]] = {}
    example = f'{{"{reading.field}": "..."}}' if reading.template is None else '{"messages": [...]}'
    for i, line in enumerate(lines, start=number + 1):
        if not line or line.isspace():
            continue
        where = f"{name}, row {i:,}"
        try:
            row = parse_json(line, where, half_characters=True)
        except Malformed as error:
            raise BadInput(f"{error}; each line holds one object, such as {example}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: expected an object such as {example}, not {kind_of(row)}")
        rows[i] = row
    return _documents_of(rows, name, reading, tally)


def _documents_of(rows: Mapping[int, Mapping[str, Any]], name: str, reading: Reading, tally: Tally) -> Passage:
    """The documents of numbered rows: their text field, or what the template writes; and their splits."""
    splits = [str(row["split"]) for row in rows.values() if "split" in row] or None
    if splits and len(splits) != len(rows):
        first = next(i for i, row in rows.items() if "split" not in row)
        raise BadInput(f'{name}, row {first:,}: no "split", which rows near it have; give all one')
    if reading.template is None:
        return Passage([_text_of(row, f"{name}, row {i:,}", reading, tally) for i, row in rows.items()], splits)
    template, named = Template.of(reading.template), [f"{name}, row {i:,}" for i in rows]
    written = [template.write(row, where) for row, where in zip(rows.values(), named, strict=True)]
    texts = [_valid(one.text, where, reading.errors, tally) for one, where in zip(written, named, strict=True)]
    return Passage(texts, splits, answers=[one.answers for one in written])


def _text_of(row: Mapping[str, Any], where: str, reading: Reading, tally: Tally) -> str:
    """The text field of a row, refused when it is missing, no string, or no valid text."""
    if reading.field not in row:
        advice = CHAT_ADVICE if is_chat(row) else FIELD_ADVICE
        raise BadInput(
            f'{where}: no field "{reading.field}"; there is {", ".join(map(str, row)) or "nothing"}; {advice}'
        )
    text = row[reading.field]
    if not isinstance(text, str):
        raise BadInput(f'{where}: field "{reading.field}" holds {kind_of(text)}, not text')
    return _valid(text, f'{where}: field "{reading.field}"', reading.errors, tally)


def _valid(text: str, where: str, errors: str, tally: Tally) -> str:
    """The text itself, or one of the same length without what no file of text can hold."""
    if "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)):
        return text
    if errors == "strict":
        raise BadInput(f"{where} holds NUL or half a surrogate pair; correct the row, {REPLACE_ADVICE}")
    whole, halves = re.subn("[\ud800-\udfff]", "\ufffd", text.replace("\0", "\ufffd"))
    tally.replaced.update({"NUL character": text.count("\0"), "half surrogate pair": halves})
    return whole


def _parquet_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    polars = library("polars", "Parquet files need polars", "text")
    row = 0
    try:
        table = polars.scan_parquet(source.name)
        schema = table.collect_schema()
        wanted = (reading.field,) if reading.template is None else COLUMNS
        if not set(wanted) & set(schema):
            advice = CHAT_ADVICE if is_chat(schema) else FIELD_ADVICE
            raise BadInput(f'{source.name}: no column "{wanted[0]}"; there is {", ".join(schema)}; {advice}')
        if reading.template is None:
            if schema[reading.field] != polars.String:
                raise BadInput(f'{source.name}: column "{reading.field}" holds {schema[reading.field]}, not text')
            table = table.with_columns(polars.col(reading.field).fill_null(""))
        table = table.select(name for name in schema if name in wanted or name == "split")
        for part in table.collect_batches(chunk_size=BATCH, maintain_order=True):
            rows = dict(enumerate(part.iter_rows(named=True), start=row + 1))
            yield _documents_of(rows, source.name, reading, tally)
            row += len(part)
    except polars.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{source.name} is no Parquet file, or damaged after row {row:,}: {reason}") from error


def _hub_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    """A data set of the hub, streamed."""
    datasets = library("datasets", f"{source.name} needs the datasets library", "datasets")
    name, config, split = hub_name(source.name)
    try:
        rows = enumerate(datasets.load_dataset(name, config, split=split, streaming=True), start=1)
    except (ValueError, OSError, ConnectionError) as error:
        raise BadInput(f"{source.name} cannot be read: {error}") from error
    while some := dict(itertools.islice(rows, BATCH)):
        yield _documents_of(some, source.name, reading, tally)
