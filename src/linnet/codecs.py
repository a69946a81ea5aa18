"""Codecs: a value becomes token ids and comes back.

`encode` never adds begin or end tokens and `decode` never returns them: framing a sequence is the
business of `linnet.rows`. A codec is lossless on everything that it accepts, and refuses the rest by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from linnet.errors import BadInput
from linnet.untrusted import checked


@dataclass(frozen=True)
class Encoded:
    """Token ids, and further columns of the same length (user, cell, hour) where a domain has them."""

    ids: np.ndarray  # int64 [tokens]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # each [tokens, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Codec(Protocol):
    """What every kind of value offers to the layers below it; by default an id stands for itself."""

    @property
    def tokens(self) -> Sequence[str]:
        """One printable name an id; its length is the vocabulary size."""

    @property
    def begin(self) -> int | None:
        return None

    @property
    def end(self) -> int | None:
        return None

    def encode(self, value: str) -> Encoded:
        """The ids of a whole value or of a prompt; raises `BadInput` for what cannot be given back."""

    def decode(self, ids: Iterable[int]) -> str:
        """The value in a person's form; begin and end tokens are left out."""

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The person's form of `ids` generated after `prompt` (both without begin and end)."""
        return self.decode(ids)

    @property
    def pieces(self) -> Sequence[bytes] | None:
        """The UTF-8 bytes that each id adds to a text before it; None where they depend on its neighbours."""
        return None

    def settled(self, ids: Sequence[int]) -> int:
        """How many of the first ids have a text that no further id changes."""
        return len(ids)

    @property
    def rewriting(self) -> tuple[str, ...]:
        """What the codec does to a value beside naming its characters, such as `reverses the digits`."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """Everything that `from_json` of the same kind needs; `kind` names it."""


def known(ids: Iterable[int], tokens: int) -> list[int]:
    """These ids as plain numbers, refused by name where they stand for no token."""
    found = [int(i) for i in ids]
    wrong = next((i for i in found if not 0 <= i < tokens), None)
    if wrong is not None:
        raise BadInput(f"id {wrong} stands for no token of this codec (0..{tokens - 1})")
    return found


@dataclass(frozen=True)
class CharacterCodec(Codec):
    """One id a character, after the specials `<begin>` (optional) and `<end>`."""

    characters: str
    has_begin: bool = True

    def __post_init__(self) -> None:
        if len(set(self.characters)) != len(self.characters):
            raise BadInput("the alphabet of a character codec names a character twice")

    @classmethod
    def of(cls, texts: Iterable[str], *, has_begin: bool = True) -> CharacterCodec:
        """The alphabet of these texts, in the order of code points."""
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return cls("".join(sorted(seen)), has_begin)

    @property
    def begin(self) -> int | None:
        return 0 if self.has_begin else None

    @property
    def end(self) -> int:
        return 1 if self.has_begin else 0

    @property
    def tokens(self) -> tuple[str, ...]:
        specials = ("<begin>", "<end>") if self.has_begin else ("<end>",)
        return specials + tuple(self.characters)

    @property
    def _offset(self) -> int:
        return 2 if self.has_begin else 1

    def encode(self, value: str) -> Encoded:
        ids = np.empty(len(value), dtype=np.int64)
        for position, character in enumerate(value):
            index = self.characters.find(character)
            if index < 0:
                raise BadInput(
                    f"character {character!r} at position {position} of {value[:60]!r} is not in the alphabet "
                    f"of this codec ({self.characters[:80]!r})"
                )
            ids[position] = index + self._offset
        return Encoded(ids)

    def decode(self, ids: Iterable[int]) -> str:
        found = known(ids, len(self.characters) + self._offset)
        return "".join(self.characters[i - self._offset] for i in found if i >= self._offset)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return (b"",) * self._offset + tuple(character.encode() for character in self.characters)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": self.characters, "has_begin": self.has_begin}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CharacterCodec:
        return cast(CharacterCodec, checked(cls, stored, ""))
