"""From a model and rows to rankings: what it names for every sample, in the open and in the legacy vocabulary.

Legend: n = samples, C = candidates of all samples, V = known ids, P = places of the visit table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from linnet.data import Batch
from linnet.domains.places.batches import pad
from linnet.domains.places.codec import FIRST
from linnet.domains.places.copying import CopyModel, FilterKind, hard_filter, soft_filter
from linnet.domains.places.features import VisitRows
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.scores import Ranked, Ranking, measures, rank_dense, vocabularies
from linnet.progress import tracked

DECIMALS = 5  # of a log-probability: what is closer is a tie, whatever batch it was computed in
Region = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Answers:
    """Candidates of every sample by place of the table; the rest of the probability is elsewhere."""

    ranking: Ranking  # over places of the visit table
    elsewhere: np.ndarray  # float64 [n]
    unseen: np.ndarray  # float64 [n] the share of elsewhere that training did not know

    def legacy(self, ids: np.ndarray) -> Ranking:
        """The same over known ids [P -> V]: all places that training did not see are class 1."""
        rows = len(self.ranking)
        owner = np.concatenate([self.ranking.owner, np.arange(rows)])
        label = np.concatenate([ids[self.ranking.label], np.ones(rows, np.int64)])
        score = np.concatenate([self.ranking.score, self.elsewhere * self.unseen])
        span = int(ids.max(initial=1)) + 1
        keys, inverse = np.unique(owner * span + label, return_inverse=True)
        starts = np.searchsorted(keys // span, np.arange(rows + 1)).astype(np.int64)
        return Ranking(starts, keys % span, np.bincount(inverse.ravel(), score, len(keys)), span)


def in_batches(rows: VisitRows, size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """All rows once, short ones first, so that little is padded; never cut."""
    order = np.argsort(rows.lengths, kind="stable")
    for begin in tracked(range(0, len(order), size), "scoring visits", len(order), size):
        chosen = order[begin : begin + size]
        yield chosen, pad(rows.gather(chosen))


def answer(model: Scorer, rows: VisitRows, size: int = 256, region: Region = contextlib.nullcontext) -> Answers:
    """What a scorer names for every row."""
    elsewhere, unseen = np.zeros(len(rows)), np.zeros(len(rows))
    owner, label, score = [], [], []
    model.eval()
    with torch.inference_mode(), region():
        for chosen, batch in in_batches(rows, size):
            said = model.predict(batch)
            elsewhere[chosen] = said.elsewhere.double().exp().numpy()
            unseen[chosen] = torch.sigmoid(said.unseen.double()).numpy()
            owner.append(chosen[said.options.owner.numpy()])
            label.append(said.options.place.numpy())
            score.append(np.exp(np.round(said.logp.double().numpy(), DECIMALS)))
    owners, order = np.concatenate(owner), np.argsort(np.concatenate(owner), kind="stable")
    starts = np.searchsorted(owners[order], np.arange(len(rows) + 1)).astype(np.int64)
    ranking = Ranking(starts, np.concatenate(label)[order], np.concatenate(score)[order], len(rows.visits.places))
    return Answers(ranking, elsewhere, unseen)


def name_dense(
    model: CopyModel, rows: VisitRows, size: int = 256, region: Region = contextlib.nullcontext
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Log-probabilities [n, V] of a copying network, and logits of the cells of each level."""
    places: np.ndarray | None = None
    cells: list[np.ndarray] = []
    model.eval()
    with torch.inference_mode(), region():
        for chosen, batch in in_batches(rows, size):
            named = model(batch)
            tables = (named.places, *named.cells)
            found = [np.round(table.double().numpy(), DECIMALS) for table in tables]
            if places is None:
                places = np.zeros((len(rows), found[0].shape[1]))
                cells = [np.zeros((len(rows), level.shape[1])) for level in found[1:]]
            for table, part in zip([places, *cells], found, strict=True):
                table[chosen] = part
    assert places is not None
    forgotten = np.array([name is None for name in rows.codec.places], bool)
    places[:, FIRST : FIRST + len(forgotten)][:, forgotten] = -np.inf
    return places, tuple(cells)


def ranks(
    model: CopyModel | Scorer, rows: VisitRows, size: int = 256, region: Region = contextlib.nullcontext
) -> dict[str, Ranked]:
    """Where the truth came, open, strict and legacy."""
    ids = rows.codec.place_ids(rows.visits.places)
    truth = rows.visits.place[rows.samples.target].astype(np.int64)
    if isinstance(model, Scorer):
        said = answer(model, rows, size, region)
        return vocabularies(said.ranking, truth, ids, said.legacy(ids))
    places, _ = name_dense(model, rows, size, region)  # selection is always unfiltered
    return dense_ranks(places, ids[truth])


def filtered(model: CopyModel, places: np.ndarray, cells: tuple[np.ndarray, ...], kind: FilterKind) -> np.ndarray:
    """The log-probabilities [n, V] after what the cells are allowed to say."""
    if kind == "none":
        return places
    logits, level = torch.from_numpy(places), model.config.filter_level
    said, cell_of_place = torch.from_numpy(cells[level]), model.tree[level]
    if kind == "soft":
        return soft_filter(logits, said, cell_of_place, model.config.alpha).numpy()
    return hard_filter(logits, said.argmax(1), cell_of_place).numpy()


def dense_ranks(scores: np.ndarray, truth: np.ndarray) -> dict[str, Ranked]:
    """A network over known ids: it can never name a place that training did not see, only their class."""
    names = scores.copy()
    names[:, :FIRST] = -np.inf
    unseen = truth < FIRST
    named = rank_dense(names, np.where(unseen, -1, truth))
    return {"open": named, "strict": named.never(unseen), "legacy": rank_dense(scores, truth)}


def shortfall(model: CopyModel | Scorer, rows: VisitRows, select: str, size: int, region: Region) -> float:
    """What the best checkpoint has least of: nats a target, or targets that are not named first."""
    trained = model.training
    model.eval()
    if select == "loss":
        total = 0.0
        with torch.inference_mode(), region():
            for _, batch in in_batches(rows, size):
                total += float(model.loss(model(batch), batch))
        value = total / len(rows)
    else:
        vocabulary = {"acc@1": "open", "legacy.acc@1": "legacy", "strict.acc@1": "strict"}[select]
        value = 1 - float(measures(ranks(model, rows, size, region)[vocabulary])["acc@1"].mean())
    model.train(trained)
    return value
