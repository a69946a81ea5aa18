"""The `[data]` part of a run on places: files, how they are read and split, and what a model may know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from linnet.codecs import Codec
from linnet.domains.contract import Domain, Material, Part, Region, Scored
from linnet.domains.places.cleaning import Reading, ingest
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.columns import Refused, parse_mapping
from linnet.domains.places.features import Augmentation, Cut, VisitRows
from linnet.domains.places.sample_files import parts_of, read_samples, sample_lines, write_visits
from linnet.domains.places.samples import (
    CHECK_INS,
    PUBLISHED,
    GivenRecipe,
    Recipe,
    Samples,
    divide,
    fingerprint,
    leaks,
    make_samples,
    parts_without_samples,
)
from linnet.domains.places.settings import FULL_IS_NOT_READ, CopyConfig, ScorerConfig
from linnet.domains.places.sources import JSON, files_of
from linnet.domains.places.visits import PARTS, ClusterRule, StayRule, Visits, legacy_ids, marked
from linnet.errors import BadInput, nearest
from linnet.files import refuse_existing, write_lines
from linnet.model.config import NetworkConfig
from linnet.records import DataRecord
from linnet.rows import RowSource

if TYPE_CHECKING:
    from linnet.data import Plan
    from linnet.model.contract import Network
    from linnet.training.checkpoint import RunFolder
    from linnet.training.run import Run

WRITTEN = (".csv", ".csv.gz", ".parquet")
PAST_ONLY = {  # settings of rows of the whole past
    "jitter": "it moves the times of visits",
    "suggestions": "it offers places where the user has never been",
    "cut": "it hides visits before the history",
    "every_visit": "it adds targets that only a past has",
}


class PlacesData(Domain):
    """`information` is what a prediction may use beside its history: the user's train part, or everything earlier.

    `reads` = history is the form of the published networks: no past at all, no times.
    """

    domain: Literal["places"] = Field("places", description="kind of sequences")
    paths: tuple[str, ...] = Field((), description="tables of visits, check-ins or fixes, or samples")
    columns: str = Field("", description="role=column, …")
    tz: str = Field("UTC", description="zone of times that name none")
    local: str = Field("", description="zone whose hours count; empty: that of the times")
    levels: tuple[int, ...] = Field((11, 13, 14), description="of S2 cells, coarse to fine")
    stays: StayRule = StayRule()
    clusters: ClusterRule = ClusterRule()
    protocol: Literal["", "published", "check-ins"] = Field(
        "", description="of samples; empty: by what the table holds"
    )
    recipe: GivenRecipe = Field(GivenRecipe(), description="what is to differ from the protocol")
    information: Literal["same", "full"] = Field(
        "same", description="what a prediction may use: the train part, or everything earlier"
    )
    reads: Literal["past", "history"] = Field(
        "past", description="everything that is known, or the history of a sample alone"
    )
    every_visit: bool = Field(
        True, description="train on every train visit with a history, not only on those of the protocol"
    )
    cut: float = Field(
        0.6, gt=0, le=1, description="training forgets places (and visits) back to this share of its day"
    )
    jitter: float = Field(0.0, ge=0, description="minutes by which the visits of training rows move")
    subsequences: float = Field(
        0.0, ge=0, le=1, description="share of training rows that keep only their latest visits"
    )
    select: Literal["loss", "acc@1", "legacy.acc@1", "strict.acc@1", "mrr"] = Field(
        "loss", description="makes a checkpoint the best"
    )
    suggestions: int = Field(16, ge=0, description="places of each kind where the user has never been")
    longest: int = Field(4096, ge=1, description="latest visits of a row")
    forgotten: tuple[str, ...] = Field((), description="marks of users whom training leaves out: linnet forget")

    @property
    def reading(self) -> Reading:
        same = {name: getattr(self, name) for name in Reading.model_fields if name != "columns"}
        return Reading(columns=parse_mapping(self.columns), **same)

    def table(self, paths: Sequence[Path] | None = None) -> Table:
        """The visits of these files (or of the run's own), split and sampled."""
        files = files_of(self.files if paths is None else paths)
        return read_table(files, self.reading, self.recipe, self.protocol)

    def write_samples(self, out: Path, *, force: bool = False) -> DataRecord:
        """The samples of these files in the published form, so that other programs score the same ones."""
        if not out.name.endswith(JSON):
            raise BadInput(f"samples are written to .jsonl or .jsonl.gz, not to {out.name}")
        refuse_existing(out, force=force)
        table = self.table()
        clock = table.recipe is not None and table.recipe.calendar == "local"
        lines = sample_lines(table.visits, table.samples, legacy_ids(table.visits, table.part), local=clock)
        write_lines(out, lines)
        rows = {name: int((table.samples.part == number).sum()) for number, name in enumerate(PARTS)}
        return DataRecord(path=str(out), rows=rows, counts={}, problems=table.problems, notes=table.notes)

    def write_visits(self, out: Path, *, force: bool = False) -> DataRecord:
        """The visits of these files as a table, in which places that came from coordinates have their numbers."""
        if not out.name.endswith(WRITTEN):
            raise BadInput(f"visits are written to {', '.join(WRITTEN)}, not to {out.name}")
        refuse_existing(out, force=force)
        files = files_of(self.files)
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

    @classmethod
    def network_config(cls, kind: str | None) -> type[NetworkConfig]:
        return CopyConfig if kind == "copy" else ScorerConfig

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return PlacesCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.paths)

    def sized(self, config: NetworkConfig, material: Material) -> NetworkConfig:
        """Sizes of tables from the codec where the recipe leaves them open."""
        codec = material.codec
        assert isinstance(codec, PlacesCodec)
        return config.sized(codec.sizes, len(codec.users) + FIRST) if isinstance(config, CopyConfig) else config

    def network(self, config: NetworkConfig, codec: Codec) -> Network:
        from linnet.domains.places.copying import CopyModel
        from linnet.domains.places.scorer import Scorer

        assert isinstance(codec, PlacesCodec)
        if isinstance(config, ScorerConfig):
            return Scorer(config)
        assert isinstance(config, CopyConfig)
        model = CopyModel(config)
        model.adopt(codec)
        return model

    def plan(self, rows: RowSource, run: Run) -> Plan:
        from linnet.domains.places.answers import VisitPlan

        assert isinstance(rows, VisitRows)
        return VisitPlan(rows, run.training.batch, run.seed)

    def judge(self, network: Network, part: Part, *, batch: int, region: Region) -> float:
        from linnet.domains.places.answers import shortfall

        return shortfall(network, visit_rows(part), self.select, batch, region)

    def score(
        self, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, **options: Any
    ) -> Scored:
        from linnet.domains.places.answers import score_part

        assert isinstance(codec, PlacesCodec)
        return score_part(self, network, codec, part, batch=batch, region=region, **options)

    @property
    def evaluation_options(self) -> Mapping[str, Any]:
        return {"information": "", "ranker": 0} | ({"filter": ""} if self.reads == "history" else {})

    @property
    def copy_options(self) -> Mapping[str, Any]:
        return {"rare": "keep", "fewer_than": 3}

    def finish_copy(self, folder: RunFolder, step: int, codec: Codec, **options: Any) -> tuple[str, ...]:
        from linnet.domains.places.use import lessen

        assert isinstance(codec, PlacesCodec)
        return lessen(folder, step, codec, **options)

    def for_evaluation(self, options: Mapping[str, Any]) -> tuple[Domain, Mapping[str, Any]]:
        information = options["information"]
        if information not in ("", "same", "full"):
            raise BadInput(f'information is same or full, not "{information}"')
        rest = {key: value for key, value in options.items() if key != "information"}
        return self.model_copy(update={"information": information}) if information else self, rest

    def unused(self, run: Run) -> Mapping[str, str]:
        found = {
            "training.packing": "rows of visits are padded",
            "augment": "data.jitter and data.subsequences are what changes rows of visits",
        }
        if self.reads == "history":
            reason = "{}, and this run reads places and cells of the history, without times and without the past"
            found |= {f"data.{name}": reason.format(does) for name, does in PAST_ONLY.items()}
        return found

    def remarks(self, run: Run, material: Material) -> tuple[str, ...]:
        return (FULL_IS_NOT_READ,) if self.reads == "history" and self.information == "full" else ()

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        """Read the files; the test part stays aside."""
        table = read_table(files_of(self.files), self.reading, self.recipe, self.protocol, self.forgotten)
        table.must_train()
        own = PlacesCodec.of(table.visits, table.part)
        if isinstance(codec, PlacesCodec) and not self.forgotten:
            own = codec
        train, validation = table.samples.of(0), table.samples.of(1)
        if self.reads == "past" and self.every_visit and table.recipe is not None:
            wide = table.recipe.model_copy(update={"skip_days": 0, "least": 1, "all_parts": False})
            train = make_samples(replace(table.visits, target=None), table.part, wide).of(0)
        if self.reads == "past":
            train = train.with_full_past(table.visits)
        rows = self.rows(table.visits, train, own)
        if self.reads == "past" and self.cut < 1:
            hides = self.information == "same"
            rows = replace(rows, cut=Cut.of(table.visits, table.part, self.cut, hides=hides))
        rows = replace(rows, augmentation=Augmentation(self.jitter, self.subsequences))
        held = self.rows(table.visits, self.informed(table, validation), own)
        held = replace(held, task=self.task_of(table, "validation"))
        return Material(own, Part(rows), Part(held), (*table.notes, *table.problems))

    def informed(self, table: Table, samples: Samples) -> Samples:
        return samples.with_full_past(table.visits) if self.information == "full" else samples

    def rows(self, visits: Visits, samples: Samples, codec: PlacesCodec) -> VisitRows:
        past = self.reads == "past"
        return VisitRows(visits, samples, codec, past, self.longest, self.suggestions if past else 0)

    def task_of(self, table: Table, split: str | None) -> str:
        """What the samples of a part are, in words."""
        known = "everything that the user did before" if self.information == "full" else "the user's train part"
        beside = "" if self.reads == "history" else f" and {known}"
        made = "samples of a file" if table.recipe is None else table.recipe.in_words()
        words = f"{split or 'all'} part{'' if split else 's'}; {made}; known are the history{beside}"
        if table.recipe is None or table.recipe.model_copy(update={"by": "day"}) == PUBLISHED:
            return words
        return f"{words}; for the published 6:2:2 by day with histories of 7 days: --set data.protocol=published"

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
        rows = self.rows(table.visits, self.informed(table, samples), codec)
        validation = self.informed(table, table.samples.of(1))
        held = validation if split != "validation" and len(validation) else None
        rows = replace(rows, held=held, task=self.task_of(table, split))
        return Part(rows, notes=notes, source=tuple(paths))


def other_clusters(codec: PlacesCodec, table: Table, paths: Sequence[Path], trained: Sequence[str]) -> list[str]:
    """Refuse clusters that have other numbers than those of the training; a note where only the files differ.

    The finest cells that a run stores tell whether a number still means the same place.
    """
    if not table.clustered:
        return []
    known = codec.place_ids(table.visits.places)
    level, there = max(set(codec.levels) & set(table.visits.cells), default=None), known >= FIRST
    moved = 0
    if level is not None and there.any():
        trained_cells = codec.cells_of_places(level)[known[there] - FIRST]
        moved = int(((trained_cells != table.visits.cells[level][there]) & (trained_cells > 0)).sum())
    same = {path.resolve() for path in paths} == {Path(path).resolve() for path in trained}
    if same and not moved:
        return []
    named = ", ".join(path.name for path in paths)
    text = (
        f"{named} names no places, and clusters of coordinates have numbers that mean something in one reading "
        f"alone: make one table of the training files and these (linnet data make visits --data … --data … "
        f"--out visits.csv), train on it and score on it"
    )
    if moved or not there.any() or level is None:
        share = f"{moved} of {there.sum()} numbers are another place than in training; " if moved else ""
        raise BadInput(f"{share}{text}")
    return [f"warning: {text}; here the numbers lie in the same cells as in training"]


def visit_rows(part: Part) -> VisitRows:
    assert isinstance(part.rows, VisitRows), "a domain of places gathers its rows from a table of visits"
    return part.rows


# --- what a table holds, and whether it can be trained on ------------------------------------------------


def check(
    paths: Sequence[Path], reading: Reading | None = None, recipe: GivenRecipe | None = None, protocol: str = ""
) -> DataRecord:
    """Everything that a person should know before training; a table that training refuses is marked as refused."""
    files = files_of(paths)
    path = ", ".join(map(str, files))
    try:
        table = read_table(files, reading or Reading(), recipe or GivenRecipe(), protocol)
    except BadInput as error:
        problems = error.problems if isinstance(error, Refused) else (str(error),)
        return DataRecord(path=path, rows={}, counts={}, problems=problems, refused=True)
    empty = parts_without_samples(table.visits, table.part, table.samples, table.recipe)
    leaking = leaks(table.visits, table.samples, table.part)
    refused = bool(leaking) or bool({0, 1} & set(empty))
    return _record(path, table, [*(f"empty split: {why}" for why in empty.values()), *leaking], refused=refused)


@dataclass(frozen=True)
class Table:
    """A file's visits with their parts and samples; `recipe` is None where the file brought its own samples."""

    visits: Visits
    part: np.ndarray  # int8 [visits]
    samples: Samples
    notes: tuple[str, ...]
    recipe: Recipe | None
    problems: tuple[str, ...] = ()
    clustered: bool = False  # places are numbers of clusters, which mean something in these files alone

    def must_train(self) -> None:
        """Refuse parts without samples, and leaks, with all else that was found."""
        empty = parts_without_samples(self.visits, self.part, self.samples, self.recipe)
        wrong = list(empty.values()) if {0, 1} & set(empty) else []
        wrong += leaks(self.visits, self.samples, self.part)
        if wrong:
            also = "\nalso found in them:\n  " + "\n  ".join(self.problems) if self.problems else ""
            raise BadInput("the visits cannot be trained on:\n  " + "\n  ".join(wrong) + also)


def read_table(
    files: Sequence[Path], reading: Reading, given: GivenRecipe, protocol: str = "", forgotten: Sequence[str] = ()
) -> Table:
    """The visits of these files, split and sampled, without those of users who were forgotten."""
    if all(path.name.endswith(JSON) for path in files):
        visits, samples = read_samples(files)
        if forgotten:
            gone = marked(visits.users, forgotten)
            visits, samples = visits.without(gone), samples.among(~gone[visits.user])
        part = parts_of(len(visits), samples.target, samples.part, samples.rows, samples.lengths)
        return Table(visits, part, samples, (), None)
    found = ingest(files, reading)
    if forgotten:
        found = replace(found, visits=found.visits.without(marked(found.visits.users, forgotten)))
    usual = default_recipe(found.visits) if given.by is None else Recipe()
    recipe = given.over({"published": PUBLISHED, "check-ins": CHECK_INS}.get(protocol, usual))
    part = divide(found.visits, recipe)
    samples = make_samples(found.visits, part, recipe)
    note = f"samples {fingerprint(found.visits, recipe, samples)} by {recipe.model_dump_json()}"
    problems = tuple(map(str, found.problems))
    clustered = "place" not in found.columns
    return Table(found.visits, part, samples, (*found.notes(), note), recipe, problems, clustered)


def default_recipe(visits: Visits) -> Recipe:
    """A split column is obeyed; stays get the published 6:2:2 by day, check-ins shares of each user's visits.

    Stays of too few weeks for that, where a part would have no samples, are split as check-ins are.
    """
    stays = bool((visits.end > visits.start).any())
    if visits.part is not None:
        return (PUBLISHED if stays else CHECK_INS).model_copy(update={"by": "column"})
    if not stays:
        return CHECK_INS
    samples = make_samples(visits, divide(visits, PUBLISHED), PUBLISHED)
    return PUBLISHED if len(np.unique(samples.part)) == len(PARTS) else CHECK_INS


def _record(path: str, table: Table, problems: Sequence[str], *, refused: bool) -> DataRecord:
    visits, samples = table.visits, table.samples
    per_user = np.diff(visits.bounds)
    rows = {
        "visits": len(visits),
        "users": len(visits.users),
        "places": len(visits.places),
        "samples": len(samples),
    }
    seen_by = _users_per_place(visits)
    counts = {
        "samples": {name: int((samples.part == number).sum()) for number, name in enumerate(PARTS)},
        "visits per user": _spread(per_user),
        "history": _spread(samples.lengths),
        "places seen by": {"one user": int((seen_by == 1).sum()), "fewer than three": int((seen_by < 3).sum())},
        "cells": {f"level {level}": len(np.unique(ids[ids > 0])) for level, ids in visits.cells.items()},
    }
    problems = (*table.problems, *problems)
    return DataRecord(path=path, rows=rows, counts=counts, problems=problems, notes=table.notes, refused=refused)


def _users_per_place(visits: Visits) -> np.ndarray:
    pairs = np.unique(visits.place.astype(np.int64) * len(visits.users) + visits.user)
    return np.bincount(pairs // max(len(visits.users), 1), minlength=len(visits.places))


def _spread(values: np.ndarray) -> dict[str, int]:
    if len(values) == 0:
        return {}
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}
