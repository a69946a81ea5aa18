"""The scores of a run on places: every measure, vocabulary and cell level, beside every rule that counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from linnet.calibration import calibration_error
from linnet.domains.contract import Part, Region, Scored
from linnet.domains.places.answers import Answers, answers, cell_tables, truths
from linnet.domains.places.checking import Table
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.counters import BASELINES, Rule, fit_ranker
from linnet.domains.places.data import PlacesData, visit_rows
from linnet.domains.places.features import VisitRows, departures
from linnet.domains.places.samples import Samples
from linnet.domains.places.scores import (
    Ranked,
    Resampled,
    measures,
    paired,
    score_list,
    vocabularies,
)  # fmt: skip
from linnet.domains.places.settings import FULL_IS_NOT_READ
from linnet.domains.places.visits import DAY
from linnet.errors import BadInput
from linnet.model.contract import Network
from linnet.progress import tracked
from linnet.records import Baseline, Lead, Score, System

HISTORIES = ((1, 4), (5, 9), (10, 19), (20, 10**9))
HOURS = ((0, 6), (6, 12), (12, 18), (18, 24))
MOST_CALIBRATED = 5_000  # samples that a temperature is fitted on
TABLE = (
    ("", "open", ("acc@1", "acc@5", "acc@10", "mrr", "ndcg@10")), ("legacy.", "legacy", ("acc@1", "mrr")),
    ("strict.", "strict", ("acc@1",)),
)  # fmt: skip


def score_part(
    data: PlacesData, network: Network, codec: PlacesCodec, part: Part, *, batch: int, region: Region,
    filter: str = "", ranker: int = 0,
) -> Scored:  # fmt: skip
    """Every score of these samples, each beside the best rule; a table with all rules, and rankers; and notes."""
    rows = visit_rows(part)
    ours = answers(network, rows, batch, region, filter)
    draws = Resampled.draw(rows.visits.user[rows.samples.target])
    beaten, full = rules(rows), full_past_counter(rows)
    others: list[tuple[str, Mapping[str, Ranked]]] = [*beaten.items(), ("counter, full past", full)]
    if ranker:
        assert part.source is not None, "a part that was read from files knows its table"
        table = data.table(part.source)
        for seed in tracked(range(ranker), "fitting rankers", ranker):
            others += ranker_tables(data, table, rows, seed).items()
    systems = [row_of("this run", ours.tables)]
    systems += [row_of(name, tables, lead(ours.tables, tables, draws)) for name, tables in others]
    scores = score_list(ours.tables, draws, beaten, groups(rows))
    held = rows if rows.held is None else replace(rows, samples=some_of(rows.held))
    fitted = ours if held is rows else answers(network, held, batch, region, filter)
    scores += calibration(ours, fitted.spread.fitted(), rows, draws)
    return Scored(tuple(scores), tuple(systems), tuple(notes(data, network, codec, rows)))


def some_of(samples: Samples) -> Samples:
    """At most so many samples as a temperature needs, from all over the part."""
    return samples.choose(np.unique(np.linspace(0, len(samples) - 1, MOST_CALIBRATED).astype(int)))


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


def rules(rows: VisitRows) -> dict[str, dict[str, Ranked]]:
    """Every counting rule on the same samples, with the same information."""
    return {name: ranked_by(rule, rows, rows.samples) for name, rule in BASELINES.items()}


def full_past_counter(rows: VisitRows) -> dict[str, Ranked]:
    """The counter with everything that each user did before, whatever the run may know."""
    return ranked_by(BASELINES["counter"], rows, rows.samples.with_full_past(rows.visits))


def ranked_by(rule: Rule, rows: VisitRows, samples: Samples) -> dict[str, Ranked]:
    visits, (truth, ids) = rows.visits, truths(rows)
    ranking = rule.rank(visits, samples, visits.place.astype(np.int64))
    legacy = rule.rank(visits, samples, ids[visits.place])
    return vocabularies(ranking, truth, ids, legacy) | cell_tables(rows, ranking, truth)


def ranker_tables(data: PlacesData, table: Table, rows: VisitRows, seed: int) -> dict[str, Mapping[str, Ranked]]:
    """Two boosted rankers fitted on the train part of a table: one names legacy classes, one true places.

    Their scores do not add up to classes, so that each is judged in its own vocabulary.
    """
    visits, (truth, ids) = table.visits, truths(rows)
    train_part, validation = (data.informed(table, table.samples.of(part)) for part in (0, 1))
    if not len(train_part) or not len(validation):
        raise BadInput("the boosted ranker learns on a train and a validation part, and the data lack one of them")
    found: dict[str, Mapping[str, Ranked]] = {}
    for space, label in (("legacy", ids[visits.place]), ("open", visits.place.astype(np.int64))):
        ranker = fit_ranker(visits, table.part, train_part, validation, label, seed)
        ranking = ranker.rank(visits, rows.samples, label)
        if space == "legacy":
            found["boosted ranker, legacy"] = vocabularies(None, truth, ids, ranking)
        else:
            tables = vocabularies(ranking, truth, ids) | cell_tables(rows, ranking, truth)
            found["boosted ranker, open"] = {name: ranks for name, ranks in tables.items() if name != "legacy"}
    return found


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
    earliest = np.zeros(len(visits), bool)
    earliest[np.unique(key, return_index=True)[1]] = True  # rows are in the order of time
    return earliest[rows.samples.target]


def calibration(ours: Answers, temperature: float, rows: VisitRows, draws: Resampled) -> list[Score]:
    """How far the probability of the first answer is from its being right, before and after a temperature."""
    hit = ours.tables["open"].rank <= 1
    visits = rows.visits
    counted = BASELINES["counter"].rank(visits, rows.samples, visits.place.astype(np.int64))
    total, top = np.bincount(counted.owner, counted.score, len(counted)), np.zeros(len(counted))
    np.maximum.at(top, counted.owner, counted.score)
    right = vocabularies(counted, *truths(rows))["open"].rank <= 1
    shares = calibration_error(top / np.maximum(total, 1e-12), right)
    found = []
    for name, heat in (("ece", 1.0), ("ece.calibrated", temperature)):
        sure = ours.spread.at(heat)[0]
        error, (low, high) = calibration_error(sure, hit), draws.interval(sure - hit)
        width = (high - low) / 2
        at = "" if name == "ece" else f"; temperature {heat:.3f}, fitted on the validation part"
        note = f"mean probability of the first answer {sure.mean():.4f}, right {hit.mean():.4f}{at}"
        found.append(Score(
            name=name, value=error, n=len(hit), low=max(0.0, error - width), high=min(1.0, error + width),
            baseline=Baseline(name="the counter's shares", value=shares), note=note,
        ))  # fmt: skip
    return found


def notes(data: PlacesData, network: Network, codec: PlacesCodec, rows: VisitRows) -> Iterator[str]:
    """What the scores are of, and what they cannot show by themselves."""
    users = len(np.unique(rows.visits.user[rows.samples.target]))
    yield f"scores of {len(rows):,} samples of {users:,} users: {rows.task}"
    if data.reads == "past" and codec.users and not any(name is not None for name in codec.users):
        yield (
            "this run has lost the names of its users, so a user's own moves cannot be taken away from the counts "
            "of other people's: scores of people it was trained on differ from those of the run it was copied from"
        )
    if data.reads == "history" and data.information == "full":
        yield FULL_IS_NOT_READ
