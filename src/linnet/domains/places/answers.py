"""Batches of visits, and from a network's answers to them to rankings of places.

Legend: n = samples, C = candidates of all samples, V = known ids, P = places of the visit table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from linnet.calibration import Spread, calibration_error
from linnet.data import Batch, epoch_order
from linnet.domains.contract import Part, Region, Scored
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.copying import FILTERS, CopyModel, hard_filter, soft_filter
from linnet.domains.places.counters import BASELINES, Rule, fit_ranker
from linnet.domains.places.data import PlacesData, Table, visit_rows
from linnet.domains.places.features import Gathered, VisitRows, departures
from linnet.domains.places.samples import Samples
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.scores import (
    Ranked,
    Ranking,
    Resampled,
    measures,
    paired,
    rank_dense,
    rank_truth,
    score_list,
    vocabularies,
)
from linnet.domains.places.settings import FULL_IS_NOT_READ
from linnet.domains.places.visits import DAY
from linnet.errors import BadInput, counted
from linnet.model.contract import Network, evaluating, refuse_nan
from linnet.progress import tracked
from linnet.records import Baseline, Lead, Score, System

DECIMALS = 5  # of a log-probability: what is closer is a tie, whatever batch it was computed in


@dataclass(frozen=True)
class VisitPlan:
    """Every row once an epoch, in an order that the seed decides.

    Rows of similar length are not put together: they are often rows of one person.
    """

    rows: VisitRows
    batch_rows: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_rows)

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        chosen = order[index * self.batch_rows : (index + 1) * self.batch_rows]
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 40) + step]))
        return pad(self.rows.gather(chosen, rng))


def pad(gathered: Gathered) -> Batch:
    """[B, T, …] columns, padded on the right with zeros, and what each row has once [B]."""
    lengths = np.diff(gathered.starts)
    rows, width = len(lengths), int(lengths.max())
    shift = np.arange(rows) * width - gathered.starts[:-1]
    index = np.arange(int(gathered.starts[-1])) + np.repeat(shift, lengths)
    tensors = {name: torch.from_numpy(values) for name, values in gathered.rows.items()}
    for name, values in gathered.columns.items():
        table = np.zeros((rows * width, *values.shape[1:]), values.dtype)
        table[index] = values
        tensors[name] = torch.from_numpy(table).unflatten(0, (rows, width))
    return Batch({**tensors, "weights": torch.ones(rows), "lengths": torch.from_numpy(lengths)})


def in_batches(network: Network, rows: VisitRows, size: int, region: Region) -> Iterator[tuple[np.ndarray, Batch]]:
    """All rows once, short ones first, so that little is padded; never cut. The network only predicts."""
    order = np.argsort(rows.lengths, kind="stable")
    chunks = [order[begin : begin + size] for begin in range(0, len(order), size)]
    with evaluating(network), region():
        for chosen in tracked(chunks, "scoring visits", len(order), size):
            yield chosen, pad(rows.gather(chosen)).to(network.device)


@dataclass(frozen=True)
class Answers:
    """What a network names for every sample: `tables` ranks the truth in each vocabulary.

    `spread` has the log-probabilities of all that it could name, as one flat array, for calibration.
    """

    tables: dict[str, Ranked]
    spread: Spread
    ranking: Ranking | None = None  # candidates of every sample by place of the table, of a scorer
    elsewhere: np.ndarray | None = None  # float64 [n]: the probability of no candidate, of a scorer
    fresh: np.ndarray | None = None  # float64 [n]: the part of it of places that training did not see
    dense: np.ndarray | None = None  # float64 [n, V]: log-probabilities of a copying network


def warmed(spread: Spread, ranking: Ranking, temperature: float) -> Ranking:
    """The candidates' probabilities at this temperature."""
    norm = spread.at(temperature)[1] + spread.true / temperature
    return replace(ranking, score=np.exp(np.log(ranking.score) / temperature - norm[ranking.owner]))


def answers(network: Network, rows: VisitRows, size: int, region: Region, filter: str = "") -> Answers:
    """What a network names for every row; `filter` stands in for that of a copying network."""
    if isinstance(network, Scorer):
        return _scored(network, rows, size, region)
    assert isinstance(network, CopyModel)
    return _copied(network, rows, size, region, filter or network.config.filter)


def truths(rows: VisitRows) -> tuple[np.ndarray, np.ndarray]:
    """int64: the true place of each sample, and the known id of each place of the table [P]."""
    return rows.visits.place[rows.samples.target].astype(np.int64), rows.lookup.place


def _scored(network: Scorer, rows: VisitRows, size: int, region: Region) -> Answers:
    elsewhere, unseen = np.zeros(len(rows)), np.zeros(len(rows))
    owner, label, score = [], [], []
    for chosen, batch in in_batches(network, rows, size, region):
        found = network.predict(batch)
        elsewhere[chosen] = found.elsewhere.double().exp().cpu().numpy()
        unseen[chosen] = torch.sigmoid(found.unseen.double()).cpu().numpy()
        owner.append(chosen[found.options.owner.cpu().numpy()])
        label.append(found.options.place.cpu().numpy())
        score.append(np.exp(np.round(found.logp.double().cpu().numpy(), DECIMALS)))
    refuse_nan(network, elsewhere, *score)
    owners, order = np.concatenate(owner), np.argsort(np.concatenate(owner), kind="stable")
    starts = np.searchsorted(owners[order], np.arange(len(rows) + 1)).astype(np.int64)
    ranking = Ranking(starts, np.concatenate(label)[order], np.concatenate(score)[order], len(rows.visits.places))
    truth, ids = truths(rows)
    tables = vocabularies(ranking, truth, ids, legacy_ranking(ranking, elsewhere * unseen, ids))
    tables |= cell_tables(rows, ranking, truth)
    return Answers(tables, _spread(ranking, elsewhere, truth), ranking, elsewhere, elsewhere * unseen)


def legacy_ranking(ranking: Ranking, fresh: np.ndarray, ids: np.ndarray) -> Ranking:
    """The same over known ids [P -> V]: places that training did not see are class 1, with `fresh` [n] more."""
    rows = len(ranking)
    owner = np.concatenate([ranking.owner, np.arange(rows)])
    label = np.concatenate([ids[ranking.label], np.ones(rows, np.int64)])
    score = np.concatenate([ranking.score, fresh])
    return Ranking.summed(owner, label, score, rows, int(ids.max(initial=1)) + 1)


def _spread(ranking: Ranking, elsewhere: np.ndarray, truth: np.ndarray) -> Spread:
    ends, floor = ranking.starts[1:], 1e-12
    logp = np.log(np.maximum(np.insert(ranking.score, ends, elsewhere), floor))
    best, true = np.zeros(len(ranking)), elsewhere.copy()
    np.maximum.at(best, ranking.owner, ranking.score)
    hit = ranking.label == truth[ranking.owner]
    true[ranking.owner[hit]] = ranking.score[hit]
    starts = ranking.starts + np.arange(len(ranking) + 1)
    return Spread(starts, logp, np.log(np.maximum(best, floor)), np.log(np.maximum(true, floor)))


def cell_tables(rows: VisitRows, ranking: Ranking, truth: np.ndarray) -> dict[str, Ranked]:
    """The same ranking over cells: a cell's probability is the sum over its places."""
    found = {}
    for level, cells in rows.visits.cells.items():
        names, number = np.unique(cells, return_inverse=True)
        merged = ranking.merged(number.ravel(), len(names))
        found[f"cell{level}"] = rank_truth(merged, number.ravel()[truth].astype(np.int64))
    return found


def _copied(network: CopyModel, rows: VisitRows, size: int, region: Region, filter: str) -> Answers:
    """Known ids only: it can never name a place that training did not see, only their class."""
    if filter not in FILTERS:
        raise BadInput(f'filter is none, hard or soft, not "{filter}"')
    parts: list[list[np.ndarray]] = []
    chosen_rows = []
    for chosen, batch in in_batches(network, rows, size, region):
        named = network(batch)
        tables = (named.places, *named.cells)
        parts.append([np.round(table.double().cpu().numpy(), DECIMALS) for table in tables])
        chosen_rows.append(chosen)
    order = np.argsort(np.concatenate(chosen_rows))
    places, *cells = (np.concatenate(tables)[order] for tables in zip(*parts, strict=True))
    refuse_nan(network, places)
    forgotten = np.array([name is None for name in rows.codec.places], bool)
    places[:, FIRST : FIRST + len(forgotten)][:, forgotten] = -np.inf
    places = _filtered(network, places, cells, filter)
    truth, ids = truths(rows)
    found = dense_ranks(places, ids[truth])
    for number, level in enumerate(rows.codec.levels[: len(cells)]):  # finer ones are not named
        if level in rows.visits.cells:
            found[f"cell{level}"] = rank_dense(cells[number], rows.lookup.cells[number][truth])
    return Answers(found, Spread.of_classes(np.maximum(places, -1e4), ids[truth]), dense=places)


def _filtered(network: CopyModel, places: np.ndarray, cells: list[np.ndarray], filter: str) -> np.ndarray:
    """The log-probabilities [n, V] after what the cells are allowed to say."""
    if filter == "none":
        return places
    logits, level = torch.from_numpy(places), network.config.filter_level
    own, cell_of_place = torch.from_numpy(cells[level]), network.tree[level].cpu()
    if filter == "soft":
        return soft_filter(logits, own, cell_of_place, network.config.alpha).numpy()
    return hard_filter(logits, own.argmax(1), cell_of_place).numpy()


def dense_ranks(scores: np.ndarray, truth: np.ndarray) -> dict[str, Ranked]:
    """Ranks of the truth among known ids [n, V]."""
    names = scores.copy()
    names[:, :FIRST] = -np.inf
    unseen = truth < FIRST
    named = rank_dense(names, np.where(unseen, -1, truth))
    return {"open": named, "strict": named.never(unseen), "legacy": rank_dense(scores, truth)}


def shortfall(network: Network, rows: VisitRows, select: str, size: int, region: Region) -> float:
    """What the best checkpoint has least of: nats a target, or what it lacks of a perfect score."""
    if select == "loss":
        nats = [float(network.loss(network(batch), batch)) for _, batch in in_batches(network, rows, size, region)]
        return sum(nats) / len(rows)
    prefix, _, measure = select.rpartition(".")
    tables = answers(network, rows, size, region, "none").tables  # selection is always unfiltered
    return 1 - float(measures(tables[prefix or "open"])[measure].mean())


# --- every score, beside every rule ----------------------------------------------------------------------


HISTORIES = ((1, 4), (5, 9), (10, 19), (20, 10**9))
HOURS = ((0, 6), (6, 12), (12, 18), (18, 24))
FEW_USERS = 20  # an interval that resamples so few is too narrow
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
    held = rows
    if rows.held is not None:
        some = np.unique(np.linspace(0, len(rows.held) - 1, MOST_CALIBRATED).astype(int))  # from all over the part
        held = replace(rows, samples=rows.held.choose(some))
    fitted = ours if held is rows else answers(network, held, batch, region, filter)
    scores += calibration(ours, fitted.spread.fitted(), rows, draws)
    return Scored(tuple(scores), tuple(systems), tuple(notes(data, network, codec, rows)))


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
    yield f"scores of {len(rows):,} samples of {counted(users, 'user')}: {rows.task}"
    if users == 1:
        yield "intervals take the samples of this one user as independent, and say nothing of other people"
    elif users < FEW_USERS:
        yield (
            f"intervals over {users} users are too narrow: of five to nine users they hold the truth in about "
            "85 % of cases, not in 95 %"
        )
    if data.reads == "past" and codec.users and not any(name is not None for name in codec.users):
        yield (
            "this run has lost the names of its users, so a user's own moves cannot be taken away from the counts "
            "of other people's: scores of people it was trained on differ from those of the run it was copied from"
        )
    if gone := sum(name is None for name in codec.places):
        yield (
            f"this run has lost the names of {gone:,} places, which count as unseen in training: legacy and "
            "strict scores are not those of the run it was copied from, nor of other runs"
        )
    if data.reads == "history" and data.information == "full":
        yield FULL_IS_NOT_READ
