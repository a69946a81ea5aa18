"""Scores of next-place predictions: ranks with ties, three vocabularies, cells, users, and intervals.

A system hands over a `Ranking`: for every sample some labels with scores, everything else tied below them. The
rank of the truth is #{better} + (#{equal} + 1) / 2, so an undecided tie never counts as a hit at 1.

- open: the true place has to be named.
- legacy: places unseen in training are one class (id 1), which counts when it is right.
- strict: a target unseen in training never counts, whatever is predicted.

Legend: n = samples, C = candidates of all samples, U = users, R = resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from linnet.errors import BadInput
from linnet.intervals import Bootstrap, Difference, wilson
from linnet.records import Baseline, Score

UNSEEN = 1  # the legacy id of every place that the train part does not hold
CUTS = (1, 3, 5, 10)
_NO_LABEL = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Ranking:
    """Scored labels of each sample; `vocabulary` labels could have been named in all."""

    starts: np.ndarray  # int64 [n + 1]
    label: np.ndarray  # int64 [C]
    score: np.ndarray  # float64 [C]
    vocabulary: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def merged(self, to: np.ndarray, vocabulary: int) -> Ranking:
        """Labels that become the same add their scores: the probability of a cell is the sum over its places."""
        return Ranking.summed(self.owner, to[self.label], self.score, len(self), vocabulary)

    @classmethod
    def summed(
        cls, owner: np.ndarray, label: np.ndarray, score: np.ndarray, samples: int, vocabulary: int
    ) -> Ranking:
        """From scores in any order; those of one label of a sample are added up."""
        keys, inverse = np.unique(owner * vocabulary + label, return_inverse=True)
        starts = np.searchsorted(keys // vocabulary, np.arange(samples + 1)).astype(np.int64)
        return cls(starts, keys % vocabulary, np.bincount(inverse.ravel(), score, len(keys)), vocabulary)


@dataclass(frozen=True)
class Ranked:
    """Where the truth came in each sample; what stood first is for the F1 score."""

    rank: np.ndarray  # float64 [n]; inf = can never be named
    first: np.ndarray  # int64 [n]; -1 = nothing was named
    truth: np.ndarray  # int64 [n]
    tied: np.ndarray  # bool [n]

    def never(self, wrong: np.ndarray) -> Ranked:
        """The same with these samples counted as misses."""
        return Ranked(np.where(wrong, np.inf, self.rank), self.first, self.truth, self.tied & ~wrong)


def rank_truth(ranking: Ranking, truth: np.ndarray) -> Ranked:
    """Expected rank of the truth among all labels; a truth of -1 can never be named."""
    owner, count = ranking.owner, np.diff(ranking.starts)
    hit = ranking.label == truth[owner]
    own = np.full(len(ranking), -np.inf)
    own[owner[hit]] = ranking.score[hit]
    listed = np.zeros(len(ranking), bool)
    listed[owner[hit]] = True
    better = np.bincount(owner, ranking.score > own[owner], len(ranking))
    equal = np.bincount(owner, ranking.score == own[owner], len(ranking))
    outside = np.maximum(ranking.vocabulary - count, 1)
    better, equal = np.where(listed, better, count), np.where(listed, equal, outside)
    rank = np.where(truth >= 0, better + (equal + 1) / 2, np.inf)
    return Ranked(rank, _first(ranking), truth, (equal > 1) & listed)


def rank_dense(scores: np.ndarray, truth: np.ndarray) -> Ranked:
    """The same from one score for every label, [n, labels]."""
    own = scores[np.arange(len(truth)), np.maximum(truth, 0)][:, None]
    better, equal = (scores > own).sum(1), (scores == own).sum(1)
    rank = np.where(truth >= 0, better + (equal + 1) / 2, np.inf)
    return Ranked(rank, scores.argmax(1), truth, (equal > 1) & (truth >= 0))


def _first(ranking: Ranking) -> np.ndarray:
    """The best label of each sample; the lowest one of a tie."""
    found, filled = np.full(len(ranking), -1), np.diff(ranking.starts) > 0
    if filled.any():
        begins = ranking.starts[:-1][filled]
        best = np.repeat(np.maximum.reduceat(ranking.score, begins), np.diff(ranking.starts)[filled])
        found[filled] = np.minimum.reduceat(np.where(ranking.score == best, ranking.label, _NO_LABEL), begins)
    return found


def measures(ranked: Ranked) -> dict[str, np.ndarray]:
    """[n] per measure; their means are the scores."""
    rank = ranked.rank
    found = {f"acc@{cut}": (rank <= cut).astype(np.float64) for cut in CUTS}
    found["mrr"] = 1 / rank
    found["ndcg@10"] = np.where(rank <= 10, 1 / np.log2(np.where(np.isfinite(rank), rank, 1) + 1), 0.0)
    return found


def weighted_f1(ranked: Ranked, weight: np.ndarray | None = None) -> float:
    """F1 of the first places, weighted by how often each place is the truth (scikit-learn's `weighted`)."""
    size = int(max(ranked.first.max(initial=0), ranked.truth.max(initial=0))) + 2
    weight = np.ones(len(ranked.truth)) if weight is None else weight
    truth, first = ranked.truth % size, ranked.first % size  # -1 becomes a class of its own
    right = np.bincount(truth, weight * ((ranked.rank <= 1) & (ranked.truth >= 0)), size)
    true, predicted = np.bincount(truth, weight, size), np.bincount(first, weight, size)
    return float((true * 2 * right / np.maximum(true + predicted, 1e-300)).sum() / max(true.sum(), 1e-300))


@dataclass(frozen=True)
class Resampled:
    """Users drawn with replacement, the same draws for every score of a report and for each group of samples."""

    user: np.ndarray  # int64 [n] column of the weights
    weight: np.ndarray  # float64 [R, U]

    @classmethod
    def draw(cls, user: np.ndarray) -> Resampled:
        if not len(user):
            raise BadInput("there is no sample to score")
        users, codes = np.unique(user, return_inverse=True)
        return cls(codes, Bootstrap.draw(len(users)).weights)

    def among(self, chosen: np.ndarray) -> Resampled:
        """The same draws for some of the samples."""
        return Resampled(self.user[chosen], self.weight)

    @cached_property
    def counts(self) -> np.ndarray:
        """float64 [U]: samples of each user."""
        return np.bincount(self.user, minlength=self.weight.shape[1]).astype(np.float64)

    @property
    def users(self) -> int:
        return int((self.counts > 0).sum())

    def means(self, value: np.ndarray) -> np.ndarray:
        """The mean over samples in each draw of users that has any; [R] for all samples."""
        total = np.bincount(self.user, value, len(self.counts))
        drawn = self.weight @ self.counts
        return (self.weight @ total)[drawn > 0] / drawn[drawn > 0]

    def interval(self, value: np.ndarray) -> tuple[float, float]:
        """95 %, clustered by user; with a single user the samples are taken as independent."""
        if self.users == 1:
            error = 1.96 * float(value.std()) / max(len(value), 1) ** 0.5
            return float(value.mean()) - error, float(value.mean()) + error
        low, high = np.quantile(self.means(value), [0.025, 0.975])
        return float(low), float(high)

    def share_interval(self, value: np.ndarray) -> tuple[float, float]:
        """The same of shares; where everybody agrees on 0 or 1 no draw differs: then Wilson's of so many units."""
        low, high = self.interval(value)
        if low == high and low in (0.0, 1.0):
            units = self.users if self.users > 1 else len(value)
            return wilson(units if low else 0, units)
        return max(0.0, low), min(1.0, high)

    def by_user(self, value: np.ndarray) -> tuple[float, float, float]:
        """Mean over users of each user's mean, with its interval: a single user says nothing of others."""
        each = np.bincount(self.user, value, len(self.counts)) / np.maximum(self.counts, 1)
        if self.users == 1:
            return float(each.sum()), 0.0, 1.0
        draws = self.weight @ each / self.users
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(each.mean()), float(low), float(high)

    def of_samples(self, resamples: int) -> Iterator[np.ndarray]:
        """Weights [n] of the samples in each of some draws."""
        if self.users == 1:
            yield from Bootstrap.draw(len(self.user), resamples=resamples).weights
        else:
            yield from (weight[self.user] for weight in self.weight[:resamples])


def paired(ours: np.ndarray, theirs: np.ndarray, draws: Resampled) -> Difference:
    """The paired test of two systems, one value a sample each.

    So few users may all be on one side by chance alone: `p` is never below that of a test of their signs.
    """
    apart = ours - theirs
    low, high = draws.interval(apart)
    means = draws.means(apart)
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    p = min(1.0, 2 * max(tail, 1 / len(means), 0.5**draws.users))
    return Difference(float(apart.mean()), low, high, p)


def vocabularies(
    open_ranking: Ranking | None, place: np.ndarray, legacy: np.ndarray, legacy_ranking: Ranking | None = None
) -> dict[str, Ranked]:
    """The truth's ranks as open, legacy and strict; `place` is the true place of each sample, `legacy` is [P].

    A system that names true places is merged into the legacy classes and judged strictly on its own names; one
    that knows legacy classes only has no open score.
    """
    seen = legacy[place] != UNSEEN
    found: dict[str, Ranked] = {}
    if open_ranking is not None:
        found["open"] = rank_truth(open_ranking, place)
        legacy_ranking = legacy_ranking or open_ranking.merged(legacy, int(legacy.max()) + 1)
        found["strict"] = found["open"].never(~seen)
    if legacy_ranking is None:
        raise BadInput("a ranking of places or of legacy classes is needed")
    found["legacy"] = rank_truth(legacy_ranking, legacy[place].astype(np.int64))
    found.setdefault("strict", found["legacy"].never(~seen))
    return found


PREFIX = {"open": "", "legacy": "legacy.", "strict": "strict."}


def score_list(
    ranked: Mapping[str, Ranked],
    draws: Resampled,
    baselines: Mapping[str, Mapping[str, Ranked]],
    groups: Mapping[str, np.ndarray] | None = None,
) -> list[Score]:
    """All scores of one system. `baselines` are the same tables of the systems to beat; the best one is shown.

    `groups` adds acc@1 of the samples where a mask holds, as `acc@1.hour=08`.
    """
    scores = []
    for name, table in ranked.items():
        prefix = PREFIX.get(name, f"{name}.")
        rivals = {rival: measures(tables[name]) for rival, tables in baselines.items() if name in tables}
        for measure, value in measures(table).items():
            scores.append(_score(prefix + measure, value, draws, rivals, measure, table))
        scores.append(_f1_score(prefix, table, {r: t[name] for r, t in baselines.items() if name in t}, draws))
        if name in PREFIX:
            accuracy = measures(table)["acc@1"]
            mean, low, high = draws.by_user(accuracy)
            rival = _best({r: draws.by_user(v["acc@1"])[0] for r, v in rivals.items()})
            scores.append(Score(name=f"{prefix}user.acc@1", value=mean, n=draws.users, low=low, high=high,
                                baseline=rival, note="mean over users"))  # fmt: skip
            for group, mask in (groups or {}).items():
                if mask.any():
                    part = draws.among(mask)
                    theirs = {r: {"acc@1": v["acc@1"][mask]} for r, v in rivals.items()}
                    scores.append(_score(f"{prefix}acc@1.{group}", accuracy[mask], part, theirs, "acc@1",
                                         None))  # fmt: skip
    return scores


def _score(
    name: str, value: np.ndarray, draws: Resampled, rivals: Mapping[str, Mapping[str, np.ndarray]],
    measure: str, table: Ranked | None,
) -> Score:  # fmt: skip
    best = _best({rival: float(values[measure].mean()) for rival, values in rivals.items()})
    note = f"ties: {table.tied.mean():.2%} of the samples" if table is not None and table.tied.any() else ""
    low, high = draws.share_interval(value)
    return Score(name=name, value=float(value.mean()), n=len(value), low=low, high=high, baseline=best, note=note)


def _f1_score(prefix: str, table: Ranked, rivals: Mapping[str, Ranked], draws: Resampled) -> Score:
    value = weighted_f1(table)
    spread = [weighted_f1(table, weight) for weight in draws.of_samples(len(draws.weight) // 10)]
    low, high = (float(x) for x in np.quantile(spread, [0.025, 0.975]))
    best = _best({rival: weighted_f1(other) for rival, other in rivals.items()})
    return Score(name=f"{prefix}f1", value=value, n=len(table.truth), low=low, high=high, baseline=best,
                 note="weighted by the truth's frequency")  # fmt: skip


def _best(values: Mapping[str, float]) -> Baseline:
    if not values:
        return Baseline(name="none", value=0.0)
    name = max(values, key=lambda key: values[key])
    return Baseline(name=name, value=values[name])
