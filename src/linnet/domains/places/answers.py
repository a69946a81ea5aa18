"""Batches of visits, and from a network's answers to them to rankings of places.

Legend: n = samples, C = candidates of all samples, V = known ids, P = places of the visit table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from linnet.calibration import Spread
from linnet.data import Batch, epoch_order
from linnet.domains.contract import Region
from linnet.domains.places.codec import FIRST
from linnet.domains.places.copying import CopyModel, filter_of, hard_filter, soft_filter
from linnet.domains.places.features import Gathered, VisitRows
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.scores import Ranked, Ranking, measures, rank_dense, rank_truth, vocabularies
from linnet.model.contract import Network, evaluating, refuse_nan
from linnet.progress import tracked

DECIMALS = 5  # of a log-probability: what is closer is a tie, whatever batch it was computed in


@dataclass(frozen=True)
class VisitPlan:
    """Every row once an epoch, in an order that the seed decides.

    Rows of similar length are not put together: they are often rows of one person.
    """

    rows: VisitRows
    batch_rows: int
    seed: int
    augment: bool = True

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_rows)

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        chosen = order[index * self.batch_rows : (index + 1) * self.batch_rows]
        rng = np.random.Generator(np.random.Philox(key=[self.seed, (1 << 40) + step])) if self.augment else None
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
    score, span = np.concatenate([ranking.score, fresh]), int(ids.max(initial=1)) + 1
    keys, inverse = np.unique(owner * span + label, return_inverse=True)
    starts = np.searchsorted(keys // span, np.arange(rows + 1)).astype(np.int64)
    return Ranking(starts, keys % span, np.bincount(inverse.ravel(), score, len(keys)), span)


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
    for number, level in enumerate(rows.codec.levels):
        if level in rows.visits.cells:
            found[f"cell{level}"] = rank_dense(cells[number], rows.lookup.cells[number][truth])
    flat = np.maximum(places, -1e4)
    starts = np.arange(len(places) + 1, dtype=np.int64) * places.shape[1]
    own = flat[np.arange(len(flat)), ids[truth]]
    return Answers(found, Spread(starts, flat.ravel(), flat.max(1), own), dense=places)


def _filtered(network: CopyModel, places: np.ndarray, cells: list[np.ndarray], filter: str) -> np.ndarray:
    """The log-probabilities [n, V] after what the cells are allowed to say."""
    if (kind := filter_of(filter)) == "none":
        return places
    logits, level = torch.from_numpy(places), network.config.filter_level
    own, cell_of_place = torch.from_numpy(cells[level]), network.tree[level].cpu()
    if kind == "soft":
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
