"""The contract of domains: kinds of sequences, where they come from, what predicts them, and how they are scored.

A domain is one frozen settings class, the `[data]` part of a run. `TokenDomain` in `linnet.domains.tokens` has
the defaults of everything that is a stream of ids. No torch here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from linnet.codecs import Codec
from linnet.errors import BadInput
from linnet.records import Baseline, CaptionRecord, ForecastRecord, Record, Score, System
from linnet.rows import RowSource

if TYPE_CHECKING:
    from linnet.data import Plan
    from linnet.decoding.runner import Columns
    from linnet.model.config import NetworkConfig
    from linnet.model.contract import Network
    from linnet.training.checkpoint import RunFolder
    from linnet.training.run import Run

Region = Callable[[], AbstractContextManager[object]]  # the precision in which a network computes

# From the names of the tokens of a prompt to the value of a variable, and to the next token for each value of it.
Hypothesis = Callable[[Sequence[str]], tuple[Hashable, Callable[[Hashable], str]]]


@dataclass(frozen=True)
class Question:
    """A prompt with one right answer, and the groups that its score is also reported by."""

    prompt: str
    answer: str
    groups: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of a data set: rows to be predicted, and questions to be answered where there are any.

    `baselines` counts, when it is called, what models without a network reach on these rows (nats per scored
    token); `note` stands next to each likelihood score, such as that the tokenizer loses something; `notes` are
    shown once, such as what was met while the files were read.
    """

    rows: RowSource
    questions: tuple[Question, ...] = ()
    baselines: Callable[[], tuple[Baseline, ...]] | None = None
    note: str = ""
    notes: tuple[str, ...] = ()
    unit: str = "row"  # what a row is: scores have their intervals over so many of them
    source: tuple[Path, ...] = ()  # the files that it was read from


@dataclass(frozen=True)
class Material:
    """Everything that training reads; a test part is never in it."""

    codec: Codec
    train: Part
    validation: Part
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """Scores, and where the domain has one, the table of the systems to beat."""

    scores: tuple[Score, ...]
    systems: tuple[System, ...] = ()
    notes: tuple[str, ...] = ()
    examples: tuple[ForecastRecord | CaptionRecord, ...] = ()  # a report draws them where pictures can be drawn


@dataclass(frozen=True)
class Predictions:
    """One record a line of a file, in its order; what was repaired in it, and how long the predicting took."""

    records: tuple[Record, ...]
    notes: tuple[str, ...]
    seconds: float  # opening the run and reading the file not counted
    batch: int

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


class Domain(BaseModel, ABC):
    """The `[data]` part of a run, and everything that only this kind of sequences knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str

    @classmethod
    @abstractmethod
    def network_config(cls, kind: str | None) -> type[NetworkConfig]:
        """The settings class of the `[model]` part of a run, where it has this `kind`."""

    @classmethod
    @abstractmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        """The codec of a `codec.json`."""

    @abstractmethod
    def load(self, seed: int, codec: Codec | None = None) -> Material:
        """The training and validation parts, the same ones for the same seed. A run that is resumed,
        or that begins with the weights of another, brings its codec."""

    @abstractmethod
    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        """All rows of these files (or only those of one `split`), for scoring."""

    @abstractmethod
    def sized(self, config: NetworkConfig, material: Material) -> NetworkConfig:
        """The settings of the network with the sizes that follow from the data."""

    @abstractmethod
    def network(self, config: NetworkConfig, codec: Codec) -> Network:
        """A fresh network."""

    @abstractmethod
    def plan(self, rows: RowSource, run: Run) -> Plan:
        """The batches of training."""

    @abstractmethod
    def judge(self, network: Network, part: Part, *, batch: int, region: Region) -> float:
        """What the best checkpoint is chosen by: less is better."""

    @abstractmethod
    def score(
        self, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, **options: Any
    ) -> Scored:
        """Every score that this part allows. `options` are those of `evaluation_options`."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What a run on these data reads and needs again; a run is never written over it."""
        return ()

    def further_columns(self, codec: Codec) -> Columns | None:
        """The further columns of rows that are generated, from their ids; None where only tokens are read."""
        return None

    def validation_part(self, codec: Codec, seed: int) -> Part:
        """The validation part of a run with this seed, for analyses."""
        return self.load(seed, codec).validation

    def token_labels(self, codec: Codec, ids: Sequence[int]) -> Mapping[str, Sequence[str | None]]:
        """What each of these tokens stands for, by the name of the label; probes are trained to read it."""
        return {}

    def hypotheses(self, codec: Codec) -> Mapping[str, tuple[int, Hypothesis]]:
        """Variables that a model may hold, each with the step whose prediction depends on it."""
        return {}

    def columns_after(self, codec: Codec, prompt: str) -> Columns | None:
        """The further columns of rows that go on from this prompt, where they depend on it."""
        return self.further_columns(codec)

    def prompts(self, path: Path) -> Mapping[str, str] | None:
        """The prompts of a file by name, of domains whose files are no lines of text."""
        return None

    def rounds(self, parameters: int, steps: int) -> float:
        """How often so many steps of data are read by a network of this size where a run does not say."""
        return 1.0

    def unused(self, run: Run) -> Mapping[str, str]:
        """Settings of a run that change nothing here, by dotted key, each with the reason."""
        return {}

    def remarks(self, run: Run, material: Material) -> tuple[str, ...]:
        """What a person should know before training starts."""
        return ()

    def held_out(self, codec: Codec, split: str | None, n: int, seed: int) -> Part:
        """Rows that training never read, of domains that draw their own."""
        raise BadInput("this run was trained on files, so its scores need --data")

    @property
    def evaluation_options(self) -> Mapping[str, Any]:
        """The settings that `eval --set` takes beside its own, with their defaults."""
        return {}

    @property
    def copy_options(self) -> Mapping[str, Any]:
        """What a copy of a run may leave out, with the defaults; `export --to run` takes these."""
        return {}

    def finish_copy(self, folder: RunFolder, step: int, codec: Codec, **options: Any) -> tuple[str, ...]:
        """Rewrite the copy of a run so that it holds less, as `options` (of `copy_options`) say; returns notes."""
        return ()

    def for_evaluation(self, options: Mapping[str, Any]) -> tuple[Domain, Mapping[str, Any]]:
        """The domain changed by the settings of `eval`, and those that `score` takes."""
        return self, options
