"""Captions as tokens: words and marks with the space before them, and digits. All patches share one token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from linnet.codecs import Encoded, known
from linnet.domains.series.captions.patches import patches, window_patches
from linnet.domains.series.codec import SeriesCodec
from linnet.errors import BadInput, nearest
from linnet.untrusted import checked

SPECIALS = ("<begin>", "<end>", "<patch>")
BEGIN, END, PATCH = range(len(SPECIALS))
PIECE = re.compile(r" ?[A-Za-z]+| ?\d| ?[^A-Za-z0-9\s]|\s")
DIGITS = tuple(f"{space}{digit}" for space in ("", " ") for digit in range(10))
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
NUMBERS = re.compile(rf"\s*{NUMBER}(?:[\s,;]+{NUMBER})*\s*")
PATCHES = "patches"  # the column of numbers
MARKS = (".", ",", ";", "-", " -")


def series_in(text: str) -> np.ndarray:
    """The numbers of a text that has nothing else."""
    return np.array([float(number) for number in re.split(r"[\s,;]+", text.strip(" ,;\t\n"))])


def window_in(text: str) -> np.ndarray:
    """[T, C]: the numbers of a text whose channels are parted by semicolons."""
    parts = text.split(";")
    if not all(part.strip(" ,\t\n") for part in parts):
        raise BadInput("a channel has no numbers; write one semicolon between two channels")
    channels = [series_in(part) for part in parts]
    if len({len(channel) for channel in channels}) != 1:
        raise BadInput(f"channels have different lengths ({', '.join(str(len(one)) for one in channels)})")
    return np.stack(channels, 1)


@dataclass(frozen=True)
class CaptionCodec:
    """One id a word, digit or mark, each with the space before it, so that a text comes back as it was.

    With `windows` texts are about windows of several channels, in units of the training part.
    """

    words: tuple[str, ...]
    windows: SeriesCodec | None = None

    @classmethod
    def of(cls, texts: Iterable[str], windows: SeriesCodec | None = None) -> CaptionCodec:
        """The pieces of these texts, and every digit and mark of a number."""
        seen: set[str] = set()
        for text in texts:
            seen.update(PIECE.findall(text))
        return cls(tuple(sorted(seen | set(DIGITS) | set(MARKS))), windows)

    @property
    def begin(self) -> int:
        return BEGIN

    @property
    def end(self) -> int:
        return END

    @property
    def tokens(self) -> tuple[str, ...]:
        return (*SPECIALS, *self.words)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return (b"",) * len(SPECIALS) + tuple(word.encode() for word in self.words)

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ()

    def encode(self, value: str) -> Encoded:
        """The ids of a caption; a text of numbers alone is a series, whose patches are a column of numbers."""
        if NUMBERS.fullmatch(value):
            found = self.patches(self.numbers(value))
            return Encoded(np.full(len(found), PATCH, np.int64), {PATCHES: found})
        return self._words(value)

    def numbers(self, text: str) -> np.ndarray:
        """The series, or the window, of a text of numbers."""
        return series_in(text) if self.windows is None else window_in(text)

    def patches(self, values: np.ndarray) -> np.ndarray:
        """The numbers that the model reads of a series or a window."""
        return patches(values) if self.windows is None else window_patches(values, self.windows)

    def _words(self, value: str) -> Encoded:
        numbers = {word: number for number, word in enumerate(self.words, len(SPECIALS))}
        found = []
        for piece in PIECE.findall(value):
            if piece not in numbers:
                words = [word.strip() for word in self.words]
                raise BadInput(
                    f'the captions of this run have no word "{piece.strip()}"{nearest(piece.strip(), words)}'
                )
            found.append(numbers[piece])
        return Encoded(np.array(found, np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        tokens = self.tokens
        return "".join(tokens[i] for i in known(ids, len(tokens)) if i >= len(SPECIALS))

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        return self.decode(ids)

    def settled(self, ids: Sequence[int]) -> int:
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        windows = {} if self.windows is None else {"windows": self.windows.to_json()}
        return {"kind": "captions", "words": list(self.words), **windows}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CaptionCodec:
        codec = cast(CaptionCodec, checked(cls, stored, ""))
        if codec.windows is not None:
            codec.windows.refuse_unfit_parts()
        return codec
