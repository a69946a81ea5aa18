"""The token store: the parts of a corpus encoded once, in memory-mapped files.

A store is a folder: `manifest.json`, `codec.json`, and for each part `PART-tokens.bin`, `PART-scored.bin`,
`PART-starts.bin` and `PART-sizes.bin`. These grow by segments, and the manifest counts a segment when it is on the
disk: an interrupted encoding goes on after the last one. The memory in use does not grow with the corpus.
Legend: scored = bool [tokens]; starts = int64 [rows + 1] into all tokens of a part; sizes = uint32 [rows, 2],
characters and bytes of the scored text of each document.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from linnet.domains.text.encoding import Encoded, encoded, token_type
from linnet.domains.text.finding import Source, hub_version
from linnet.domains.text.sources import Passage, Stream, Tally, shown
from linnet.errors import BadInput
from linnet.files import in_words, locked, sync, write_atomically
from linnet.rows import Rows
from linnet.tokenization import TokenizerCodec
from linnet.untrusted import mistake_text, read_object

FORMAT = 3
SEGMENT_TOKENS = 1 << 26
START, SIZE, MARK = np.dtype("<i8"), np.dtype("<u4"), np.dtype(bool)
MANIFEST, CODEC = "manifest.json", "codec.json"


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
        name = absolute(source)
        return cls(name=name, size=source.size, modified_ns=source.modified, sha256=_sha256(Path(name)))

    def changed(self) -> str:
        """How the file differs from this mark, or nothing; it is read again only if its time changed."""
        if self.name.startswith("hf:"):
            now = hub_version(self.name)  # without a network there is none, neither here nor in the mark
            return f"{self.name} has another version" if self.sha256 and now and now != self.sha256 else ""
        path = Path(self.name)
        if not path.is_file():
            return f"{path} is gone"
        stat = path.stat()
        if stat.st_size != self.size:
            return f"{path} has {stat.st_size:,} bytes, and had {self.size:,}"
        if stat.st_mtime_ns != self.modified_ns and _sha256(path) != self.sha256:
            return f"the content of {path} has changed"
        return ""


class Segment(Stored):
    """What was written to a part at a time: so many tokens and rows, and the hash of the tokens."""

    tokens: int
    rows: int
    sha256: str


class StoredPart(Stored):
    segments: tuple[Segment, ...] = ()
    characters: int = 0
    utf8_bytes: int = 0
    targets: int = 0
    complete: bool = False

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)


class Manifest(Stored):
    """What a store holds and what it was made from."""

    format: int = FORMAT
    dtype: Literal["<u2", "<u4"]
    tokenizer: str  # fingerprint of the codec
    sources: tuple[SourceMark, ...]
    settings: dict[str, Any]  # how the sources were read and which documents were taken
    parts: dict[str, StoredPart]
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.parts.values())


class Origin(NamedTuple):
    """What a store has to be made from; no tokenizer means that the store's own will do."""

    sources: tuple[Source, ...]
    settings: Mapping[str, Any]
    tokenizer: str | None = None


@dataclass(frozen=True)
class Store:
    """Its rows are what every batch plan reads."""

    folder: Path
    manifest: Manifest

    @property
    def codec(self) -> TokenizerCodec:
        return TokenizerCodec.from_json(_read_json(self.folder / CODEC))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest.dtype)

    @property
    def token_bytes(self) -> int:
        return sum(part.tokens for part in self.manifest.parts.values()) * self.dtype.itemsize

    def part(self, name: str) -> StoredPart:
        if name not in self.manifest.parts:
            raise BadInput(f"{self.folder / MANIFEST} names no {name} part; delete the store {self.folder}")
        return self.manifest.parts[name]

    def rows(self, name: str) -> Rows:
        """The rows of a part, memory-mapped; refused where a file was cut."""
        part = self.part(name)
        tokens = self._mapped(name, "tokens", self.dtype, part.tokens)
        scored = self._mapped(name, "scored", MARK, part.tokens)
        starts = self._mapped(name, "starts", START, part.rows + 1)
        sizes = self._mapped(name, "sizes", SIZE, 2 * part.rows).reshape(-1, 2)
        template = filter(None, [self.manifest.settings.get("template")])
        hashed = [self.manifest.tokenizer, *(segment.sha256 for segment in part.segments), *template]
        identity = hashlib.sha256("\n".join(hashed).encode()).hexdigest()[:16]
        return Rows.of_ids(tokens, starts, scored, sizes[:, 0], sizes[:, 1]).identified(identity)

    def verify(self) -> None:
        """Read everything again and refuse a file whose content is not the one that was written."""
        vocabulary = len(self.codec.tokens)
        for name, part in self.manifest.parts.items():
            with self._file(name, "tokens").open("rb") as stream:
                for segment in part.segments:
                    content = stream.read(segment.tokens * self.dtype.itemsize)
                    self._refuse_unless(hashlib.sha256(content).hexdigest() == segment.sha256, name, "tokens")
                    known = np.frombuffer(content, self.dtype).max(initial=0) < vocabulary
                    self._refuse_unless(bool(known), name, "tokens")
            starts, rows = np.fromfile(self._file(name, "starts"), START), self.rows(name)
            rising = starts[0] == 0 and starts[-1] == part.tokens and bool((np.diff(starts) > 0).all())
            self._refuse_unless(rising, name, "starts")
            sums = (rows.characters, rows.utf8_bytes) == (part.characters, part.utf8_bytes)
            self._refuse_unless(sums, name, "sizes")
            self._refuse_unless(rows.targets == part.targets, name, "scored")

    def filled(self, name: str, read: Stream, sources: tuple[Source, ...], most: int) -> Store:
        """The store with the rest of a part's documents, written about `most` tokens at a time."""
        store, part, tally = self, self.part(name), Tally()
        rest = _without_first(read(tally), part.rows)
        blocks = encoded(self.codec, shown(rest, f"encoding {name}", sources, tally))
        while (first := next(blocks, None)) is not None:
            part = store._append(name, part, itertools.chain([first], blocks), most)
            store = store._with(name, part)
        if not part.rows:
            raise BadInput(f"no documents to encode into {self.folder}: the {name} part of the corpus is empty")
        return store._with(name, part.model_copy(update={"complete": True}))

    def _append(self, name: str, part: StoredPart, blocks: Iterator[Encoded], most: int) -> StoredPart:
        """One more segment, after what the manifest knows of; the part with it."""
        digest, rows, targets, totals = hashlib.sha256(), 0, 0, np.zeros(3, np.int64)
        kept = {"tokens": part.tokens * self.dtype.itemsize, "scored": part.tokens}
        kept |= {"starts": 8 * (part.rows + 1), "sizes": 8 * part.rows}
        with in_words(self.folder), contextlib.ExitStack() as stack:
            streams = {what: stack.enter_context(self._file(name, what).open("ab")) for what in kept}
            for what, size in kept.items():
                self._refuse_unless(streams[what].tell() >= size or part.rows == 0, name, what)
                streams[what].truncate(size)  # a new file of starts holds its first, 0
            tokens, scored, starts, sizes = streams.values()
            for block in blocks:
                content = block.ids.astype(self.dtype).data
                tokens.write(content)
                digest.update(content)
                scored.write(block.scored.data)
                starts.write((part.tokens + totals[0] + np.cumsum(block.sizes[:, 0])).astype(START).data)
                sizes.write(block.sizes[:, 1:].astype(SIZE, order="C").data)
                rows, totals = rows + len(block.sizes), totals + block.sizes.sum(0)
                targets += int(np.count_nonzero(block.scored))
                if totals[0] >= most:
                    break
            stack.close()
            for what in kept:
                sync(self._file(name, what))
        segment = Segment(tokens=int(totals[0]), rows=rows, sha256=digest.hexdigest())
        return StoredPart(
            segments=(*part.segments, segment),
            characters=part.characters + int(totals[1]),
            utf8_bytes=part.utf8_bytes + int(totals[2]),
            targets=part.targets + targets,
        )

    def _with(self, name: str, part: StoredPart) -> Store:
        """The store with this part as it is now, in its manifest too."""
        manifest = self.manifest.model_copy(update={"parts": self.manifest.parts | {name: part}})
        _write_json(self.folder / MANIFEST, manifest.model_dump(mode="json"))
        return Store(self.folder, manifest)

    def _file(self, part: str, what: str) -> Path:
        return self.folder / f"{part}-{what}.bin"

    def _mapped(self, name: str, what: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        path, wanted = self._file(name, what), count * dtype.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != wanted:
            raise BadInput(
                f"{path} was cut: it has {size:,} bytes instead of {wanted:,}; "
                f"delete the store {self.folder}, and it is encoded again"
            )
        return np.memmap(path, dtype, "r", shape=(count,))

    def _refuse_unless(self, same: bool, name: str, what: str) -> None:
        if not same:
            raise BadInput(
                f"{self._file(name, what)} does not hold what was written to it: it is damaged; "
                f"delete the store {self.folder}, and it is encoded again"
            )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of several processes that want the same store one makes it, and the others wait."""
    with in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):
        yield


def find_store(folder: Path, origin: Origin | None = None) -> Store | None:
    """The store in a folder, complete or begun; refused when it was made from something else, or damaged."""
    if not (folder / MANIFEST).is_file():
        names = {name for name in os.listdir(folder) if not name.startswith(".")} if folder.is_dir() else set()
        if names - {CODEC}:
            raise BadInput(
                f"{folder} is not empty and holds no token store of this linnet: there is no {MANIFEST}; "
                "name another folder, or delete it if it was a store"
            )
        return None
    found = _read_manifest(folder)
    if reason := _difference(found, origin):
        advice = f"delete the folder {folder} or name another one"
        raise BadInput(f"the token store {folder} is stale: {reason}; {advice}")
    return Store(folder, found)


def open_store(folder: Path, origin: Origin | None = None) -> Store:
    """A complete store."""
    store = find_store(folder, origin)
    if store is None:
        raise BadInput(f"{folder} holds no token store")
    if not store.manifest.complete:
        rows = sum(part.rows for part in store.manifest.parts.values())
        raise BadInput(f"the token store {folder} is unfinished ({rows:,} rows); encode it again to go on")
    if store.codec.fingerprint() != store.manifest.tokenizer:
        raise BadInput(f"{folder / CODEC} is not the tokenizer that encoded the store; delete the store {folder}")
    for name in store.manifest.parts:
        store.rows(name)
    return store


def write_store(
    folder: Path,
    codec: TokenizerCodec,
    origin: Origin,
    parts: Mapping[str, Stream],
    *,
    remarks: tuple[str, ...] = (),
    segment_tokens: int = SEGMENT_TOKENS,
) -> Store:
    """The store of these documents: opened if it is there, finished if it was interrupted, else made.

    Whoever calls this is `alone` with the folder.
    """
    store = find_store(folder, origin)
    if store is None:
        manifest = Manifest(
            dtype=token_type(codec).str,
            tokenizer=codec.fingerprint(),
            sources=tuple(map(SourceMark.of, origin.sources)),
            settings=dict(origin.settings),
            parts={name: StoredPart() for name in parts},
            remarks=remarks,
        )
        _write_json(folder / CODEC, codec.to_json())
        _write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
        store = Store(folder, manifest)
    for name, read in parts.items():
        if not store.part(name).complete:
            store = store.filled(name, read, origin.sources, segment_tokens)
    return open_store(folder, origin)


def _without_first(passages: Iterator[Passage], done: int) -> Iterator[Passage]:
    """The documents after those that are stored already."""
    for passage in passages:
        skipped = min(done, len(passage.texts))
        done -= skipped
        if skipped < len(passage.texts):
            yield passage.keep([i >= skipped for i in range(len(passage.texts))])


def absolute(source: Source) -> str:
    return source.name if source.form == "hf" else str(Path(source.name).absolute())


def _difference(found: Manifest, origin: Origin | None) -> str:
    """How a store differs from what it has to be made from, or how its sources have changed."""
    if origin is not None:
        if differing := _differences(found.settings, origin.settings):
            return ", ".join(differing)
        if other := {mark.name for mark in found.sources} ^ set(map(absolute, origin.sources)):
            return f"it was made from other files ({min(other)})"
    if changed := next(filter(None, (mark.changed() for mark in found.sources)), ""):
        return changed
    if origin is not None and origin.tokenizer not in (None, found.tokenizer):
        return f"it was made with another tokenizer ({found.tokenizer}, not {origin.tokenizer})"
    return ""


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, as `vocabulary was 600 and is 700`."""
    was, is_now = map(_flat, (before, now))
    pairs = {key: (was.get(key), is_now.get(key)) for key in sorted({*was, *is_now})}
    words = {key: ["not set" if value is None else value for value in pair] for key, pair in pairs.items()}
    return [f"{key} was {one} and is {other}" for key, (one, other) in words.items() if one != other]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table inside of them under names such as `tokenizer.kind`."""
    tables = {key: value if isinstance(value, dict) else {"": value} for key, value in settings.items()}
    return {f"{key}.{name}".strip("."): value for key, table in tables.items() for name, value in table.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    stored = _read_json(path)
    if stored.get("format") != FORMAT:
        raise BadInput(
            f"{path} has format {stored.get('format')}, and this linnet reads {FORMAT}; "
            f"delete the folder {folder}, and it is encoded again"
        )
    try:
        return Manifest.model_validate(stored)
    except ValidationError as error:
        raise BadInput(f"{path} is damaged: {mistake_text(error.errors()[0])}; delete the store") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except BadInput as error:
        raise BadInput(f"{error}; delete the store and encode it again") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
