"""The `[data]` part of a run on captions: rows of patches and words, and scores of what a model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from linnet.codecs import Codec, Encoded
from linnet.domains.contract import Material, Part, Region, Scored
from linnet.domains.series.baselines import filled
from linnet.domains.series.captions import grammar, making
from linnet.domains.series.captions.codec import NUMBERS, PATCH, PATCHES, CaptionCodec, series_in
from linnet.domains.series.captions.facts import measure
from linnet.domains.series.captions.judging import Numbers
from linnet.domains.series.captions.patches import MOST
from linnet.domains.series.captions.scores import examples, fact_scores
from linnet.domains.series.captions.writing import columns_of, framed, greedy
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.sources import Reading, read_table
from linnet.domains.series.tables import as_text
from linnet.domains.tokens import TokenDomain, decoder
from linnet.errors import BadInput
from linnet.rows import Example, Rows

if TYPE_CHECKING:
    from linnet.decoding.runner import Columns
    from linnet.model.contract import Network

VALIDATION, HELD_OUT = 1 << 40, 1 << 41  # seeds of parts that training never draws


class CaptionData(TokenDomain):
    domain: Literal["captions"] = Field("captions", description="kind of sequences")
    paths: tuple[Path, ...] = Field(
        (), description="files of series, a part of what is trained on; none: draw all"
    )
    series: int = Field(20_000, ge=20, description="series to draw")
    validation: int = Field(500, ge=10, description="series to draw for validation")
    longest: int = Field(5, ge=1, le=8, description="most claims of a caption")

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return CaptionCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        own = list(making.draw(self.series, seed))
        own += [values for _, values in read_series(self.paths, tests=False)]
        kept_back = list(making.draw(self.validation, seed + VALIDATION))
        texts, held = self._written(own, seed), self._written(kept_back, seed + VALIDATION)
        codec = captioning(codec or CaptionCodec.of(grammar.every_wording()))
        return Material(codec, described(codec, own, texts), described(codec, kept_back, held))

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        if split is not None:
            raise BadInput("files of series that are captioned have no splits")
        found = [values for _, values in read_series(paths)]
        return replace(described(captioning(codec), found, self._written(found, 0)), source=tuple(paths))

    def held_out(self, codec: Codec, split: str | None, n: int, seed: int) -> Part:
        found = list(making.draw(n, seed + HELD_OUT))
        return described(captioning(codec), found, self._written(found, seed))

    def _written(self, found: Sequence[np.ndarray], seed: int) -> list[str]:
        """A caption of each series, the same one whatever stands beside it."""
        return [
            grammar.caption(measure(values[-MOST:]), np.random.default_rng([seed, index]), self.longest)
            for index, values in enumerate(found)
        ]

    def follow(self, codec: Codec, ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        raise BadInput("captions are about series: linnet caption RUN --file, or linnet search RUN --file")

    def columns_after(self, codec: Codec, prompt: str) -> Columns:
        if not NUMBERS.fullmatch(prompt):
            raise BadInput("a caption is about a series: the prompt is its numbers, such as 12.5 13.1 12.9")
        return columns_of(captioning(codec).patches(series_in(prompt)))

    def prompts(self, path: Path) -> Mapping[str, str]:
        return {name: as_text(values[-MOST:]) for name, values in read_series([path])}

    def score(
        self, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, **options: Any
    ) -> Scored:
        """The likelihood of the words, and how many of the facts that the model states are true."""
        likelihood = super().score(network, codec, part, batch=batch, region=region)
        assert isinstance(part, Described)
        with region():
            texts = greedy(decoder(network), captioning(codec), part.series, rows=batch)
        facts = fact_scores(texts, [Numbers.of(values) for values in part.series])
        shown = examples(texts, part.series)
        return Scored((*facts.scores, *likelihood.scores), notes=likelihood.notes, examples=shown)


@dataclass(frozen=True)
class Described(Part):
    """A part whose rows are captions of these series."""

    series: tuple[np.ndarray, ...] = ()


def captioning(codec: Codec) -> CaptionCodec:
    assert isinstance(codec, CaptionCodec), "a run on captions has words and patches"
    return codec


def described(codec: CaptionCodec, found: Sequence[np.ndarray], texts: Sequence[str]) -> Described:
    return Described(rows(codec, found, texts), series=tuple(values[-MOST:] for values in found))


def rows(codec: CaptionCodec, found: Sequence[np.ndarray], texts: Sequence[str]) -> Rows:
    """Framed rows: patches first, then the words, which alone are scored."""
    examples, columns = [], []
    for values, text in zip(found, texts, strict=True):
        numbers, words = codec.patches(values), codec.encode(text).ids
        ids = np.concatenate([np.full(len(numbers), PATCH), words])
        scored = np.concatenate([np.zeros(len(numbers), bool), np.ones(len(words) + 1, bool)])
        examples.append(Example(Encoded(ids), scored, len(text), len(text.encode())))
        columns.append(framed(numbers, len(ids) + 2))
    made = Rows.frame(codec, examples)
    return Rows(
        {**made.columns, PATCHES: np.concatenate(columns)},
        made.starts,
        made.scored,
        made.row_characters,
        made.row_bytes,
    )


def read_series(paths: Sequence[Path], *, tests: bool = True) -> list[tuple[str, np.ndarray]]:
    """Names and values of all series of these files, channel by channel. A missing value repeats the last one.

    Without `tests` a file with that word in its name is left out, as training does.
    """
    if not paths:
        return []
    files = chosen_files(paths)
    table = read_table((*files.train, *(files.test if tests else ())), Reading()).univariate()
    return [(name, filled(table.series(index)[:, 0])) for index, name in enumerate(table.names)]
