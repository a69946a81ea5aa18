"""The `[data]` part of a run on series: files, how they are read, and what is predicted from which windows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from linnet.codecs import Codec
from linnet.domains.contract import Domain, Material, Part, Region, Scored
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.settings import ConvolutionConfig, LabelConfig, ResidualConfig, SyntheticConfig
from linnet.domains.series.sources import Reading, parse_roles, parse_where, read_table
from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput
from linnet.model.config import ModelConfig, NetworkConfig
from linnet.rows import RowSource

if TYPE_CHECKING:
    from linnet.data import Plan
    from linnet.domains.series.labels import LabelRows
    from linnet.domains.series.windows import ForecastRows
    from linnet.model.contract import Network
    from linnet.training.run import Run

FORECASTS = ("frequency", "season", "horizon", "histories", "held", "recent", "synthetic")  # of forecasts alone
BASELINES = ("all", "untrained")  # of forecasts: the second leaves out the network that is trained to compare with
NEEDS = "series need --data: a CSV or Parquet table, a .ts file, or a folder of them"


class SeriesData(Domain):
    """`task` is what a run predicts. What is 0 or empty follows from the files by the rules of the guide."""

    domain: Literal["series"] = Field("series", description="kind of sequences")
    task: Literal["forecast", "classes"] = Field("forecast", description="what is predicted")
    paths: tuple[str, ...] = Field((), description="tables of series, .ts files, or folders of them")
    columns: str = Field("", description="id=COLUMN+COLUMN, time=, value=, channel=, label=, group=")
    where: str = Field("", description="rows of a long table that are read: COLUMN=VALUE, …")
    frequency: str = Field("", description="hourly, weekly, …; empty: by times, file names, or not known")
    season: int = Field(0, ge=0, description="steps that scale errors; 0: by the frequency, or detected")
    horizon: int = Field(0, ge=0, description="steps of a forecast; 0: by the frequency")
    histories: tuple[float, ...] = Field(
        (1.02, 1.06, 1.12, 1.2),
        min_length=1,
        description="lengths that are seen, in longest cycles, or in two horizons where those are longer",
    )
    held: int = Field(1, ge=0, description="horizons at the end of some series that only validation sees")
    held_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of the series that are held out so; 20 of them at least, if there are any",
    )
    recent: int = Field(20, ge=1, description="horizons before them in which training windows end")
    labels: LabelConfig = LabelConfig()
    synthetic: SyntheticConfig = SyntheticConfig()

    @property
    def reading(self) -> Reading:
        return Reading(parse_roles(self.columns), parse_where(self.where), labelled=self.task == "classes")

    @classmethod
    def network_config(cls, kind: str | None) -> type[NetworkConfig]:
        if kind == "convolution":
            return ConvolutionConfig
        return ResidualConfig if kind == "residual" else ModelConfig

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return SeriesCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.paths)

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        """Read the files of the training part, and keep a part of them aside."""
        files = chosen_files(self.files)
        if not files.train:
            raise BadInput(
                f"there is nothing to learn from: {files.test[0]} is a test part" if files.test else NEEDS
            )
        table = self.table(files.train, files.notes)
        assert codec is None or isinstance(codec, SeriesCodec)
        if self.task == "classes":
            from linnet.domains.series.labelling import label_material

            return label_material(self, table, seed, codec)
        from linnet.domains.series.forecasts import forecast_material

        return forecast_material(self, table, codec, seed)

    def table(self, files: Sequence[Path], notes: Sequence[str] = ()) -> SeriesTable:
        """The series of these files."""
        table = read_table(files, self.reading)
        return replace(table, notes=(*notes, *table.notes))

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        """The test part of these files (forecasts: after its history), or where there is none, all of them."""
        assert isinstance(codec, SeriesCodec)
        if split not in (None, "test"):
            raise BadInput(f'files of series have a test part and no "{split}"; leave --split out')
        files = chosen_files(paths)
        if self.task == "classes":
            from linnet.domains.series.labelling import label_part

            return label_part(self, codec, self.table(files.test or files.train, files.notes))
        from linnet.domains.series.forecasts import forecast_part

        if not files.train:
            raise BadInput(f"{files.test[0]} is a test part; give the file with the history before it, too")
        test = read_table(files.test, self.reading) if files.test else None
        return forecast_part(codec, self.table(files.train, files.notes), test)

    def sized(self, config: NetworkConfig, material: Material) -> NetworkConfig:
        codec = material.codec
        assert isinstance(codec, SeriesCodec)
        if isinstance(config, ConvolutionConfig):
            self._refuse("forecast", "residual")
            sizes = {"inputs": len(codec.channels), "classes": len(codec.classes), "window": codec.length}
            return config.model_copy(update=sizes)
        self._refuse("classes", "convolution")
        if isinstance(config, ModelConfig):
            from linnet.domains.series import patches

            return patches.sized(config, codec)
        assert isinstance(config, ResidualConfig)
        found = {"lengths": config.lengths or codec.histories, "outputs": codec.horizon}
        return config.model_copy(update=found)

    def _refuse(self, task: str, right: str) -> None:
        if self.task == task:
            raise BadInput(f"data.task={task} needs a network of the kind {right}; start from another recipe")

    def network(self, config: NetworkConfig, codec: Codec) -> Network:
        if isinstance(config, ConvolutionConfig):
            from linnet.domains.series.convolution import Convolution

            assert isinstance(codec, SeriesCodec)
            _refuse_unfit("inputs", config.inputs, len(codec.channels), "channels")
            _refuse_unfit("classes", config.classes, len(codec.classes), "classes")
            return Convolution(config)
        if isinstance(config, ModelConfig):
            from linnet.model.model import Model

            return Model(config)
        from linnet.domains.series.residual import Residual

        assert isinstance(config, ResidualConfig) and isinstance(codec, SeriesCodec)
        _refuse_unfit("outputs", config.outputs, codec.horizon, "steps of its horizon")
        if (longest := max(config.lengths)) > (there := max(codec.histories, default=0)):
            other = f"histories of the codec end at {there} steps; one of the two was changed"
            raise BadInput(f"model.lengths has {longest}, and {other}")
        return Residual(config)

    def plan(self, rows: RowSource, run: Run) -> Plan:
        if self.task == "classes":
            from linnet.domains.series.labels import LabelPlan

            return LabelPlan(label_rows(rows), run.training.batch, run.seed, self.labels.step, self.labels.turn)
        from linnet.domains.series.synthetic import synthetic_windows
        from linnet.domains.series.windows import ForecastPlan

        shape = None
        if isinstance(run.model, ModelConfig):
            from linnet.domains.series.patches import patched

            shape = functools.partial(patched, run.model)
        own = forecast_rows(rows)
        drawn = synthetic_windows(own, self.synthetic, run.seed, run.training.steps or 0)
        return ForecastPlan(own, run.training.batch, run.seed, shape, drawn)

    def judge(self, network: Network, part: Part, *, batch: int, region: Region) -> float:
        if self.task == "classes":
            from linnet.domains.series.labelling import nats

            return nats(network, label_rows(part.rows), batch, region)
        from linnet.domains.series.forecasts import mean_loss

        return mean_loss(network, forecast_rows(part.rows), batch, region)

    def score(
        self, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, **options: Any
    ) -> Scored:
        if self.task == "classes":
            from linnet.domains.series.labelling import score_labels

            return score_labels(network, label_rows(part.rows), batch, region)
        from linnet.domains.series.scoring import score_forecasts

        trained = options.get("baselines", BASELINES[0]) == BASELINES[0]
        return score_forecasts(network, forecast_rows(part.rows), batch, region, trained=trained)

    @property
    def evaluation_options(self) -> Mapping[str, Any]:
        return {} if self.task == "classes" else {"baselines": BASELINES[0]}

    def for_evaluation(self, options: Mapping[str, Any]) -> tuple[Domain, Mapping[str, Any]]:
        chosen = options.get("baselines", BASELINES[0])
        if chosen not in BASELINES:
            raise BadInput(f'baselines is {" or ".join(BASELINES)}, not "{chosen}"')
        return self, options

    def unused(self, run: Run) -> Mapping[str, str]:
        found = {
            "training.packing": "rows are windows of one length",
            "augment": "windows of numbers have no tokens to mask, and are drawn or moved at random",
        }
        if self.task == "classes":
            return found | {f"data.{name}": "classes are named" for name in FORECASTS}
        if not self.synthetic.used:
            found |= {f"data.synthetic.{name}": "no windows are drawn" for name in ("count", "mixed")}
        return found | {"data.labels": "this is a forecast"}

    def remarks(self, run: Run, material: Material) -> tuple[str, ...]:
        if self.held or self.task == "classes":
            return ()
        return ("data.held=0: training sees the end of each series, so the scores of this run are no test",)


def _refuse_unfit(key: str, size: int, there: int, what: str) -> None:
    if size != there:
        raise BadInput(f"model.{key} is {size}, and the codec has {there} {what}; one of the two was changed")


def forecast_rows(rows: RowSource) -> ForecastRows:
    from linnet.domains.series.windows import ForecastRows

    assert isinstance(rows, ForecastRows), "a run that forecasts gathers windows of its table"
    return rows


def label_rows(rows: RowSource) -> LabelRows:
    from linnet.domains.series.labels import LabelRows

    assert isinstance(rows, LabelRows), "a run that names classes gathers labelled windows of its table"
    return rows


def lengths_of(histories: Sequence[float], cycle: int, horizon: int) -> tuple[int, ...]:
    """Steps of each history: so many of the longest cycle, or of two horizons where those are longer."""
    base = max(cycle, 2 * horizon)
    return tuple(max(2 * horizon, int(np.ceil(share * base))) for share in histories)
