"""The `[data]` part of a run on places: files, how they are read and split, and what a model may know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from linnet.codecs import Codec
from linnet.domains import Material, Part, Question
from linnet.domains.places.checking import Table, read_table
from linnet.domains.places.cleaning import Reading, ingest
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.features import Augmentation, Cut, VisitRows
from linnet.domains.places.sample_files import writable, write_samples, write_visits
from linnet.domains.places.samples import GivenRecipe, Recipe, Samples, make_samples
from linnet.domains.places.sources import JSON, files_of, parse_mapping
from linnet.domains.places.visits import PARTS, ClusterRule, StayRule, Visits, legacy_ids
from linnet.errors import BadInput, nearest
from linnet.files import refuse_existing
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
    recipe: GivenRecipe = GivenRecipe()  # over a split column, else by day for stays and by time for check-ins
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

    @field_validator("recipe", mode="before")
    @classmethod
    def _given(cls, recipe: object) -> object:
        """A whole recipe may be given, too, and nothing, as in settings that were written before."""
        if recipe is None:
            return GivenRecipe()
        return GivenRecipe.of(recipe) if isinstance(recipe, Recipe) else recipe

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
        return read_table(files, self.reading, self.recipe)

    def write_samples(self, out: Path, *, force: bool = False) -> DataRecord:
        """The samples of these files in the published form, so that other programs score the same ones."""
        if not out.name.endswith(JSON):
            raise BadInput(f"samples are written to .jsonl or .jsonl.gz, not to {out.name}")
        refuse_existing(out, force=force)
        table = self.table()
        clock = table.recipe is not None and table.recipe.calendar == "local"
        write_samples(out, table.visits, table.samples, legacy_ids(table.visits, table.part), local=clock)
        rows = {name: int((table.samples.part == number).sum()) for number, name in enumerate(PARTS)}
        return DataRecord(path=str(out), rows=rows, counts={}, problems=table.problems, notes=table.notes)

    def write_visits(self, out: Path, *, force: bool = False) -> DataRecord:
        """The visits of these files as a table, in which places that came from coordinates have their numbers."""
        writable(out, force=force)
        files = files_of([Path(path) for path in self.paths])
        if any(path.name.endswith(JSON) for path in files):
            raise BadInput("samples hold no times to write visits with; give the table that they were made from")
        found = ingest(files, self.reading)
        visits = found.visits
        write_visits(out, visits)
        rows = {"visits": len(visits), "users": len(visits.users), "places": len(visits.places)}
        notes = list(found.notes())
        if "place" not in found.columns:
            notes.append(
                "places are numbers of clusters: they mean the same within this table alone, so what is to be "
                "compared with it has to be written into it"
            )
        problems = tuple(map(str, found.problems))
        return DataRecord(path=str(out), rows=rows, counts={}, problems=problems, notes=tuple(notes))

    def load(self, seed: int) -> Material:
        """Read the files; the test part stays aside."""
        if not self.paths:
            raise BadInput("places need --data: a table of visits, check-ins or fixes")
        table = self.table()
        table.must_train()
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
            codec,
            _part(rows),
            _part(self.rows(table, self.informed(table, validation), codec)),
            (*table.notes, *table.problems),
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
        notes = (*table.notes, *table.problems, *other_clusters(codec, table, paths, self.paths))
        return replace(_part(self.rows(table, self.informed(table, samples), codec)), notes=notes)

    def right(self, question: Question, answer: str) -> bool:
        return question.answer == answer

    def baseline(self, questions: Sequence[Question]) -> Baseline:
        return Baseline(name="none", value=0.0)


def every_train_visit(visits: Visits, part: np.ndarray, recipe: Recipe) -> Samples:
    """A sample of each train visit that has any history in the window of the recipe."""
    wide = recipe.model_copy(update={"skip_days": 0, "least": 1, "all_parts": False})
    return make_samples(replace(visits, target=None), part, wide).of(0)


def other_clusters(codec: PlacesCodec, table: Table, paths: Sequence[Path], trained: Sequence[str]) -> list[str]:
    """Refuse clusters that have other numbers than those of the training; a note where only the files differ.

    The finest cells that a run stores tell whether a number still means the same place.
    """
    if not table.clustered:
        return []
    known = codec.place_ids(table.visits.places)
    level = max(set(codec.levels) & set(table.visits.cells), default=None)
    moved = 0
    if level is not None and (known >= FIRST).any():
        trained_cells = codec.cells_of_places(level)[known[known >= FIRST] - FIRST]
        cells = table.visits.cells[level][known >= FIRST]
        moved = int(((trained_cells != cells) & (trained_cells > 0)).sum())
    same = {path.resolve() for path in paths} == {Path(path).resolve() for path in trained}
    if same and not moved:
        return []
    named = ", ".join(path.name for path in paths)
    said = (
        f"{named} names no places, and clusters of coordinates have numbers that mean something in one reading "
        f"alone: make one table of the training files and these (linnet data make visits --data … --data … "
        f"--out visits.csv), train on it and score on it"
    )
    if moved or not (known >= FIRST).any() or level is None:
        share = (
            f"{moved} of {int((known >= FIRST).sum())} numbers are another place than in training; "
            if moved
            else ""
        )
        raise BadInput(f"{share}{said}")
    return [f"warning: {said}; here the numbers lie in the same cells as in training"]


def _part(rows: VisitRows) -> Part:
    return Part(EMPTY, visits=rows)


EMPTY = Sequences(np.empty(0, np.uint16), np.zeros(1, np.int64), np.empty(0, bool))
