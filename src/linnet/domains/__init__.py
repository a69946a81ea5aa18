"""Kinds of values: where they come from, their codec, their exact check, and what a model has to beat.

Each domain is one frozen settings object, the `[data]` part of a run. What it must offer is `Domain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from linnet.codecs import Codec
from linnet.records import Baseline
from linnet.sequences import Sequences

if TYPE_CHECKING:
    from linnet.domains.places.features import VisitRows


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
    token); `note` is said next to each likelihood score, such as that the tokenizer loses something; `notes` are
    said once, such as what was met while the files were read.
    """

    sequences: Sequences
    questions: tuple[Question, ...] = ()
    baselines: Callable[[], tuple[Baseline, ...]] | None = None
    note: str = ""
    notes: tuple[str, ...] = ()
    unit: str = "row"  # what a row is: scores have their intervals over so many of them
    visits: VisitRows | None = None  # places: samples gathered from a visit table stand in for the sequences

    @property
    def rows(self) -> Sequences | VisitRows:
        """What batches are cut from."""
        return self.sequences if self.visits is None else self.visits


@dataclass(frozen=True)
class Material:
    """Everything that training reads; a test part is never in it."""

    codec: Codec
    train: Part
    validation: Part
    notes: tuple[str, ...] = ()


class Domain(Protocol):
    """The contract of the `[data]` part of a run."""

    @property
    def domain(self) -> str: ...

    def load(self, seed: int) -> Material:
        """Read or generate the training and validation parts, the same ones for the same seed."""

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        """All rows of these files (or only those of one `split`), for scoring."""

    def right(self, question: Question, answer: str) -> bool:
        """Whether a generated answer is exactly right."""

    def baseline(self, questions: Sequence[Question]) -> Baseline:
        """The best share of right answers that a rule without a model reaches on these questions."""
