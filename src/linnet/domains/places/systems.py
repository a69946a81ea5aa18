"""The scores of a run on places: every measure, vocabulary and cell level, beside every rule that counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from linnet.codecs import Codec
from linnet.domains.contract import Part, Region, Scored
from linnet.domains.places.checking import Table
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.copying import CopyModel, FilterKind, filter_of
from linnet.domains.places.counters import BASELINES, Rule
from linnet.domains.places.data import PlacesData, visit_rows
from linnet.domains.places.features import VisitRows, departures
from linnet.domains.places.ranker import fit_ranker
from linnet.domains.places.ranking import answer, dense_ranks, filtered, name_dense
from linnet.domains.places.samples import Samples
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.scores import (
    Ranked,
    Ranking,
    Resampled,
    calibration_error,
    measures,
    paired,
    rank_dense,
    rank_truth,
    score_list,
    vocabularies,
)
from linnet.domains.places.settings import FULL_IS_NOT_READ
from linnet.domains.places.visits import DAY
from linnet.errors import BadInput
from linnet.model.contract import Network
from linnet.progress import tracked
from linnet.records import Baseline, Lead, Score, System

HISTORIES = ((1, 4), (5, 9), (10, 19), (20, 10**9))
HOURS = ((0, 6), (6, 12), (12, 18), (18, 24))
TABLE = (
    ("", "open", ("acc@1", "acc@5", "acc@10", "mrr", "ndcg@10")), ("legacy.", "legacy", ("acc@1", "mrr")),
    ("strict.", "strict", ("acc@1",)),
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """Ranks of the truth by table (open, legacy, strict, cell11, …), and how sure the first answers were."""

    tables: dict[str, Ranked]
    confidence: np.ndarray  # float64 [n] probability of what was named first, in the open vocabulary


def place_scores(
    network: CopyModel | Scorer,
    rows: VisitRows,
    *,
    size: int,
    region: Region,
    chosen: FilterKind | None = None,
    rivals: Sequence[tuple[str, Mapping[str, Ranked]]] = (),
) -> tuple[list[Score], list[System]]:
    """Every score of the samples in `rows`, each beside the best rule; and a table with all rules and `rivals`."""
    said = say(network, rows, size=size, region=region, chosen=chosen)
    user = rows.visits.user[rows.samples.target]
    beaten = rules(rows)
    scores = score_list(said.tables, user, beaten, groups(rows))
    others = [*beaten.items(), ("counter, full past", full_past_counter(rows)), *rivals]
    draws = Resampled.draw(user)
    systems = [row_of("this run", said.tables)]
    systems += [row_of(name, tables, lead(said.tables, tables, draws)) for name, tables in others]
    return [*scores, calibration(said, draws)], systems


def lead(ours: Mapping[str, Ranked], theirs: Mapping[str, Ranked], draws: Resampled) -> Lead:
    """The paired difference in acc@1: of true places where both name them, else of legacy classes."""
    both = "open" in ours and "open" in theirs
    table, measure = ("open", "acc@1") if both else ("legacy", "legacy.acc@1")
    found = paired(measures(ours[table])["acc@1"], measures(theirs[table])["acc@1"], draws)
    p = found.p if draws.users > 1 else None
    return Lead(measure=measure, value=found.value, low=found.low, high=found.high, p=p)


def row_of(name: str, tables: Mapping[str, Ranked], lead: Lead | None = None) -> System:
    """A system's row of the table."""
    values: dict[str, float] = {}
    for prefix, table, names in TABLE:
        if table in tables:
            found = measures(tables[table])
            values |= {prefix + measure: float(found[measure].mean()) for measure in names}
    return System(name=name, values=values, lead=lead)


def say(
    network: CopyModel | Scorer, rows: VisitRows, *, size: int, region: Region, chosen: FilterKind | None = None
) -> Said:
    """What a network names, as ranks of the truth."""
    ids = rows.codec.place_ids(rows.visits.places)
    truth = rows.visits.place[rows.samples.target].astype(np.int64)
    if isinstance(network, Scorer):
        answers = answer(network, rows, size, region)
        tables = vocabularies(answers.ranking, truth, ids, answers.legacy(ids))
        tables |= cell_tables(rows, answers.ranking, truth)
        best = np.zeros(len(rows))
        np.maximum.at(best, answers.ranking.owner, answers.ranking.score)
        return Said(tables, best)
    places, cells = name_dense(network, rows, size, region)
    kind = network.config.filter if chosen is None else chosen
    places = filtered(network, places, cells, kind)
    tables = dense_ranks(places, ids[truth])
    for number, level in enumerate(rows.codec.levels):
        if level in rows.visits.cells:
            true_cell = rows.codec.cell_ids(level, rows.visits.cells[level])[truth]
            tables[f"cell{level}"] = rank_dense(cells[number], true_cell)
    shares = np.exp(places - places.max(1, keepdims=True))
    return Said(tables, shares.max(1) / shares.sum(1))


def cell_tables(rows: VisitRows, ranking: Ranking, truth: np.ndarray) -> dict[str, Ranked]:
    """The same ranking over cells: a cell's probability is the sum over its places."""
    found = {}
    for level, cells in rows.visits.cells.items():
        names, number = np.unique(cells, return_inverse=True)
        merged = ranking.merged(number.ravel(), len(names))
        found[f"cell{level}"] = rank_truth(merged, number.ravel()[truth].astype(np.int64))
    return found


def full_past_counter(rows: VisitRows) -> dict[str, Ranked]:
    """The published counter with everything that each user did before, whatever the run may know."""
    samples = rows.samples.with_full_past(rows.visits)
    return ranked_by(BASELINES["counter"], rows, samples)


def ranked_by(rule: Rule, rows: VisitRows, samples: Samples) -> dict[str, Ranked]:
    visits = rows.visits
    ids = rows.codec.place_ids(visits.places)
    truth = visits.place[samples.target].astype(np.int64)
    ranking = rule.rank(visits, samples, visits.place.astype(np.int64))
    legacy = rule.rank(visits, samples, ids[visits.place])
    return vocabularies(ranking, truth, ids, legacy) | cell_tables(rows, ranking, truth)


def rules(rows: VisitRows) -> dict[str, dict[str, Ranked]]:
    """Every counting rule on the same samples, with the same information."""
    return {name: ranked_by(rule, rows, rows.samples) for name, rule in BASELINES.items()}


def groups(rows: VisitRows) -> dict[str, np.ndarray]:
    """Samples by departure hour, by length of the history, and first visits or returns."""
    visits, samples = rows.visits, rows.samples
    hour = departures(visits)[samples.last] % DAY // 3600
    found = {f"hour={low:02d}-{high:02d}": (hour >= low) & (hour < high) for low, high in HOURS}
    for low, high in HISTORIES:
        name = f"history={low}-{high}" if high < 10**9 else f"history={low}+"
        found[name] = (samples.lengths >= low) & (samples.lengths <= high)
    fresh = first_visits(rows)
    return found | {"visit=first": fresh, "visit=return": ~fresh}


def first_visits(rows: VisitRows) -> np.ndarray:
    """bool [n]: the user had never been at the target before, as far as the table knows."""
    visits = rows.visits
    key = visits.user.astype(np.int64) * len(visits.places) + visits.place
    _, first = np.unique(key, return_index=True)
    earliest = np.zeros(len(visits), bool)
    earliest[first] = True  # rows are in the order of time, and np.unique gives the first of each
    return earliest[rows.samples.target]


def calibration(said: Said, draws: Resampled) -> Score:
    """How far the probability of the first answer is from its being right."""
    hit = said.tables["open"].rank <= 1
    error = calibration_error(said.confidence, hit)
    gap = said.confidence - hit
    low, high = draws.interval(gap)
    always = abs(float(hit.mean()) - 1.0)
    return Score(
        name="ece", value=error, n=len(hit),
        low=max(0.0, error - (high - low) / 2), high=min(1.0, error + (high - low) / 2),
        baseline=Baseline(name="always certain", value=always),
        note="calibration of the first answer; the interval has the width of that of confidence minus accuracy",
    )  # fmt: skip


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


def score_part(
    data: PlacesData, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, filter: str = "",
    ranker: int = 0,
) -> Scored:  # fmt: skip
    """Scores, systems and notes of these samples: with another filter where one is named, and with rankers."""
    assert isinstance(network, CopyModel | Scorer) and isinstance(codec, PlacesCodec)
    rows = visit_rows(part)
    rivals: list[tuple[str, Mapping[str, Ranked]]] = []
    if ranker:
        assert part.source is not None, "a part that was read from files knows its table"
        table = data.table(part.source)
        for seed in tracked(range(ranker), "fitting rankers", ranker):
            rivals += ranker_tables(data, table, rows, seed).items()
    chosen = filter_of(filter) if filter else None
    scores, systems = place_scores(network, rows, size=batch, region=region, chosen=chosen, rivals=rivals)
    return Scored(tuple(scores), tuple(systems), tuple(places_notes(network, codec, data.information)))


def places_notes(network: Network, codec: PlacesCodec, information: str) -> Iterator[str]:
    """What the scores of this run cannot show by themselves."""
    reads_counts = isinstance(network, Scorer)
    if reads_counts and codec.users and not any(name is not None for name in codec.users):
        yield (
            "this run has lost the names of its users, so a user's own moves cannot be taken away from the counts "
            "of other people's: scores of people it was trained on differ from those of the run it was copied from"
        )
    if not reads_counts and information == "full":
        yield FULL_IS_NOT_READ
