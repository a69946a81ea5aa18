"""Where documents come from: text, JSON lines and Parquet files, plain or gzip, single or in folders.

Everything is read as a stream: the memory in use is that of one block, whatever the size of the corpus.
This module decides what a document is and whether its bytes are text; it knows nothing of tokens.
"""

from __future__ import annotations

import codecs
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from linnet.domains.text.chat import COLUMNS, Spans, Template, is_chat
from linnet.domains.text.finding import Source, files, hub_name, what_is_read
from linnet.errors import BadInput
from linnet.untrusted import Malformed, kind_of, opened, parse_json

BLOCK = 1 << 20  # bytes read at a time
PORTION = 1 << 20  # characters handed on at a time
LONGEST = 1 << 22  # characters; a longer document is cut at a space, and counted
LONGEST_ROW = 1 << 26  # characters of a line of JSON; a longer one is refused
MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x7fELF": "a program",
    b"BZh": "a bzip2 archive (only gzip is read)",
    b"\xfd7zXZ": "an xz archive (only gzip is read)",
    b"\x28\xb5\x2f\xfd": "a zstd archive (only gzip is read)",
    b"SQLite": "an SQLite database",
}
FIELD_ADVICE = "name the one with the text: --set field=NAME"
CHAT_ADVICE = (
    "these rows are conversations: --set template=chatml (or plain, or a text with {role} and {content}) says how "
    "they are written, and then only answers are scored"
)
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
BLANK_EDGES = re.compile(r"\A(?:[ \t]*\n)+|(?:\n[ \t]*)+\Z")


@dataclass(frozen=True)
class Reading:
    """What counts as a document, and what happens to bytes that are not UTF-8."""

    documents: Literal["line", "paragraph", "file"] = "line"  # of text files; JSON and Parquet: one a row
    field: str = "text"
    errors: Literal["strict", "replace"] = "strict"
    template: str | None = None  # of conversations; see `chat`


@dataclass
class Tally:
    """What was met while reading; it fills as the stream is consumed."""

    files: int = 0
    stored_bytes: int = 0  # how far the files were read, as they are stored
    documents: int = 0
    empty: int = 0
    cut: int = 0
    replaced: int = 0  # bytes that are no UTF-8
    nul: int = 0  # replaced as well
    halves: int = 0  # of surrogate pairs, replaced as well
    marks: int = 0  # files with a byte-order mark
    line_ends: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> tuple[str, ...]:
        """What a person should know about this corpus."""
        said = []
        if self.empty:
            said.append("1 empty document was" if self.empty == 1 else f"{self.empty:,} empty documents were")
            said[-1] += " left out"
        if self.cut:
            said.append(f"documents of more than {LONGEST:,} characters were cut at a space, {self.cut:,} times")
        if self.replaced:
            what = "character that is" if self.replaced == 1 else "characters that are"
            said.append(_replaced(self.replaced, f"{what} no UTF-8 text"))
        if self.nul:
            said.append(_replaced(self.nul, "NUL character" + "s" * (self.nul > 1)))
        if self.halves:
            half = "half of a surrogate pair" if self.halves == 1 else "halves of surrogate pairs"
            said.append(_replaced(self.halves, half))
        if self.marks:
            said.append(f"a byte-order mark was dropped at the start of {files(self.marks)}")
        if unusual := {name: n for name, n in self.line_ends.items() if name != "LF"}:
            listed = ", ".join(f"{files(n)} with {name}" for name, n in sorted(unusual.items()))
            said.append(f"line ends were read as LF: {listed}")
        return tuple(said)


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


def read_passages(sources: Iterable[Source], reading: Reading, tally: Tally) -> Iterator[Passage]:
    """All documents in order, some thousands at a time, without those that are empty."""
    for source in sources:
        before = tally.stored_bytes
        if source.form == "parquet":
            passages = _parquet_rows(source, reading, tally)
        elif source.form == "hf":
            passages = _hub_rows(source, reading, tally)
        elif source.form == "jsonl":
            passages = _json_rows(source, reading, tally)
        else:
            passages = _text_documents(source, reading, tally)
        for passage in passages:
            full = _without_empty(passage, tally)
            tally.documents += len(full.texts)
            if full.splits is not None:
                tally.splits.update(full.splits)
            if full.texts:
                yield full
        tally.files += 1
        tally.stored_bytes = before + source.size


def _without_empty(passage: Passage, tally: Tally) -> Passage:
    full = passage.keep([bool(text) and not text.isspace() for text in passage.texts])
    tally.empty += len(passage.texts) - len(full.texts)
    return full


# --- bytes to text -------------------------------------------------------------------------------


def _text_blocks(source: Source, reading: Reading, tally: Tally) -> Iterator[str]:
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
            text, used = _decode(data, final, offset, path, reading, tally)
            pending, offset = data[used:], offset + used
            yield ends.decode(text, final)
    kinds = {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}
    seen = (ends.newlines,) if isinstance(ends.newlines, str) else ends.newlines or ()
    tally.line_ends.update([" and ".join(sorted(kinds[end] for end in seen))] if seen else [])


def _decode(data: bytes, final: bool, offset: int, path: Path, reading: Reading, tally: Tally) -> tuple[str, int]:
    """As much text as these bytes hold, and how many of them it took."""
    zero = data.find(b"\0")
    if zero >= 0 and reading.errors == "strict":
        raise BadInput(
            f"{path}: byte {offset + zero:,} is NUL, which text does not contain; remove it, "
            "or read with --errors replace, which puts U+FFFD in its place"
        )
    try:
        text, used = codecs.utf_8_decode(data, reading.errors, final)
    except UnicodeDecodeError as error:
        bad = offset + error.start
        raise BadInput(
            f"{path}: byte {bad:,} (0x{data[error.start]:02x}) is not UTF-8; convert the file (if it is Latin-1: "
            f"iconv -f LATIN1 -t UTF-8 {path.name}), or read with --errors replace, which puts U+FFFD in its place"
        ) from error
    if reading.errors == "replace":
        tally.replaced += text.count("\ufffd") - data[:used].count(b"\xef\xbf\xbd")
        tally.nul += text.count("\0")
        text = text.replace("\0", "\ufffd")
    return text, used


def _refuse_binary(block: bytes, path: Path) -> None:
    for start, what in MAGIC.items():
        if block.startswith(start):
            raise BadInput(f"{path} is {what}, not text; {what_is_read()}")
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"{path} is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    head = block[:8192]
    if head and max(head[0::2].count(0), head[1::2].count(0)) * 3 > len(head):  # half of the bytes of Latin text
        order = "BE" if head[0] == 0 else "LE"
        raise BadInput(f"{path} looks like UTF-16 text; convert it: iconv -f UTF-16{order} -t UTF-8 {path.name}")
    controls = sum(head.count(bytes([c])) for c in range(32) if c not in b"\t\n\r\f\x1b")
    if controls * 10 > len(head):
        raise BadInput(
            f"{path} looks like a binary file: {controls:,} of its first {len(head):,} bytes are control "
            f"bytes; {what_is_read()}"
        )


# --- text to documents ---------------------------------------------------------------------------


def _text_documents(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    if reading.documents == "file":
        yield from _whole(source, reading, tally)
        return
    carry, open_end = "", False  # open_end: the document that carry belongs to began in an earlier passage
    for block in _text_blocks(source, reading, tally):
        text = carry + block
        parts = text.split("\n") if reading.documents == "line" else BLANK_LINES.split(text)
        carry = parts.pop()
        if parts:
            yield _documents(parts, open_end, reading)
            open_end = False
        while len(carry) > LONGEST:
            piece, carry = _cut(carry, tally)
            yield _documents([piece], open_end, reading)
            open_end = True
    if carry:
        yield _documents([carry], open_end, reading)


def _documents(parts: list[str], continues: bool, reading: Reading) -> Passage:
    if reading.documents == "line":
        return Passage(parts, continues=continues)
    return Passage(_paragraphs(parts), continues=continues and bool(_paragraphs(parts[:1])))


def _paragraphs(parts: list[str]) -> list[str]:
    """Parts between blank lines; what has nothing in it is no document, only more blank lines."""
    bare = (BLANK_EDGES.sub("", part) for part in parts)
    return [part for part in bare if part and not part.isspace()]


def _whole(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    held: list[str] = []
    continues = False
    for block in _text_blocks(source, reading, tally):
        held.append(block)
        if sum(map(len, held)) > LONGEST:
            piece, rest = _cut("".join(held), tally)
            held = [rest]
            yield Passage([piece], continues=continues)
            continues = True
    if rest := "".join(held):
        yield Passage([rest], continues=continues)


def _cut(text: str, tally: Tally) -> tuple[str, str]:
    """A first piece of at most LONGEST characters that ends at a white space where there is one."""
    place = max(text.rfind("\n", 0, LONGEST), text.rfind(" ", 0, LONGEST)) + 1 or LONGEST
    tally.cut += 1
    return text[:place], text[place:]


# --- rows to documents ---------------------------------------------------------------------------


def _json_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    carry, number = "", 0
    for block in _text_blocks(source, Reading(errors=reading.errors), tally):
        lines = (carry + block).split("\n")
        carry = lines.pop()
        if len(carry) > LONGEST_ROW:
            raise BadInput(
                f"{source.name}, row {number + len(lines) + 1:,}: more than {LONGEST_ROW:,} characters in one "
                "line; each line holds one object"
            )
        yield _parse_rows(lines, number, source.name, reading, tally)
        number += len(lines)
    yield _parse_rows([carry], number, source.name, reading, tally)


def _parse_rows(lines: list[str], number: int, name: str, reading: Reading, tally: Tally) -> Passage:
    rows, numbers = [], []
    for i, line in enumerate(lines, start=number + 1):
        if not line or line.isspace():
            continue
        where = f"{name}, row {i:,}"
        try:
            row = parse_json(line, where, half_characters=True)
        except Malformed as error:
            raise BadInput(f"{error}; each line holds one object, such as {_example(reading)}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: expected an object such as {_example(reading)}, not {type(row).__name__}")
        rows.append(row)
        numbers.append(i)
    splits = [str(row["split"]) for row in rows if "split" in row]
    if splits and len(splits) != len(rows):
        raise BadInput(
            f"{name}: {len(rows) - len(splits):,} rows near row {number + 1:,} have no split; give all one"
        )
    return _documents_of(rows, numbers, name, reading, tally)._replace(splits=splits or None)


def _documents_of(
    rows: Iterable[Mapping[str, Any]], numbers: Iterable[int], name: str, reading: Reading, tally: Tally
) -> Passage:
    """The documents of these rows: their text field, or what the template writes."""
    if reading.template is None:
        return Passage(
            [_text_of(row, f"{name}, row {i:,}", reading, tally) for i, row in zip(numbers, rows, strict=False)]
        )
    template, texts, answers = Template.of(reading.template), [], []
    for i, row in zip(numbers, rows, strict=False):
        where = f"{name}, row {i:,}"
        written = template.write(row, where)
        texts.append(_valid(written.text, where, reading, tally))
        answers.append(written.answers)
    return Passage(texts, answers=answers)


def _example(reading: Reading) -> str:
    if reading.template is None:
        return f'{{"{reading.field}": "..."}}'
    return '{"messages": [{"role": "user", "content": "..."}, ...]}'


def _text_of(row: Mapping[str, Any], where: str, reading: Reading, tally: Tally) -> str:
    """The text field of a row, refused when it is missing, no string, or no valid text."""
    if reading.field not in row:
        advice = f"name the one with the text: --set field=NAME; {CHAT_ADVICE}" if is_chat(row) else FIELD_ADVICE
        raise BadInput(
            f'{where}: no field "{reading.field}"; there is {", ".join(map(str, row)) or "nothing"}; {advice}'
        )
    text = row[reading.field]
    if not isinstance(text, str):
        raise BadInput(f'{where}: field "{reading.field}" holds {kind_of(text)}, not text')
    return _valid(text, f'{where}: field "{reading.field}"', reading, tally)


def _valid(text: str, where: str, reading: Reading, tally: Tally) -> str:
    """The text itself, of the same length, without what no file of text can hold."""
    if "\0" in text or not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        if reading.errors == "strict":
            raise BadInput(
                f"{where} holds NUL or half a surrogate pair; correct the row, "
                "or read with --errors replace, which puts U+FFFD in its place"
            )
        tally.nul += text.count("\0")
        whole, halves = re.subn("[\ud800-\udfff]", "\ufffd", text.replace("\0", "\ufffd"))
        tally.halves += halves
        return whole
    return text


def _parquet_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    try:
        import polars
    except ImportError as error:
        raise BadInput("Parquet files need polars: pip install linnet[text]") from error
    try:
        table = polars.scan_parquet(source.name)
        schema = table.collect_schema()
    except polars.exceptions.PolarsError as error:
        raise BadInput(f"{source.name} is no Parquet file: {str(error).splitlines()[0]}") from error
    wanted = (reading.field,) if reading.template is None else COLUMNS
    if not set(wanted) & set(schema):
        advice = CHAT_ADVICE if is_chat(schema) else FIELD_ADVICE
        raise BadInput(f'{source.name}: no column "{wanted[0]}"; there is {", ".join(schema)}; {advice}')
    if reading.template is None:
        if schema[reading.field] != polars.String:
            raise BadInput(f'{source.name}: column "{reading.field}" holds {schema[reading.field]}, not text')
        table = table.with_columns(polars.col(reading.field).fill_null(""))
    table, row = table.select(name for name in schema if name in wanted or name == "split"), 0
    try:
        for part in table.collect_batches(chunk_size=4096, maintain_order=True):
            numbers = range(row + 1, row + len(part) + 1)
            splits = [str(word) for word in part["split"].to_list()] if "split" in part.columns else None
            rows = part.iter_rows(named=True)
            yield _documents_of(rows, numbers, source.name, reading, tally)._replace(splits=splits)
            row += len(part)
    except polars.exceptions.PolarsError as error:
        raise BadInput(
            f"{source.name} cannot be read after row {row:,} ({str(error).splitlines()[0]}); write it again"
        ) from error


def _hub_rows(source: Source, reading: Reading, tally: Tally) -> Iterator[Passage]:
    """`hf:NAME[#CONFIG][@SPLIT]`: a data set of the Hugging Face hub, or a folder in its layout, streamed."""
    try:
        import datasets
    except ImportError as error:
        raise BadInput(f"{source.name} needs the datasets library: pip install linnet[datasets]") from error
    name, config, split = hub_name(source.name)
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
    except (ValueError, OSError, ConnectionError) as error:
        raise BadInput(f"{source.name} cannot be read: {error}") from error
    stream, number = iter(rows), 0
    while some := list(itertools.islice(stream, 4096)):
        yield _documents_of(some, range(number + 1, number + len(some) + 1), source.name, reading, tally)
        number += len(some)


def _replaced(count: int, what: str) -> str:
    return f"{count:,} {what} {'was' if count == 1 else 'were'} replaced by U+FFFD"
