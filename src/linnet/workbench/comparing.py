"""Systems beside a run on places: the boosted ranker on the same samples, and one setting over several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linnet import files, recipes
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.data import PlacesData, Table
from linnet.domains.places.features import VisitRows
from linnet.domains.places.ranker import fit_ranker
from linnet.domains.places.scores import Ranked, vocabularies
from linnet.errors import BadInput
from linnet.model.places.config import FULL_IS_NOT_READ
from linnet.model.places.copying import filter_of
from linnet.model.places.published import CopyModel
from linnet.model.places.ranking import check_filter
from linnet.model.places.scorer import Scorer
from linnet.records import OverSeeds, RunRecord, Score, SeedsRecord, System
from linnet.training.checkpoint import RUN
from linnet.workbench.making import train
from linnet.workbench.opening import Opened
from linnet.workbench.places import cell_tables, place_scores


def ranker_tables(data: PlacesData, table: Table, rows: VisitRows, seed: int) -> dict[str, Mapping[str, Ranked]]:
    """Two boosted rankers fitted on the train part of a table: one names legacy classes, one true places.

    Their scores do not add up to classes, so that each is judged in its own vocabulary.
    """
    visits = table.visits
    ids = rows.codec.place_ids(visits.places)
    truth = visits.place[rows.samples.target].astype(np.int64)
    train_part, validation = (data.informed(table, table.samples.of(part)) for part in (0, 1))
    if not len(train_part) or not len(validation):
        raise BadInput("the boosted ranker learns on a train and a validation part, and the data lack one of them")
    found: dict[str, Mapping[str, Ranked]] = {}
    for space, label in (("legacy", ids[visits.place]), ("open", visits.place.astype(np.int64))):
        ranking = fit_ranker(visits, table.part, train_part, validation, label, seed).rank(
            visits, rows.samples, label
        )
        if space == "legacy":
            found["boosted ranker, legacy"] = vocabularies(None, truth, ids, ranking)
        else:
            tables = vocabularies(ranking, truth, ids) | cell_tables(rows, ranking, truth)
            del tables["legacy"]
            found["boosted ranker, open"] = tables
    return found


def score_places(
    opened: Opened, data: PlacesData, paths: list[Path], split: str | None, *, batch: int, filter: str,
    information: str, ranker: int,
) -> tuple[list[Score], list[System], tuple[str, ...]]:  # fmt: skip
    """Scores, systems and notes: with other information or another filter where asked, and with rankers."""
    network = opened.network
    assert isinstance(network, CopyModel | Scorer)
    check_filter(network, filter)
    if information not in ("", "same", "full"):
        raise BadInput(f'information is same or full, not "{information}"')
    if information:
        data = data.model_copy(update={"information": information})
    part = data.read(opened.codec, paths, split)
    rows = part.visits
    if rows is None or len(rows) == 0:
        where = f"in the {split} part of" if split else "in"
        raise BadInput(f"there are no samples {where} {', '.join(map(str, paths))}")
    chosen = filter_of(filter) if filter else None
    table = data.table(paths) if ranker else None
    rivals: list[tuple[str, Mapping[str, Ranked]]] = []
    for seed in range(ranker):
        assert table is not None
        rivals += ranker_tables(data, table, rows, seed).items()
    scores, systems = place_scores(network, rows, size=batch, region=opened.region, chosen=chosen, rivals=rivals)
    return scores, systems, (*part.notes, *places_notes(opened, data.information))


def places_notes(opened: Opened, information: str) -> Iterator[str]:
    """What the scores of this run cannot show by themselves."""
    codec = opened.codec
    assert isinstance(codec, PlacesCodec)
    reads_counts = isinstance(opened.network, Scorer)
    if reads_counts and codec.users and not any(name is not None for name in codec.users):
        yield (
            "this run has lost the names of its users, so a user's own moves cannot be taken away from the counts "
            "of other people's: scores of people it was trained on differ from those of the run it was copied from"
        )
    if not reads_counts and information == "full":
        yield FULL_IS_NOT_READ


def train_seeds(
    recipe: str, count: int, *, out: Path | None = None, seed: int | None = None, force: bool = False, **asked: Any
) -> Iterator[RunRecord | SeedsRecord]:
    """The same run from `count` seeds, in folders OUT-seedN, and each score over all; one seed is one run."""
    if count == 1:
        yield train(recipe, out=out, seed=seed, force=force, **asked)
        return
    first = recipes.named(recipe).seed if seed is None and not recipe.endswith(".toml") else seed or 0
    seeds = range(first, first + count)
    stem = Path("runs") / Path(recipe).stem if out is None else out
    folders = [stem.with_name(f"{stem.name}-seed{one}") for one in seeds]
    for folder in folders:
        files.refuse_existing(folder, force=force, layout=RUN)
    found = []
    for one, folder in zip(seeds, folders, strict=True):
        found.append(train(recipe, out=folder, seed=one, force=force, **asked))
        yield found[-1]
    yield over_seeds(found, tuple(seeds))


def over_seeds(found: list[RunRecord], seeds: tuple[int, ...]) -> SeedsRecord:
    """Mean and range of every score that all runs have."""
    tables = [{score.name: score for score in record.scores} for record in found]
    scores = []
    for name, score in tables[0].items():
        if all(name in table for table in tables):
            values = [table[name].value for table in tables]
            mean = sum(values) / len(values)
            scores.append(OverSeeds(name=name, mean=mean, least=min(values), most=max(values),
                                    baseline=score.baseline))  # fmt: skip
    return SeedsRecord(
        recipe=found[0].recipe, seeds=seeds, runs=tuple(record.path for record in found), scores=tuple(scores)
    )
