"""The token store: a corpus encoded once, in memory-mapped shards, with the place of every document.

A store is a folder: `manifest.json`, `codec.json`, `tokens-NNNNN.bin` and `rows-NNNNN.bin` a shard, `starts.bin`
and `sizes.bin`. A shard is written beside its name and renamed when it is whole, so that an interrupted encoding
goes on after the last whole shard. The memory in use does not depend on the size of the corpus.
Legend: a row is `[begin] + ids + [end]` of one document; starts = int64 [rows + 1] into all tokens; sizes = the
characters and bytes of each document, uint32 [rows, 2], and before them the tokens of its row in `rows-NNNNN.bin`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from linnet.domains.text.chat import Spans
from linnet.domains.text.finding import Source, hub_version
from linnet.domains.text.long_arrays import EveryTarget, Joined
from linnet.domains.text.meter import Meter
from linnet.domains.text.sources import Passage, Tally
from linnet.errors import BadInput
from linnet.files import in_words, locked, new_files, write_atomically
from linnet.rows import Rows
from linnet.tokenization import TokenizerCodec
from linnet.untrusted import read_object

FORMAT = 2
SHARD_TOKENS = 1 << 26
SIZE = np.dtype("<u4")
# Framed rows end to end, the sizes of each (int64 [rows, 3]: tokens, characters, bytes), and which tokens count.
EncodedRows = tuple[np.ndarray, np.ndarray, np.ndarray]


class Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceMark(Stored):
    """One source file as it was when it was encoded."""

    name: str
    size: int
    modified_ns: int
    sha256: str

    @classmethod
    def of(cls, source: Source) -> SourceMark:
        if source.form == "hf":
            return cls(name=source.name, size=0, modified_ns=0, sha256=hub_version(source.name))
        path = Path(source.name)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stat = path.stat()
        return cls(name=absolute(source), size=stat.st_size, modified_ns=stat.st_mtime_ns, sha256=digest)

    def changed(self) -> str:
        """How the file differs from this mark, or nothing; it is read again only if its time changed."""
        if self.name.startswith("hf:"):
            now = hub_version(
                self.name
            )  # a mark of an older linnet has none, and neither has one without a network
            return f"{self.name} has another version" if self.sha256 and now and now != self.sha256 else ""
        path = Path(self.name)
        if not path.is_file():
            return f"{path} is gone"
        stat = path.stat()
        if stat.st_size != self.size:
            return f"{path} has {stat.st_size:,} bytes, and had {self.size:,}"
        if stat.st_mtime_ns != self.modified_ns and SourceMark.of(Source(self.name, "text")).sha256 != self.sha256:
            return f"the content of {path} has changed"
        return ""


class Shard(Stored):
    tokens: int
    rows: int
    sha256: str


class Manifest(Stored):
    """What a store holds and what it was made from."""

    format: int = FORMAT
    dtype: str
    tokenizer: str  # fingerprint of the codec
    sources: tuple[SourceMark, ...]
    settings: dict[str, Any]  # how the sources were read and which documents were taken
    shards: tuple[Shard, ...] = ()
    characters: int = 0
    utf8_bytes: int = 0
    remarks: tuple[str, ...] = ()
    complete: bool = False

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Wanted:
    """What a store has to be made from; no tokenizer means that the store's own will do.

    `folder` is what a person knows as the store where this one is a part of it.
    """

    sources: tuple[Source, ...]
    settings: Mapping[str, Any]
    tokenizer: str | None = None
    folder: Path | None = None


def absolute(source: Source) -> str:
    return source.name if source.form == "hf" else str(Path(source.name).absolute())


def marks_of(sources: Iterable[Source]) -> tuple[SourceMark, ...]:
    return tuple(SourceMark.of(source) for source in sources)


def row_type(codec: TokenizerCodec) -> np.dtype[Any]:
    """Two bytes a token where the vocabulary allows it."""
    return np.dtype("<u2" if len(codec.tokens) <= 1 << 16 else "<u4")


def frame_rows(codec: TokenizerCodec, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with their begin and end tokens, end to end, and the lengths of the rows."""
    framed = lengths + (codec.begin is not None) + (codec.end is not None)
    stops = np.cumsum(framed)
    flat = np.empty(int(framed.sum()), row_type(codec))
    inner = np.ones(len(flat), bool)
    if codec.begin is not None:
        flat[stops - framed] = codec.begin
        inner[stops - framed] = False
    if codec.end is not None:
        flat[stops - 1] = codec.end
        inner[stops - 1] = False
    flat[inner] = ids
    return flat, framed


def encode_rows(codec: TokenizerCodec, passages: Iterable[Passage]) -> Iterator[EncodedRows]:
    """All documents, some hundred thousand characters at a time."""
    for passage in passages:
        for part in passage.portions():
            if part.answers is not None:
                yield _encode_answers(codec, part.texts, part.answers)
                continue
            flat, lengths = frame_rows(codec, *codec.encode_many(part.texts))
            characters = np.fromiter(map(len, part.texts), np.int64, len(part.texts))
            utf8_bytes = np.fromiter((len(text.encode()) for text in part.texts), np.int64, len(part.texts))
            scored = np.ones(len(flat), bool)
            scored[np.cumsum(lengths) - lengths] = False
            yield flat, np.stack([lengths, characters, utf8_bytes], axis=1), scored


def _encode_answers(codec: TokenizerCodec, texts: list[str], answers: list[Spans]) -> EncodedRows:
    """Rows of which only the answers count, and after an answer at the end of a text its end token.

    Answers are encoded by themselves, so that a prompt has the same tokens with and without one.
    """
    edges = [
        [0, *itertools.chain.from_iterable(spans), len(text)] for text, spans in zip(texts, answers, strict=True)
    ]
    bounds = [(text, *pair) for text, some in zip(texts, edges, strict=True) for pair in itertools.pairwise(some)]
    pieces = iter(codec.ids_of([text[first:last] for text, first, last in bounds]))  # every second one an answer
    head, tail = ([] if token is None else [token] for token in (codec.begin, codec.end))
    flat: list[int] = []
    scored: list[bool] = []
    sizes = []
    for text, spans in zip(texts, answers, strict=True):
        ids, marks = [*head], [False] * len(head)
        for number in range(2 * len(spans) + 1):
            piece = next(pieces)
            ids += piece
            marks += [number % 2 == 1] * len(piece)
        ids += tail
        marks += [spans[-1][1] == len(text)] * len(tail)
        marks[:1] = [False]
        flat += ids
        scored += marks
        written = [text[first:last] for first, last in spans]
        sizes.append((len(ids), sum(map(len, written)), sum(len(answer.encode()) for answer in written)))
    return np.array(flat, row_type(codec)), np.array(sizes, np.int64), np.array(scored)


@dataclass(frozen=True)
class Store:
    """A complete store. Its rows are what every batch plan reads."""

    folder: Path
    manifest: Manifest

    @property
    def codec(self) -> TokenizerCodec:
        return TokenizerCodec.from_json(_read_json(self.folder / "codec.json"))

    def rows(self) -> Rows:
        """The rows, memory-mapped."""
        dtype, shards = np.dtype(self.manifest.dtype), self.manifest.shards
        parts = [
            _mapped(_tokens_file(self.folder, i), dtype, shard.tokens, "tokens") for i, shard in enumerate(shards)
        ]
        starts = _mapped(self.folder / "starts.bin", np.dtype("<i8"), self.manifest.rows + 1, "row starts")
        sizes = _mapped(self.folder / "sizes.bin", SIZE, 2 * self.manifest.rows, "sizes").reshape(-1, 2)
        return Rows.of_ids(
            parts[0] if len(parts) == 1 else Joined(tuple(parts)),
            starts,
            EveryTarget(starts),
            sizes[:, 0],
            sizes[:, 1],
        ).identified(self.identity)

    @property
    def identity(self) -> str:
        said = [self.manifest.tokenizer, *(shard.sha256 for shard in self.manifest.shards)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]

    @property
    def token_bytes(self) -> int:
        return self.manifest.tokens * np.dtype(self.manifest.dtype).itemsize

    def verify(self, whole: Path | None = None) -> None:
        """Read every shard again and refuse one whose content is not the one that was written.

        `whole` is the folder that a person knows as the store.
        """
        advice = f"delete the store {whole or self.folder}, and it is encoded again"
        for i, shard in enumerate(self.manifest.shards):
            path = _tokens_file(self.folder, i)
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                    raise BadInput(f"{path} does not hold what was written to it: it is damaged; {advice}")
        starts = self.folder / "starts.bin"
        places = np.fromfile(starts, "<i8")
        if places[0] != 0 or places[-1] != self.manifest.tokens or (np.diff(places) < 1).any():
            raise BadInput(f"{starts} does not hold what was written to it: it is damaged; {advice}")
        rows = self.rows()
        if (rows.characters, rows.utf8_bytes) != (self.manifest.characters, self.manifest.utf8_bytes):
            sizes = self.folder / "sizes.bin"
            raise BadInput(f"{sizes} does not hold what was written to it: it is damaged; {advice}")


def open_store(folder: Path, wanted: Wanted | None = None) -> Store:
    """A complete store; refused when it is cut, unfinished, or (against `wanted`) made from something else."""
    manifest = _read_manifest(folder)
    if manifest is None:
        raise BadInput(f"{folder} holds no token store")
    if not manifest.complete:
        raise BadInput(
            f"the token store {folder} is unfinished ({manifest.rows:,} rows); encode it again to go on"
        )
    refuse_other(folder, manifest, wanted)
    store = Store(folder, manifest)
    store.rows()
    return store


def begun_with(folder: Path) -> TokenizerCodec | None:
    """The tokenizer of an encoding that was begun here, so that it goes on with the same one."""
    if _read_manifest(folder) is None:
        return None
    return TokenizerCodec.from_json(_read_json(folder / "codec.json"))


def refuse_stale(folder: Path, wanted: Wanted) -> None:
    """Refuse a store that was made from something else, or has lost its manifest, before any work is done."""
    found = _read_manifest(folder)
    if found is not None:
        refuse_other(folder, found, wanted)
    elif any(folder.glob("tokens-*.bin")):
        raise BadInput(
            f"the token store {wanted.folder or folder} is damaged: {folder / 'manifest.json'} is gone; "
            f"delete the folder {wanted.folder or folder}, and it is encoded again"
        )


def is_complete(folder: Path) -> bool:
    """Whether there is a store, and its encoding was finished."""
    manifest = _read_manifest(folder)
    return manifest is not None and manifest.complete


def write_store(
    folder: Path,
    codec: TokenizerCodec,
    wanted: Wanted,
    read: Callable[[Tally], Iterator[Passage]],
    *,
    remarks: tuple[str, ...] = (),
    meter: Meter | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Store:
    """The store of these documents: opened if it is there, finished if it was interrupted, else made."""
    if is_complete(folder):
        return open_store(folder, wanted)
    with in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):  # of processes that want the same store one makes it, and the others wait
        return _write_store(folder, codec, wanted, read, remarks, meter or Meter("encoding", 0, 0), shard_tokens)


def _write_store(
    folder: Path,
    codec: TokenizerCodec,
    wanted: Wanted,
    read: Callable[[Tally], Iterator[Passage]],
    remarks: tuple[str, ...],
    meter: Meter,
    shard_tokens: int,
) -> Store:
    found = _read_manifest(folder)
    if found is not None:
        refuse_other(folder, found, wanted)
        if found.complete:
            return open_store(folder, wanted)
    elif {name for name in os.listdir(folder) if not name.startswith(".")} - {"codec.json"}:
        raise BadInput(f"{folder} is not empty and holds no token store; name another folder")
    manifest = found or Manifest(
        dtype=row_type(codec).str,
        tokenizer=codec.fingerprint(),
        sources=marks_of(wanted.sources),
        settings=dict(wanted.settings),
        remarks=remarks,
    )
    _write_json(folder / "codec.json", codec.to_json())
    _write_manifest(folder, manifest)
    tally = Tally()

    def advance(utf8_bytes: int) -> None:
        meter.advance(tally, utf8_bytes)

    encoded = encode_rows(codec, _without_first(read(tally), manifest.rows))
    while (first := next(encoded, None)) is not None:
        manifest = _write_shard(folder, manifest, itertools.chain([first], encoded), shard_tokens, advance)
        _write_manifest(folder, manifest)
    meter.close(tally)
    if not manifest.rows:
        raise BadInput(f"no documents to encode into {folder}: this part of the corpus is empty")
    _write_starts(folder, manifest)
    _write_manifest(folder, manifest.model_copy(update={"complete": True}))
    return open_store(folder, wanted)


def _write_shard(
    folder: Path,
    manifest: Manifest,
    encoded: Iterator[EncodedRows],
    shard_tokens: int,
    advance: Callable[[int], None],
) -> Manifest:
    """Rows up to a number of tokens as one shard; returns the manifest with it."""
    number, dtype, digest = len(manifest.shards), np.dtype(manifest.dtype), hashlib.sha256()
    tokens = rows = characters = utf8_bytes = 0
    with (
        new_files([_tokens_file(folder, number), _rows_file(folder, number)]) as hidden,
        hidden[0].open("wb") as token_stream,
        hidden[1].open("wb") as size_stream,
    ):
        for flat, sizes, _ in encoded:
            ids = flat.astype(dtype)
            token_stream.write(ids.data)
            size_stream.write(sizes.astype(SIZE).data)
            digest.update(ids.data)
            tokens, rows = tokens + len(flat), rows + len(sizes)
            characters, utf8_bytes = characters + int(sizes[:, 1].sum()), utf8_bytes + int(sizes[:, 2].sum())
            advance(int(sizes[:, 2].sum()))
            if tokens >= shard_tokens:
                break
    shard = Shard(tokens=tokens, rows=rows, sha256=digest.hexdigest())
    return manifest.model_copy(
        update={
            "shards": (*manifest.shards, shard),
            "characters": manifest.characters + characters,
            "utf8_bytes": manifest.utf8_bytes + utf8_bytes,
        }
    )


def _without_first(passages: Iterator[Passage], done: int) -> Iterator[Passage]:
    """The documents after those that are stored already."""
    for passage in passages:
        skipped = min(done, len(passage.texts))
        done -= skipped
        if skipped < len(passage.texts):
            yield Passage(passage.texts[skipped:])


def _write_starts(folder: Path, manifest: Manifest) -> None:
    """The starts and sizes of all rows, in one file each."""
    paths, total = (folder / "starts.bin", folder / "sizes.bin"), 0
    with new_files(paths) as hidden, hidden[0].open("wb") as starts, hidden[1].open("wb") as sizes:
        starts.write(np.zeros(1, "<i8").data)
        for i, shard in enumerate(manifest.shards):
            rows = _mapped(_rows_file(folder, i), SIZE, 3 * shard.rows, "row sizes").reshape(-1, 3)
            for first in range(0, shard.rows, 1 << 20):
                some = rows[first : first + (1 << 20)]
                stops = total + np.cumsum(some[:, 0], dtype="<i8")
                starts.write(stops.data)
                sizes.write(np.ascontiguousarray(some[:, 1:]).data)
                total = int(stops[-1])


def refuse_other(folder: Path, found: Manifest, wanted: Wanted | None) -> None:
    """Refuse a store that was made from other sources, in another way, or with another tokenizer."""
    store = wanted.folder or folder if wanted is not None else folder
    advice = f"delete the folder {store} or name another one"
    if wanted is not None and (differing := _differences(found.settings, wanted.settings)):
        raise BadInput(f"the token store {store} is stale: {', '.join(differing)}; {advice}")
    if wanted is not None and (
        other := {mark.name for mark in found.sources} ^ {absolute(source) for source in wanted.sources}
    ):
        raise BadInput(f"the token store {store} is stale: it was made from other files ({min(other)}); {advice}")
    for mark in found.sources:
        if changed := mark.changed():
            raise BadInput(f"the token store {store} is stale: {changed}; {advice}")
    if wanted is not None and wanted.tokenizer not in (None, found.tokenizer):
        raise BadInput(
            f"the token store {store} was made with another tokenizer ({found.tokenizer}, "
            f"not {wanted.tokenizer}); {advice}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """The settings that differ, as `vocabulary was 600 and is 700`."""
    said = []
    for key in sorted({*before, *now}):
        was, is_now = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            said += _differences(was, is_now, f"{inside}{key}.")
        elif was != is_now:
            was, is_now = ("not set" if value is None else value for value in (was, is_now))
            said.append(f"{inside}{key} was {was} and is {is_now}")
    return said


def _mapped(path: Path, dtype: np.dtype[Any], count: int, what: str) -> np.ndarray:
    size = path.stat().st_size if path.is_file() else 0
    if size != count * dtype.itemsize:
        raise BadInput(
            f"{path} was cut: it has {size:,} bytes, and {count:,} {what} take {count * dtype.itemsize:,}; "
            f"delete the store {path.parent} and encode it again"
        )
    return np.memmap(path, dtype, "r", shape=(count,))


def _tokens_file(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.bin"


def _rows_file(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}.bin"


def _read_manifest(folder: Path) -> Manifest | None:
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    stored = _read_json(path)
    if isinstance(stored.get("format"), int) and stored["format"] > FORMAT:
        raise BadInput(f"{path} has format {stored['format']}, and this linnet reads up to {FORMAT}")
    if isinstance(stored.get("format"), int) and stored["format"] < FORMAT:
        raise BadInput(
            f"the token store {folder} is of an older linnet, and does not hold the size of each document, which "
            f"intervals need; delete the folder {folder}, and it is encoded again"
        )
    try:
        return Manifest.model_validate(stored)
    except ValidationError as error:
        raise BadInput(
            f"{path} is damaged: {error.errors()[0]['msg']}; delete the store and encode it again"
        ) from None


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    _write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except BadInput as error:
        raise BadInput(f"{error}; delete the store and encode it again") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
