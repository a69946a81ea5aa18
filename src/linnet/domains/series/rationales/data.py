"""The `[data]` part of a run on activities with a rationale: patches of a window, facts of it, its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from linnet.codecs import Codec
from linnet.domains.contract import Material, Part, Region, Scored
from linnet.domains.series.baselines import filled
from linnet.domains.series.captions.codec import NUMBERS, PATCHES, CaptionCodec
from linnet.domains.series.captions.data import captioning, rows
from linnet.domains.series.captions.patches import LENGTH
from linnet.domains.series.captions.writing import columns_of, greedy
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.data import SeriesData
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.rationales import grammar
from linnet.domains.series.rationales.facts import measure
from linnet.domains.series.settings import LabelConfig
from linnet.domains.series.tables import SeriesTable, as_text
from linnet.domains.tokens import TokenDomain, decoder
from linnet.errors import BadInput
from linnet.model.config import ModelConfig, NetworkConfig, NumberColumn
from linnet.rows import Rows

if TYPE_CHECKING:
    from linnet.decoding.runner import Columns
    from linnet.domains.series.labels import LabelRows
    from linnet.model.contract import Network


class RationaleData(TokenDomain):
    domain: Literal["rationales"] = Field("rationales", description="kind of sequences")
    paths: tuple[str, ...] = Field((), description="tables of series with labels, or folders of them")
    columns: str = Field("", description="id=COLUMN+COLUMN, time=, value=, channel=, label=, group=")
    where: str = Field("", description="rows of a long table that are read: COLUMN=VALUE, …")
    labels: LabelConfig = LabelConfig(length=256, stride=128, units="training", turn=15)
    overlap: int = Field(8, ge=1, description="training windows that begin within one stride")
    plain: float = Field(0.25, ge=0, le=1, description="share of training rows with the label alone")
    longest: int = Field(4, ge=1, le=6, description="most facts of a rationale")

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return CaptionCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.paths)

    @property
    def labelled(self) -> SeriesData:
        """The same files as windows with a label, without words."""
        return SeriesData(
            task="classes", paths=self.paths, columns=self.columns, where=self.where, labels=self.labels
        )

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        files = chosen_files(self.files)
        if not files.train:
            raise BadInput("activities need --data: a CSV or Parquet table with labels, or a folder of them")
        return self.material(self.labelled.table(files.train, files.notes), seed, codec)

    def material(self, table: SeriesTable, seed: int, codec: Codec | None = None) -> Material:
        """Rows of the windows of a table; no group is in both parts. Training windows overlap and are turned."""
        from linnet.domains.series.labelling import label_material
        from linnet.domains.series.labels import Variation, labelled_windows

        own = None if codec is None else windowed(codec)
        found = label_material(self.labelled, table, seed, own)
        assert isinstance(found.codec, SeriesCodec)
        learned, kept = windows_of(found.train), windows_of(found.validation)
        codec = captioning(
            codec or CaptionCodec.of(grammar.every_wording(found.codec.classes), windows=found.codec)
        )
        random = np.random.default_rng(seed)
        every = labelled_windows(table, found.codec, -(-self.labels.step // self.overlap))
        every = every.select(np.flatnonzero(np.isin(every.series, learned.series)))
        turned = Variation(random, self.labels.turn).turned(complete(every))
        texts = self._written(turned, every, random)
        train = explained(codec, every, turned, texts)
        validation = explained(codec, kept, complete(kept), self._written(complete(kept), kept, random))
        return Material(codec, train, validation, found.notes)

    def _written(self, windows: np.ndarray, rows: LabelRows, random: np.random.Generator) -> list[str]:
        """A rationale of each window, or its label alone."""
        named = [rows.codec.classes[index] for index in rows.truth]
        most = np.where(random.random(len(named)) < self.plain, 0, self.longest)
        return [
            grammar.rationale(measure(window), label, random, int(count))
            for window, label, count in zip(windows, named, most, strict=True)
        ]

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        from linnet.domains.series.labelling import label_part

        if split not in (None, "test"):
            raise BadInput(f'files of series have a test part and no "{split}"; leave --split out')
        files = chosen_files(paths)
        table = self.labelled.table(files.test or files.train, files.notes)
        part = label_part(self.labelled, windowed(codec), table)
        found = windows_of(part)
        windows = complete(found)
        texts = self._written(windows, found, np.random.default_rng(0))
        made = explained(captioning(codec), found, windows, texts)
        return replace(made, notes=part.notes, source=tuple(paths))

    def sized(self, config: NetworkConfig, material: Material) -> NetworkConfig:
        """With a column of patches for all channels of the windows."""
        assert isinstance(config, ModelConfig)
        width = LENGTH * (len(windowed(material.codec).channels) + 1)
        columns = {**config.columns, PATCHES: NumberColumn(width=width)}
        return super().sized(config.model_copy(update={"columns": columns}), material)

    def follow(self, codec: Codec, ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        raise BadInput("rationales are about windows: linnet predict RUN --file, or linnet search RUN --file")

    def columns_after(self, codec: Codec, prompt: str) -> Columns:
        if not NUMBERS.fullmatch(prompt):
            raise BadInput("a rationale is about a window: the prompt is its numbers, its channels parted by ;")
        found = captioning(codec)
        return columns_of(found.patches(found.numbers(prompt)))

    def prompts(self, path: Path) -> Mapping[str, str]:
        """Each window as numbers, channel by channel; it is named SERIES@FIRST STEP."""
        from linnet.domains.series.labels import labelled_windows

        files = chosen_files([path])
        table = replace(self.labelled.table(files.train or files.test), labels=None)
        found = labelled_windows(
            table, SeriesCodec("classes", table.channels, length=self.labels.length), self.labels.step
        )
        return dict(zip(names(found), map(window_text, complete(found)), strict=True))

    def score(
        self, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, **options: Any
    ) -> Scored:
        """Labels after greedy rationales beside labels alone, how many facts hold, and the likelihood."""
        from linnet.domains.series.rationales.scores import rationale_scores

        likelihood = super().score(network, codec, part, batch=batch, region=region)
        assert isinstance(part, Explained)
        with region():
            texts = greedy(decoder(network), captioning(codec), part.windows, rows=batch)
            alone = label_probabilities(network, captioning(codec), part.windows, batch=batch, region=region)
        found = rationale_scores(texts, alone, part)
        return replace(found, scores=(*found.scores, *likelihood.scores), notes=(*found.notes, *likelihood.notes))


@dataclass(frozen=True)
class Explained(Part):
    """A part whose rows are rationales of these windows."""

    windows: tuple[np.ndarray, ...] = ()
    labelled: LabelRows | None = None


def explained(codec: CaptionCodec, found: LabelRows, windows: np.ndarray, texts: Sequence[str]) -> Explained:
    return Explained(rows(codec, list(windows), texts), windows=tuple(windows), labelled=found)


def windowed(codec: Codec) -> SeriesCodec:
    found = captioning(codec).windows
    assert found is not None, "a run on activities knows its channels and classes"
    return found


def windows_of(part: Part) -> LabelRows:
    from linnet.domains.series.labels import LabelRows

    assert isinstance(part.rows, LabelRows)
    return part.rows


def complete(found: LabelRows) -> np.ndarray:
    """[n, T, C]: a missing value repeats the last one, and a window that is shorter repeats its end."""
    windows = found.values(found.first, found.count)
    for row, channel in np.argwhere(~np.isfinite(windows).all(1)):
        windows[row, :, channel] = filled(windows[row, :, channel])
    return windows


def names(found: LabelRows) -> list[str]:
    starts = found.table.starts[found.series]
    first = (found.first - starts).tolist()
    return [f"{found.table.names[series]}@{step}" for series, step in zip(found.series, first, strict=True)]


def window_text(window: np.ndarray) -> str:
    return "; ".join(as_text(channel) for channel in window.T)


def label_probabilities(
    network: Network,
    codec: CaptionCodec,
    windows: Sequence[np.ndarray],
    *,
    batch: int,
    region: Region,
    before: Sequence[str] | None = None,
) -> np.ndarray:
    """float64 [n, K]: the probability of each label, alone or after the facts that stand before it."""
    from linnet.evaluation import nats

    costs = []
    for label in windowed(codec).classes:
        texts = [f"{facts}{grammar.ANSWER}{label}." for facts in before or [""] * len(windows)]
        made: Rows = rows(codec, windows, texts)
        sums, _ = nats(decoder(network), made, rows=batch, region=region).between(made.starts)
        costs.append(sums)  # what the facts cost is the same for all labels
    found = np.stack(costs, 1)
    found = np.exp(found.min(1, keepdims=True) - found)
    return np.asarray(found / found.sum(1, keepdims=True))
