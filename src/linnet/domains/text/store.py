"""The token store: the parts of a corpus encoded once, in memory-mapped shards, and where each document is.

A store is a folder: `manifest.json`, `codec.json`, for each shard of a part `PART-tokens-NNNNN.bin` and
`PART-rows-NNNNN.bin`, and for each part `PART-starts.bin` and `PART-sizes.bin`. A shard gets its name when it is
whole, so that an interrupted encoding goes on after the last one. The memory in use does not depend on the size of
the corpus.
Legend: starts = int64 [rows + 1] into all tokens of a part; sizes = uint32 [rows, 2], characters and bytes of each
document, and in `PART-rows-NNNNN.bin` the tokens of its row before them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from linnet.domains.text.encoding import Encoded, encoded, token_type
from linnet.domains.text.finding import Source, hub_version
from linnet.domains.text.sources import Meter, Passage, Tally
from linnet.errors import BadInput
from linnet.files import in_words, locked, new_files, write_atomically
from linnet.rows import Rows
from linnet.tokenization import TokenizerCodec
from linnet.untrusted import read_object

FORMAT = 2
SHARD_TOKENS = 1 << 26
BLOCK = 1 << 20  # rows handled at a time
SIZE = np.dtype("<u4")
CODEC = "codec.json"


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


class Shard(Stored):
    tokens: int
    rows: int
    sha256: str


class StoredPart(Stored):
    shards: tuple[Shard, ...] = ()
    characters: int = 0
    utf8_bytes: int = 0
    complete: bool = False

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


class Manifest(Stored):
    """What a store holds and what it was made from."""

    format: int = FORMAT
    dtype: str
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
    def token_bytes(self) -> int:
        return sum(part.tokens for part in self.manifest.parts.values()) * np.dtype(self.manifest.dtype).itemsize

    def rows(self, name: str) -> Rows:
        """The rows of a part, memory-mapped; refused where a file was cut."""
        part, dtype = self.manifest.parts[name], np.dtype(self.manifest.dtype)
        tokens = [
            _mapped(self._file(name, "tokens", i), dtype, shard.tokens) for i, shard in enumerate(part.shards)
        ]
        starts = _mapped(self._file(name, "starts"), np.dtype("<i8"), part.rows + 1)
        sizes = _mapped(self._file(name, "sizes"), SIZE, 2 * part.rows).reshape(-1, 2)
        ids = tokens[0] if len(tokens) == 1 else Joined(tuple(tokens))
        hashed = "\n".join([self.manifest.tokenizer, *(shard.sha256 for shard in part.shards)])
        identity = hashlib.sha256(hashed.encode()).hexdigest()[:16]
        return Rows.of_ids(ids, starts, EveryTarget(starts), sizes[:, 0], sizes[:, 1]).identified(identity)

    def verify(self) -> None:
        """Read every shard again and refuse one whose content is not the one that was written."""
        for name, part in self.manifest.parts.items():
            for i, shard in enumerate(part.shards):
                self._refuse_unless(_sha256(self._file(name, "tokens", i)) == shard.sha256, name, "tokens", i)
            starts, rows = np.fromfile(self._file(name, "starts"), "<i8"), self.rows(name)
            rising = starts[0] == 0 and starts[-1] == part.tokens and bool((np.diff(starts) > 0).all())
            self._refuse_unless(rising, name, "starts")
            sums = (rows.characters, rows.utf8_bytes) == (part.characters, part.utf8_bytes)
            self._refuse_unless(sums, name, "sizes")

    def _refuse_unless(self, same: bool, *file: Any) -> None:
        if not same:
            raise BadInput(
                f"{self._file(*file)} does not hold what was written to it: it is damaged; "
                f"delete the store {self.folder}, and it is encoded again"
            )

    def _file(self, part: str, what: str, number: int | None = None) -> Path:
        return self.folder / f"{part}-{what}{'' if number is None else f'-{number:05d}'}.bin"

    def _with(self, name: str, part: StoredPart) -> Store:
        """The store with this part as it is now, in its manifest too."""
        manifest = self.manifest.model_copy(update={"parts": self.manifest.parts | {name: part}})
        _write_json(self.folder / "manifest.json", manifest.model_dump(mode="json"))
        return Store(self.folder, manifest)

    def filled(self, name: str, read: Stream, sources: tuple[Source, ...], shard_tokens: int) -> Store:
        """The store with the rest of a part's documents."""
        part, tally = self.manifest.parts[name], Tally()
        meter = Meter(f"encoding {name}", sources)
        blocks = _metered(encoded(self.codec, _without_first(read(tally), part.rows)), meter, tally)
        store = self
        while (first := next(blocks, None)) is not None:
            part = store._write_shard(name, part, itertools.chain([first], blocks), shard_tokens)
            store = store._with(name, part)
        meter.close(tally)
        if not part.rows:
            raise BadInput(f"no documents to encode into {self.folder}: the {name} part of the corpus is empty")
        store._write_positions(name, part)
        return store._with(name, part.model_copy(update={"complete": True}))

    def _write_shard(self, name: str, part: StoredPart, blocks: Iterator[Encoded], most: int) -> StoredPart:
        """Rows of about so many tokens as one shard; the part with it."""
        number, dtype, digest = len(part.shards), np.dtype(self.manifest.dtype), hashlib.sha256()
        rows, totals = 0, np.zeros(3, np.int64)
        paths = [self._file(name, what, number) for what in ("tokens", "rows")]
        with new_files(paths) as hidden, hidden[0].open("wb") as tokens_file, hidden[1].open("wb") as rows_file:
            for ids, sizes, _ in blocks:
                content = ids.astype(dtype).data
                tokens_file.write(content)
                rows_file.write(sizes.astype(SIZE).data)
                digest.update(content)
                rows, totals = rows + len(sizes), totals + sizes.sum(0)
                if totals[0] >= most:
                    break
        tokens, characters, utf8_bytes = totals.tolist()
        return StoredPart(
            shards=(*part.shards, Shard(tokens=tokens, rows=rows, sha256=digest.hexdigest())),
            characters=part.characters + characters,
            utf8_bytes=part.utf8_bytes + utf8_bytes,
        )

    def _write_positions(self, name: str, part: StoredPart) -> None:
        """The starts and sizes of all rows, in one file each."""
        total, paths = 0, [self._file(name, what) for what in ("starts", "sizes")]
        with new_files(paths) as hidden, hidden[0].open("wb") as starts, hidden[1].open("wb") as sizes:
            starts.write(np.zeros(1, "<i8").data)
            for i, shard in enumerate(part.shards):
                rows = _mapped(self._file(name, "rows", i), SIZE, 3 * shard.rows).reshape(-1, 3)
                for first in range(0, shard.rows, BLOCK):
                    some = rows[first : first + BLOCK]
                    stops = total + np.cumsum(some[:, 0], dtype="<i8")
                    starts.write(stops.data)
                    sizes.write(np.ascontiguousarray(some[:, 1:]).data)
                    total = int(stops[-1])


Stream = Callable[[Tally], Iterator[Passage]]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of several processes that want the same store one makes it, and the others wait."""
    with in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):
        yield


def find_store(folder: Path, origin: Origin | None = None) -> Store | None:
    """The store in a folder, complete or begun; refused when it was made from something else, or damaged."""
    advice = f"delete the folder {folder} or name another one"
    if not (folder / "manifest.json").is_file():
        names = {name for name in os.listdir(folder) if not name.startswith(".")} if folder.is_dir() else set()
        if any(name.endswith(".bin") for name in names):
            raise BadInput(f"the token store {folder} is damaged: its manifest.json is gone; {advice}")
        if (folder / "train" / "manifest.json").is_file():
            raise BadInput(f"the token store {folder} is of an older linnet; {advice}, and it is encoded again")
        if names - {CODEC}:
            raise BadInput(f"{folder} is not empty and holds no token store; name another folder")
        return None
    found = _read_manifest(folder)
    if reason := _difference(found, origin):
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
    shard_tokens: int = SHARD_TOKENS,
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
        _write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
        store = Store(folder, manifest)
    for name, read in parts.items():
        if not store.manifest.parts[name].complete:
            store = store.filled(name, read, origin.sources, shard_tokens)
    return open_store(folder, origin)


def _metered(blocks: Iterator[Encoded], meter: Meter, tally: Tally) -> Iterator[Encoded]:
    for block in blocks:
        yield block
        meter.advance(tally, int(block.sizes[:, 2].sum()))


def _without_first(passages: Iterator[Passage], done: int) -> Iterator[Passage]:
    """The documents after those that are stored already."""
    for passage in passages:
        skipped = min(done, len(passage.texts))
        done -= skipped
        if skipped < len(passage.texts):
            yield Passage(passage.texts[skipped:])


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


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """The settings that differ, as `vocabulary was 600 and is 700`."""
    found = []
    for key in sorted({*before, *now}):
        was, is_now = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            found += _differences(was, is_now, f"{inside}{key}.")
        elif was != is_now:
            was, is_now = ("not set" if value is None else value for value in (was, is_now))
            found.append(f"{inside}{key} was {was} and is {is_now}")
    return found


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    size, wanted = path.stat().st_size if path.is_file() else 0, count * dtype.itemsize
    if size != wanted:
        raise BadInput(
            f"{path} was cut: it has {size:,} bytes instead of {wanted:,}; "
            f"delete the store {path.parent}, and it is encoded again"
        )
    return np.memmap(path, dtype, "r", shape=(count,))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    stored = _read_json(path)
    if stored.get("format") != FORMAT:
        raise BadInput(
            f"{path} has format {stored.get('format')}, and this linnet reads {FORMAT}; "
            f"delete the folder {folder}, and it is encoded again"
        )
    try:
        return Manifest.model_validate(stored)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadInput(f"{path} is damaged: {reason}; delete the store and encode it again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except BadInput as error:
        raise BadInput(f"{error}; delete the store and encode it again") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())


# --- arrays that are read like one without being in memory ----------------------------------------


@dataclass(frozen=True)
class Joined:
    """Several arrays that are read as one."""

    parts: tuple[np.ndarray, ...]

    @property
    def offsets(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.parts)])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, index: Any, /) -> np.ndarray:
        index = _whole_numbers(index, len(self))
        flat = index.reshape(-1)
        which = np.searchsorted(self.offsets, flat, side="right") - 1
        found = np.empty(len(flat), self.dtype)
        for part in np.unique(which):
            here = which == part
            found[here] = self.parts[part][flat[here] - self.offsets[part]]
        return found.reshape(index.shape)


@dataclass(frozen=True)
class EveryTarget:
    """The marks of rows in which every token counts but the first."""

    starts: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(bool)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any, /) -> np.ndarray:
        index = _whole_numbers(index, len(self))
        return np.asarray(self.starts[np.searchsorted(self.starts, index, side="right") - 1] != index)


def _whole_numbers(index: Any, length: int) -> np.ndarray:
    """The positions that a slice, a mask or an array stands for."""
    if isinstance(index, slice):
        return np.arange(*index.indices(length))
    index = np.asarray(index)
    if index.dtype == bool:
        return np.flatnonzero(index)
    if index.size and not -1 < index.min() <= index.max() < length:
        raise IndexError(f"positions from 0 to {length - 1}, not {index.min()} to {index.max()}")
    return index
