"""The `[data]` part of a run on places: files, how they are read and split, and what a model may know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from linnet.codecs import Codec
from linnet.domains import Material, Part, Question
from linnet.domains.places.checking import default_recipe, leaks
from linnet.domains.places.clusters import ClusterRule
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.columns import parse_mapping
from linnet.domains.places.ingest import Reading, ingest
from linnet.domains.places.rows import Augmentation, Cut, VisitRows
from linnet.domains.places.samples_file import read_samples, write_samples
from linnet.domains.places.splits import Recipe, Samples, divide, fingerprint, make_samples, need_parts
from linnet.domains.places.stays import StayRule
from linnet.domains.places.tables import SAMPLES, files_of
from linnet.domains.places.visits import PARTS, Visits, legacy_ids
from linnet.errors import BadInput, nearest
from linnet.records import Baseline, DataRecord
from linnet.sequences import Sequences


class PlacesData(BaseModel):
    """`information` is what a prediction may use beside its history: the user's train part, or everything earlier.

    `reads` = history is the form of the published networks: no past at all, no times.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: Literal["places"] = "places"
    paths: tuple[str, ...] = ()
    columns: str = ""  # role=column, …
    tz: str = "UTC"
    local: str = ""
    levels: tuple[int, ...] = (11, 13, 14)
    stays: StayRule = StayRule()
    clusters: ClusterRule = ClusterRule()
    recipe: Recipe | None = None  # None: a split column, else by day for stays and by time for check-ins
    information: Literal["same", "full"] = "same"
    reads: Literal["past", "history"] = "past"
    every_visit: bool = True  # train on every train visit with a history, not only on those of the protocol
    cut: float = Field(0.6, gt=0, le=1)  # training forgets places (and visits) back to this share of its day
    jitter: float = Field(0.0, ge=0)  # minutes by which the visits of training rows move
    subsequences: float = Field(0.0, ge=0, le=1)  # share of training rows that keep only their latest visits
    select: Literal["loss", "acc@1", "legacy.acc@1", "strict.acc@1"] = (
        "loss"  # what the best checkpoint is best in
    )
    suggestions: int = Field(16, ge=0)  # places of each kind where the user has never been
    longest: int = Field(4096, ge=1)

    @property
    def reading(self) -> Reading:
        return Reading(
            columns=parse_mapping(self.columns),
            tz=self.tz,
            local=self.local,
            levels=self.levels,
            stays=self.stays,
            clusters=self.clusters,
        )

    def table(self, paths: Sequence[Path] | None = None) -> Table:
        """The visits of these files (or of the run's own), split and sampled."""
        files = files_of([Path(path) for path in self.paths] if paths is None else paths)
        if not files:
            raise BadInput("places need --data: a table of visits, check-ins or fixes")
        if all(path.name.endswith(SAMPLES) for path in files):
            visits, samples = read_samples(files)
            return Table(visits, _parts_of(visits, samples), samples, (), None)
        found = ingest(files, self.reading)
        recipe = self.recipe or default_recipe(found.visits)
        part = divide(found.visits, recipe)
        samples = make_samples(found.visits, part, recipe)
        said = f"samples {fingerprint(found.visits, recipe, samples)} by {recipe.model_dump_json()}"
        return Table(found.visits, part, samples, (*found.notes(), *map(str, found.problems), said), recipe)

    def write_samples(self, out: Path, *, force: bool = False) -> DataRecord:
        """The samples of these files in the published form, so that other programs score the same ones."""
        if not out.name.endswith(SAMPLES):
            raise BadInput(f"samples are written to .jsonl or .jsonl.gz, not to {out.name}")
        if out.exists() and not force:
            raise BadInput(f"{out} exists; choose another --out, or replace it with --force")
        table = self.table()
        clock = table.recipe is not None and table.recipe.calendar == "local"
        write_samples(out, table.visits, table.samples, legacy_ids(table.visits, table.part), local=clock)
        rows = {name: int((table.samples.part == number).sum()) for number, name in enumerate(PARTS)}
        return DataRecord(path=str(out), rows=rows, counts={}, problems=(), notes=table.notes)

    def load(self, seed: int) -> Material:
        """Read the files; the test part stays aside."""
        if not self.paths:
            raise BadInput("places need --data: a table of visits, check-ins or fixes")
        table = self.table()
        need_parts(table.samples)
        leaking = leaks(table.visits, table.samples, table.part)
        if leaking:
            raise BadInput("; ".join(leaking))
        codec = PlacesCodec.of(table.visits, table.part)
        train, validation = table.samples.of(0), table.samples.of(1)
        if self.reads == "past" and self.every_visit and table.recipe is not None:
            train = every_train_visit(table.visits, table.part, table.recipe)
        if self.reads == "past":
            train = train.with_full_past(table.visits)
        rows = self.rows(table, train, codec)
        if self.reads == "past" and self.cut < 1:
            hides = self.information == "same"
            rows = replace(rows, cut=Cut.of(table.visits, table.part, self.cut, hides=hides))
        rows = replace(rows, augmentation=Augmentation(self.jitter, self.subsequences))
        return Material(
            codec, _part(rows), _part(self.rows(table, self.informed(table, validation), codec)), table.notes
        )

    def informed(self, table: Table, samples: Samples) -> Samples:
        return samples.with_full_past(table.visits) if self.information == "full" else samples

    def rows(self, table: Table, samples: Samples, codec: PlacesCodec) -> VisitRows:
        past = self.reads == "past"
        suggestions = self.suggestions if past else 0
        return VisitRows(table.visits, samples, codec, past, self.longest, suggestions)

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        """All samples of these files, or those of one part."""
        assert isinstance(codec, PlacesCodec)
        table = self.table(paths)
        samples = table.samples
        if split is not None:
            if split not in PARTS:
                raise BadInput(f'there is no split "{split}"{nearest(split, PARTS)}')
            samples = samples.of(PARTS.index(split))
        return _part(self.rows(table, self.informed(table, samples), codec))

    def right(self, question: Question, answer: str) -> bool:
        return question.answer == answer

    def baseline(self, questions: Sequence[Question]) -> Baseline:
        return Baseline(name="none", value=0.0)


@dataclass(frozen=True)
class Table:
    """A file's visits with their parts and samples; `recipe` is None where the file brought its own samples."""

    visits: Visits
    part: np.ndarray  # int8 [visits]
    samples: Samples
    notes: tuple[str, ...]
    recipe: Recipe | None


def every_train_visit(visits: Visits, part: np.ndarray, recipe: Recipe) -> Samples:
    """A sample of each train visit that has any history in the window of the recipe."""
    wide = recipe.model_copy(update={"skip_days": 0, "least": 1, "all_parts": False})
    return make_samples(replace(visits, target=None), part, wide).of(0)


def _parts_of(visits: Visits, samples: Samples) -> np.ndarray:
    part = np.full(len(visits), -1, np.int8)
    part[samples.rows] = np.repeat(samples.part, samples.lengths)
    part[samples.target] = samples.part
    return part


def _part(rows: VisitRows) -> Part:
    return Part(EMPTY, visits=rows)


EMPTY = Sequences(np.empty(0, np.uint16), np.zeros(1, np.int64), np.empty(0, bool), 0, 0)
