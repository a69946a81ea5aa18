"""The `[data]` part of a run on chords: rows of three columns, and a score that only chords have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from linnet.codecs import Codec, Encoded
from linnet.domains.contract import Material, Part, Region, Scored
from linnet.domains.tokens import TokenDomain
from linnet.errors import BadInput
from linnet.records import Baseline, Score
from linnet.rows import Example, Rows
from linnet_chords.codec import CHORDS, FIRST, ChordCodec

if TYPE_CHECKING:
    from linnet.evaluation import Units
    from linnet.model.model import Model

BEATS = 4  # chords of a bar
SCALE = (0, 2, 4, 5, 7, 9)  # steps above the tonic of the six common triads of a major key
MINOR = (2, 4, 9)
TURNS = ((0, 9, 5, 7), (0, 7, 9, 5), (2, 7, 0, 0), (0, 5, 7, 0), (9, 5, 0, 7))  # common progressions of four


def in_key(tonic: int) -> frozenset[str]:
    """The triads of this major key."""
    return frozenset(CHORDS[(tonic + step) % 12 + (12 if step in MINOR else 0)] for step in SCALE)


def key_of(chords: Sequence[str]) -> int:
    """The tonic whose key holds most of these chords, the first one's own where there are several."""
    return max(
        range(12), key=lambda tonic: (sum(chord in in_key(tonic) for chord in chords), chords[0] == CHORDS[tonic])
    )


class ChordData(TokenDomain):
    domain: Literal["chords"] = Field("chords", description="kind of sequences")
    paths: tuple[Path, ...] = Field((), description="files with one progression a line; none: draw them")
    songs: int = Field(400, ge=2, description="progressions to draw")

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return ChordCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        lines = read_lines(self.paths) if self.paths else draw(self.songs, seed)
        held = max(1, len(lines) // 10)
        own = ChordCodec()
        return Material(own, Part(rows_of_chords(own, lines[held:])), Part(rows_of_chords(own, lines[:held])))

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        if split is not None:
            raise BadInput("files of chords have no splits")
        return Part(rows_of_chords(codec, read_lines(paths)))

    def held_out(self, codec: Codec, split: str | None, n: int, seed: int) -> Part:
        if self.paths or split is not None:
            return super().held_out(codec, split, n, seed)
        return Part(rows_of_chords(codec, draw(min(n, 200), seed + 1)))

    def follow(self, codec: Codec, ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """The beat counts on; the key is that of the chords so far."""
        return columns_of(np.asarray(ids, np.int64))

    def further_scores(
        self, model: Model, codec: Codec, rows: Rows, units: Units, beaten: Baseline, *, batch: int, region: Region
    ) -> Scored:
        """How many of the chords of the rows lie in the key of their row."""
        inside = total = 0
        for index in range(len(rows)):
            chords = codec.decode(rows.row(index).tolist()).split()
            inside += sum(chord in in_key(key_of(chords)) for chord in chords)
            total += len(chords)
        from linnet.intervals import wilson

        low, high = wilson(inside, total)
        baseline = Baseline(name="chords drawn evenly", value=len(SCALE) / len(CHORDS))
        return Scored(
            (Score(name="in_key", value=inside / total, n=total, low=low, high=high, baseline=baseline),)
        )


def columns_of(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The further columns at each step of framed ids: the beat, and the first chord on the circle of notes."""
    first = int(ids[1] - FIRST) % 12 if len(ids) > 1 and ids[1] >= FIRST else 0
    angle = 2 * np.pi * first / 12
    circle = np.tile(np.array([np.sin(angle), np.cos(angle)], np.float32), (len(ids), 1))
    circle[0] = 0  # nothing is known at the begin token
    return {"beat": np.arange(len(ids)) % BEATS, "tonic": circle}


def rows_of_chords(codec: Codec, lines: Iterable[str]) -> Rows:
    """Framed rows of all columns."""
    examples = []
    for line in lines:
        encoded = codec.encode(line)
        examples.append(Example(Encoded(encoded.ids), characters=len(line), utf8_bytes=len(line.encode())))
    rows = Rows.frame(codec, examples)
    parts = [columns_of(rows.row(index)) for index in range(len(rows))]
    further = {name: np.concatenate([part[name] for part in parts]) for name in ("beat", "tonic")}
    return Rows({**rows.columns, **further}, rows.starts, rows.scored, rows.row_characters, rows.row_bytes)


def read_lines(paths: Sequence[Path]) -> list[str]:
    lines = [line.strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise BadInput(f"{', '.join(map(str, paths))} has no progressions; one a line, such as C Am F G")
    return [line for line in lines if line]


def draw(songs: int, seed: int) -> list[str]:
    """Progressions of two to four bars in one key each."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(songs):
        tonic = int(random.integers(12))
        steps = [step for _ in range(random.integers(2, 5)) for step in TURNS[random.integers(len(TURNS))]]
        lines.append(" ".join(CHORDS[(tonic + step) % 12 + (12 if step in MINOR else 0)] for step in steps))
    return lines
