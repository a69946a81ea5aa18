"""Framed token sequences: what a domain hands over, and what batches are cut from.

A row is `[begin] + ids + [end]`. All rows lie end to end in one flat array, which may be memory-mapped.
Legend: tokens = all tokens of all rows; rows = number of sequences.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from linnet.codecs import Codec, Encoded
from linnet.errors import BadInput


class Example(NamedTuple):
    """An encoded value, and which of its tokens a model is asked for."""

    encoded: Encoded
    scored: np.ndarray | None = None  # bool [len(encoded) + 1], the last one for the end token; None = all
    characters: int = 0  # characters and bytes of the scored part, for nats per character
    utf8_bytes: int = 0


class Flat(Protocol):
    """What is read of a long array: an ndarray, a memory map, or something computed where it is read."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Sequences:
    """Many framed rows. `scored[i]` says whether token i counts as a target; a row's first never does."""

    ids: Flat  # integers [tokens]
    starts: np.ndarray  # int64 [rows + 1]
    scored: Flat  # bool [tokens]
    row_characters: np.ndarray | None = None  # integers [rows], of the scored part; None where nobody counted
    row_bytes: np.ndarray | None = None
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)  # each [tokens, ...]
    identity: str = ""  # a hash of the content where one is known without reading everything

    @classmethod
    def frame(cls, codec: Codec, examples: Iterable[Example]) -> Sequences:
        """Add begin and end tokens and lay the rows end to end."""
        head = [] if codec.begin is None else [codec.begin]
        tail = [] if codec.end is None else [codec.end]
        ids, scored, lengths = [], [], [0]
        fields: dict[str, list[np.ndarray]] = {}
        sizes = []
        for encoded, wanted, characters, utf8_bytes in examples:
            asked = np.ones(len(encoded) + 1, bool) if wanted is None else wanted
            if len(asked) != len(encoded) + 1:
                raise BadInput(f"{len(encoded)} tokens need {len(encoded) + 1} scored marks, not {len(asked)}")
            row_scored = np.concatenate([np.zeros(len(head), bool), asked[: len(encoded) + len(tail)]])
            row_scored[0] = False
            ids.append(np.concatenate([head, encoded.ids, tail]).astype(np.int64))
            scored.append(row_scored)
            lengths.append(len(row_scored))
            for name, values in encoded.fields.items():
                padded = np.concatenate(
                    [values[:1].repeat(len(head), 0), values, values[-1:].repeat(len(tail), 0)]
                )
                fields.setdefault(name, []).append(padded)
            sizes.append((characters, utf8_bytes))
        counts = np.array(sizes, np.int64).reshape(-1, 2)
        flat = np.concatenate(ids) if ids else np.empty(0, np.int64)
        small = np.uint16 if len(codec.tokens) <= 1 << 16 else np.uint32
        return cls(
            flat.astype(small),
            np.cumsum(lengths, dtype=np.int64),
            np.concatenate(scored) if scored else np.empty(0, bool),
            counts[:, 0],
            counts[:, 1],
            {name: np.concatenate(parts) for name, parts in fields.items()},
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @functools.cached_property
    def characters(self) -> int:
        return 0 if self.row_characters is None else int(self.row_characters.sum(dtype=np.int64))

    @functools.cached_property
    def utf8_bytes(self) -> int:
        return 0 if self.row_bytes is None else int(self.row_bytes.sum(dtype=np.int64))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def longer_than(self, context: int) -> np.ndarray:
        """Rows whose inputs (all tokens but the last) are more than a context holds."""
        found, seen = [np.empty(0, np.int64)], 0
        for lengths in self._length_blocks():
            found.append(seen + np.flatnonzero(lengths - 1 > context))
            seen += len(lengths)
        return np.concatenate(found)

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max((int(lengths.max()) for lengths in self._length_blocks()), default=0)

    def _length_blocks(self) -> Iterator[np.ndarray]:
        """The lengths, some at a time, since `starts` may be a memory map of any size."""
        for first in range(0, len(self), 1 << 20):
            yield np.diff(self.starts[first : first + (1 << 20) + 1])

    @property
    def targets(self) -> int:
        """How many tokens are asked for."""
        blocks = range(0, len(self.scored), 1 << 20)
        return sum(int(np.count_nonzero(self.scored[first : first + (1 << 20)])) for first in blocks)

    def row(self, index: int) -> np.ndarray:
        return self.ids[self.starts[index] : self.starts[index + 1]].astype(np.int64)

    def rows(self, chosen: np.ndarray) -> Sequences:
        """Only these rows."""
        picked = np.concatenate(
            [np.arange(self.starts[i], self.starts[i + 1]) for i in chosen] or [np.empty(0, np.int64)]
        ).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64)
        fields = {name: values[picked] for name, values in self.fields.items()}
        characters, utf8_bytes = (
            None if size is None else size[chosen] for size in (self.row_characters, self.row_bytes)
        )
        return Sequences(self.ids[picked], starts, self.scored[picked], characters, utf8_bytes, fields)

    def fingerprint(self) -> str:
        """A short hash of the content: a resumed run refuses data that changed under it."""
        if self.identity:
            return self.identity
        digest = hashlib.sha256()
        for part in (self.ids[:], self.starts, self.scored[:], *(self.fields[k] for k in sorted(self.fields))):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]
