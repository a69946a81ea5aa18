"""`linnet data check` for places: what is wrong row by row, what samples it gives, and what leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from linnet.domains.places.cleaning import Reading, ingest
from linnet.domains.places.findings import Refused
from linnet.domains.places.sample_files import parts_of, read_samples
from linnet.domains.places.samples import (
    CHECK_INS,
    CHUNK,
    PUBLISHED,
    GivenRecipe,
    Recipe,
    Samples,
    divide,
    fingerprint,
    make_samples,
    parts_without_samples,
)
from linnet.domains.places.sources import JSON, files_of
from linnet.domains.places.visits import PARTS, Visits, marked
from linnet.errors import BadInput
from linnet.records import DataRecord


def check(
    paths: Sequence[Path], reading: Reading | None = None, recipe: GivenRecipe | None = None, protocol: str = ""
) -> DataRecord:
    """Everything that a person should know before training; a table that training refuses is marked as refused."""
    files = files_of(paths)
    try:
        table = read_table(files, reading or Reading(), recipe or GivenRecipe(), protocol)
    except BadInput as error:
        problems = error.problems if isinstance(error, Refused) else (str(error),)
        return DataRecord(path=_names(files), rows={}, counts={}, problems=problems, refused=True)
    empty = parts_without_samples(table.visits, table.part, table.samples, table.recipe)
    leaking = table.leaks()
    refused = bool(leaking) or bool({0, 1} & set(empty))
    return _record(files, table, [*(f"empty split: {why}" for why in empty.values()), *leaking], refused=refused)


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

    def leaks(self) -> list[str]:
        return leaks(self.visits, self.samples, self.part)

    def must_train(self) -> None:
        """Refuse parts without samples, and leaks, with all else that was found."""
        empty = parts_without_samples(self.visits, self.part, self.samples, self.recipe)
        wrong = [*(list(empty.values()) if {0, 1} & set(empty) else []), *self.leaks()]
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


def leaks(visits: Visits, samples: Samples, part: np.ndarray | None = None) -> list[str]:
    """Ways in which a sample could know its answer, or a part could know another; none for an honest split."""
    target = samples.target
    number = np.zeros(len(_HISTORY_LEAKS), np.int64)
    for begin in range(0, len(samples), CHUNK):
        number += _history_leaks(visits, samples.choose(np.arange(begin, min(begin + CHUNK, len(samples)))))
    found = [f"leak: {count} {name}" for count, name in zip(number, _HISTORY_LEAKS, strict=True) if count]
    if (beyond := int((samples.past_to > target).sum())) > 0:
        found.append(f"leak: {beyond} pasts that reach beyond their target")
    both = np.intersect1d(target[samples.part == 0], target[samples.part > 0])
    if len(both):
        found.append(f"leak: {len(both)} visits are targets of the train part and of another")
    if part is not None:
        found += _parts_leak(visits, part)
    return found


_HISTORY_LEAKS = (
    "histories that hold their own target",
    "histories with visits that begin after their target",
    "histories of another user",
)


def _history_leaks(visits: Visits, samples: Samples) -> np.ndarray:
    """How many of these samples have each fault."""
    row, of = samples.rows, samples.target[samples.owner]
    faults = (row == of, visits.start[row] > visits.start[of], visits.user[row] != visits.user[of])
    return np.array([len(np.unique(samples.owner[fault])) for fault in faults])


def _parts_leak(visits: Visits, part: np.ndarray) -> list[str]:
    first_later = np.full(len(visits.users), np.iinfo(np.int64).max)
    np.minimum.at(first_later, visits.user[part > 0], visits.start[part > 0])
    late = (part == 0) & (visits.start >= first_later[visits.user])
    found = []
    if late.any():
        users = len(np.unique(visits.user[late]))
        found.append(
            f"leak: {int(late.sum())} train visits of {users} users are not earlier than their first visit of "
            "another part; the model learns from the future of what it is asked"
        )
    return found


def _record(files: Sequence[Path], table: Table, problems: Sequence[str], *, refused: bool) -> DataRecord:
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
    return DataRecord(
        path=_names(files), rows=rows, counts=counts, problems=problems, notes=table.notes, refused=refused
    )


def _users_per_place(visits: Visits) -> np.ndarray:
    pairs = np.unique(visits.place.astype(np.int64) * len(visits.users) + visits.user)
    return np.bincount(pairs // max(len(visits.users), 1), minlength=len(visits.places))


def _spread(values: np.ndarray) -> dict[str, int]:
    if len(values) == 0:
        return {}
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _names(files: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in files)
