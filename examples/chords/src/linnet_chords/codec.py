"""Chords of the twelve major and minor triads, separated by spaces, to ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnet.codecs import Encoded, known
from linnet.errors import BadInput, nearest

NOTES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
CHORDS = (*NOTES, *(f"{note}m" for note in NOTES))
FIRST = 2  # after begin and end


@dataclass(frozen=True)
class ChordCodec:
    """One id a chord."""

    begin: int = 0
    end: int = 1

    @property
    def tokens(self) -> tuple[str, ...]:
        return ("<begin>", "<end>", *CHORDS)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return (b"", b"", *(f"{chord} ".encode() for chord in CHORDS))

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ("writes a chord for each token",)

    def encode(self, value: str) -> Encoded:
        found = []
        for word in value.split():
            if word not in CHORDS:
                raise BadInput(f'"{word}" is no chord{nearest(word, CHORDS)}')
            found.append(CHORDS.index(word) + FIRST)
        return Encoded(np.array(found, np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(CHORDS[i - FIRST] for i in known(ids, len(self.tokens)) if i >= FIRST)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        written = self.decode(ids)
        return f" {written}" if written and len(prompt) else written

    def settled(self, ids: Sequence[int]) -> int:
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "chords"}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ChordCodec:
        if stored.get("kind") != "chords":
            raise BadInput(f"the codec of a run on chords is of the kind chords, not {stored.get('kind')!r}")
        return cls()
