"""The `[data]` part of a run on series as tokens: windows of values, one token each, learned by the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from linnet.codecs import Codec, Encoded
from linnet.domains.contract import Material, Part
from linnet.domains.series.baselines import filled
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.seasons import timing
from linnet.domains.series.sources import Reading, parse_roles, parse_where, read_table
from linnet.domains.series.tables import SeriesTable, as_text
from linnet.domains.series.tokens import TokenCodec
from linnet.domains.tokens import TokenDomain
from linnet.errors import BadInput
from linnet.rows import Example, Rows


class SeriesTokens(TokenDomain):
    """Rows are windows of `length` values of one channel; the last `stride` values of each series are held out."""

    domain: Literal["series-tokens"] = Field("series-tokens", description="kind of sequences")
    paths: tuple[str, ...] = Field((), description="tables of series, .ts files, or folders of them")
    columns: str = Field("", description="id=COLUMN+COLUMN, time=, value=, channel=, label=, group=")
    where: str = Field("", description="rows of a long table that are read: COLUMN=VALUE, …")
    bins: int = Field(512, ge=2, le=4096, description="tokens of values")
    reach: float = Field(15.0, gt=0, description="of uniform bins, in mean absolute values")
    quantile: bool = Field(False, description="bins with equal shares of the training values")
    length: int = Field(0, ge=0, description="values of a row; 0: two cycles and a horizon")
    stride: int = Field(0, ge=0, description="values between rows; 0: a quarter of the length")

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return TokenCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.paths)

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        table, length, words = self._table(self.files)
        held = self.stride or max(1, length // 4)
        learned = windows(table, length, held)
        own = codec if codec is not None else self._codec(learned)
        assert isinstance(own, TokenCodec)
        train, validation = rows_of(own, learned, held), rows_of(own, last_windows(table, length), held, last=True)
        return Material(own, Part(train), Part(validation, unit="series"), (*table.notes, words))

    def _codec(self, learned: Sequence[np.ndarray]) -> TokenCodec:
        uniform = TokenCodec.uniform(self.bins, self.reach)
        if not self.quantile:
            return uniform
        return TokenCodec.quantile(np.concatenate([one / uniform.scale_of(one)[0] for one in learned]), self.bins)

    def _table(self, paths: Sequence[Path]) -> tuple[SeriesTable, int, str]:
        files = chosen_files(paths)
        if not files.train:
            raise BadInput("series need --data: a CSV or Parquet table, a .ts file, or a folder of them")
        table = read_table(files.train, Reading(parse_roles(self.columns), parse_where(self.where))).univariate()
        rhythm = timing(table)
        return table, self.length or 2 * rhythm.cycle + rhythm.horizon, rhythm.words

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        """The last window of each series, of which the last `stride` values are scored."""
        if split is not None:
            raise BadInput("rows of series have no splits")
        assert isinstance(codec, TokenCodec)
        table, length, words = self._table(paths)
        held = self.stride or max(1, length // 4)
        return Part(rows_of(codec, last_windows(table, length), held, last=True), notes=(words,), unit="series")

    def prompts(self, path: Path) -> Mapping[str, str]:
        """The end of each series, as much as a row holds beside what is to come."""
        table, length, _ = self._table([path])
        kept = length - (self.stride or max(1, length // 4))
        return {name: as_text(filled(table.series(index)[-kept:, 0])) for index, name in enumerate(table.names)}


def windows(table: SeriesTable, length: int, stride: int) -> list[np.ndarray]:
    """Windows backwards from `stride` values before the end of each series, each of half a length at least.

    A series of so few values that nothing would be left is learned from whole.
    """
    found = []
    for index in range(len(table)):
        values = table.series(index)[:, 0]
        limit = len(values) - stride if len(values) > stride + 1 else len(values)
        for end in range(limit, 0, -stride):
            piece = values[max(0, end - length) : end]
            if np.isfinite(piece).any() and (end == limit or len(piece) > length // 2):
                found.append(piece)
    return found


def last_windows(table: SeriesTable, length: int) -> list[np.ndarray]:
    found = [table.series(index)[-length:, 0] for index in range(len(table))]
    return [piece for piece in found if np.isfinite(piece).any()]


def rows_of(codec: TokenCodec, pieces: Sequence[np.ndarray], ahead: int, *, last: bool = False) -> Rows:
    """Framed rows. The scale is that of all but the `ahead` last values, as it is when they are still to come.

    Scored are all values, or with `last` those alone.
    """
    examples = []
    for piece in pieces:
        before = piece[: len(piece) - ahead]
        scale, head = codec.scale_of(before if np.isfinite(before).any() else piece)
        ids = np.concatenate([head, codec.bin_ids(piece, scale)])
        first = max(len(head), len(ids) - ahead) if last else len(head)
        scored = np.arange(len(ids) + 1) >= first
        examples.append(Example(Encoded(ids), scored))
    return Rows.frame(codec, examples)
