"""Rows of columns: what a domain hands over, and what batches are cut from.

A row is a sequence of steps. A step has named columns: ids of a vocabulary, or numbers of a width. The column
`ids` holds the tokens of text and arithmetic, framed as `[begin] + ids + [end]`. All rows lie end to end in one
flat array for each column, which may be memory-mapped. A column that is absent at some steps has a mask in
`present`.
Legend: steps = all steps of all rows; rows = number of sequences.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from linnet.codecs import Codec, Encoded
from linnet.errors import BadInput

IDS = "ids"


class Example(NamedTuple):
    """An encoded value, and which of its tokens a model predicts."""

    encoded: Encoded
    scored: np.ndarray | None = None  # bool [len(encoded) + 1], the last one for the end token; None = all
    characters: int = 0  # characters and bytes of the scored part, for nats per character
    utf8_bytes: int = 0


class Flat(Protocol):
    """What is read of a long array: an ndarray, a memory map, or something computed where it is read."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class RowSource(Protocol):
    """What a plan needs to know of rows, whether they are stored or gathered when they are read."""

    def __len__(self) -> int: ...

    @property
    def steps(self) -> int:
        """How many steps all rows have."""

    @property
    def targets(self) -> int:
        """How many steps are scored."""

    def select(self, chosen: np.ndarray) -> RowSource:
        """Only these rows."""

    def fingerprint(self) -> str:
        """A short hash of the content: a resumed run refuses data that changed under it."""


@dataclass(frozen=True)
class Rows:
    """Many rows. `scored[i]` says whether step i counts as a target; the first step of a row never does."""

    columns: Mapping[str, Flat]  # each [steps], or [steps, width] of numbers
    starts: np.ndarray  # int64 [rows + 1]
    scored: Flat  # bool [steps]
    row_characters: np.ndarray | None = None  # integers [rows], of the scored part; None where nobody counted
    row_bytes: np.ndarray | None = None
    present: Mapping[str, Flat] = field(default_factory=dict)  # bool [steps]; other columns are at every step
    identity: str = ""  # a hash of the content where one is known without reading everything

    @classmethod
    def of_ids(
        cls,
        ids: Flat,
        starts: np.ndarray,
        scored: Flat,
        row_characters: np.ndarray | None = None,
        row_bytes: np.ndarray | None = None,
    ) -> Rows:
        """Rows of tokens alone."""
        return cls({IDS: ids}, starts, scored, row_characters, row_bytes)

    @classmethod
    def frame(cls, codec: Codec, examples: Iterable[Example]) -> Rows:
        """Add begin and end tokens and lay the rows end to end."""
        head = [] if codec.begin is None else [codec.begin]
        tail = [] if codec.end is None else [codec.end]
        ids, scored, lengths = [], [], [0]
        columns: dict[str, list[np.ndarray]] = {}
        sizes = []
        for encoded, marks, characters, utf8_bytes in examples:
            counted = np.ones(len(encoded) + 1, bool) if marks is None else marks
            if len(counted) != len(encoded) + 1:
                raise BadInput(f"{len(encoded)} tokens need {len(encoded) + 1} scored marks, not {len(counted)}")
            row_scored = np.concatenate([np.zeros(len(head), bool), counted[: len(encoded) + len(tail)]])
            row_scored[0] = False
            ids.append(np.concatenate([head, encoded.ids, tail]).astype(np.int64))
            scored.append(row_scored)
            lengths.append(len(row_scored))
            for name, values in encoded.columns.items():
                framed = [values[:1].repeat(len(head), 0), values, values[-1:].repeat(len(tail), 0)]
                columns.setdefault(name, []).append(np.concatenate(framed))
            sizes.append((characters, utf8_bytes))
        counts = np.array(sizes, np.int64).reshape(-1, 2)
        flat = np.concatenate(ids) if ids else np.empty(0, np.int64)
        small = np.uint16 if len(codec.tokens) <= 1 << 16 else np.uint32
        return cls(
            {IDS: flat.astype(small)} | {name: np.concatenate(parts) for name, parts in columns.items()},
            np.cumsum(lengths, dtype=np.int64),
            np.concatenate(scored) if scored else np.empty(0, bool),
            counts[:, 0],
            counts[:, 1],
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
    def ids(self) -> Flat:
        """The column of tokens."""
        return self.columns[IDS]

    @property
    def steps(self) -> int:
        return int(self.starts[-1])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def longer_than(self, context: int) -> np.ndarray:
        """Rows whose inputs (all steps but the last) are more than a context holds."""
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
        """How many steps are scored."""
        blocks = range(0, len(self.scored), 1 << 20)
        return sum(int(np.count_nonzero(self.scored[first : first + (1 << 20)])) for first in blocks)

    def row(self, index: int) -> np.ndarray:
        """The tokens of one row."""
        return self.ids[self.starts[index] : self.starts[index + 1]].astype(np.int64)

    def at(self, steps: np.ndarray, starts: np.ndarray, scored: np.ndarray) -> Rows:
        """Rows of these steps; how many characters they have is no longer known."""
        columns = {name: values[steps] for name, values in self.columns.items()}
        present = {name: mask[steps] for name, mask in self.present.items()}
        return Rows(columns, starts, scored, present=present)

    def select(self, chosen: np.ndarray) -> Rows:
        """Only these rows."""
        picked = np.concatenate(
            [np.arange(self.starts[i], self.starts[i + 1]) for i in chosen] or [np.empty(0, np.int64)]
        ).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64)
        characters, utf8_bytes = (
            None if size is None else size[chosen] for size in (self.row_characters, self.row_bytes)
        )
        found = self.at(picked, starts, self.scored[picked])
        return replace(found, row_characters=characters, row_bytes=utf8_bytes)

    def identified(self, identity: str) -> Rows:
        """The same rows with a known hash."""
        return replace(self, identity=identity)

    def fingerprint(self) -> str:
        if self.identity:
            return self.identity
        digest = hashlib.sha256()
        others = [self.columns[name] for name in sorted(self.columns) if name != IDS]
        masks = [self.present[name] for name in sorted(self.present)]
        tokens = [self.ids[:]] if IDS in self.columns else []
        for part in (*tokens, self.starts, self.scored[:], *others, *masks):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]
