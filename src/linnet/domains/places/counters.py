"""The places of a user as candidates, and rules that count: what every model of next places has to beat.

Every system looks at the same expansion: each sample's known visits laid end to end, and the distinct labels among
them. A label is a place number or a legacy id. Rules are frozen objects that turn samples into a `Ranking`, all of
them vectorised over samples; their loop forms are in the tests. Counts come from the visits that a sample may
know (`Samples.past_*` and its history).
Legend: n = samples, E = known visits of all samples, C = candidates of all samples, N = visits of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from linnet.domains.places.codec import Moves, OthersTable
from linnet.domains.places.features import SEEN, consecutive, departures, seen_from_departure
from linnet.domains.places.samples import Known, Samples, history_only, known_visits
from linnet.domains.places.scores import Ranking
from linnet.domains.places.visits import DAY, LONGEST, MINUTE, Visits, ranges
from linnet.errors import library


@dataclass(frozen=True)
class Candidates:
    """Distinct labels per sample, in ascending order; `slot` sends each known visit to its candidate."""

    starts: np.ndarray  # int64 [n + 1]
    label: np.ndarray  # int64 [C]
    slot: np.ndarray  # int64 [E]

    @property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def sums(self, weight: np.ndarray) -> np.ndarray:
        """[C]: the weights of the visits of each candidate, added up."""
        return np.bincount(self.slot, weight, len(self.label))


def candidates(samples: Samples, known: Known, label: np.ndarray) -> Candidates:
    """Distinct labels of the known visits; `label` is [N], one for every visit of the table."""
    of_visit = label[known.row].astype(np.int64)
    span = int(of_visit.max(initial=0)) + 1
    keys, slot = np.unique(known.owner * span + of_visit, return_inverse=True)
    starts = np.searchsorted(keys // span, np.arange(len(samples) + 1))
    return Candidates(starts.astype(np.int64), keys % span, slot.ravel())


_TIE = 1e-9  # breaks ties between equal counts and never between different ones


class Rule(Protocol):
    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        """Scored labels of every sample; `label` is [N], the label of each visit."""


@dataclass(frozen=True)
class LastPlace:
    """The latest places first."""

    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        known = history_only(samples)
        found = candidates(samples, known, label)
        latest = np.zeros(len(found.label))
        np.maximum.at(latest, found.slot, samples.lengths[known.owner] - known.later(len(samples)))
        return _ranking(found, latest, label)


@dataclass(frozen=True)
class MostFrequent:
    """The most frequent place of the history; equal counts go to the latest, or to the first seen."""

    ties: str = "latest"

    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        known = history_only(samples)
        found = candidates(samples, known, label)
        order = samples.lengths[known.owner] - known.later(len(samples))  # 1 for the first visit
        decided = np.full(len(found.label), np.inf if self.ties == "first" else 0.0)
        (np.minimum if self.ties == "first" else np.maximum).at(decided, found.slot, order)
        count = found.sums(np.ones(len(known.row)))
        return _ranking(found, count + _TIE * (-decided if self.ties == "first" else decided), label)


@dataclass(frozen=True)
class Markov:
    """Transitions of the user out of the last `order` places; shorter contexts and the visit share break ties."""

    order: int = 1

    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        known = known_visits(samples)
        found = candidates(samples, known, label)
        score = _TIE * found.sums(np.ones(len(known.row)))
        for depth in range(1, self.order + 1):
            followed = follows(samples, known, label, depth)
            score = score * 1e-3 + found.sums(followed.astype(np.float64))
        return _ranking(found, score, label)


@dataclass(frozen=True)
class Counter:
    """Transitions from here, visit share, and recency in the history: no parameter was fitted.

    score(c) = N(here -> c) + share * P_past(c) + recent * R(c), where N counts the moves within the past and those
    within the history, each once though it is in both, and R sums decay ** (visits since then) over the visits of
    c in the history.
    """

    share: float = 0.1
    recent: float = 0.05
    decay: float = 0.9

    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        row, owner = ranges(samples.past_from, samples.past_to)
        past, history = Known(owner, row, np.zeros(len(row), bool)), history_only(samples)
        both = Known(
            np.concatenate([past.owner, history.owner]), np.concatenate([past.row, history.row]),
            np.repeat([False, True], [len(past.row), len(history.row)]),
        )  # fmt: skip
        found = candidates(samples, both, label)
        row, owner = history.row, history.owner  # moves of the history that the past holds, too
        again = consecutive(owner, row) & (row > samples.past_from[owner]) & (row < samples.past_to[owner])
        moved = np.concatenate([follows(samples, past, label, 1), follows(samples, history, label, 1) & ~again])
        count = np.maximum(np.bincount(past.owner, minlength=len(samples)), 1)
        recency = self.recent * self.decay ** history.later(len(samples))
        weight = np.concatenate([self.share / count[past.owner], recency])
        return _ranking(found, found.sums(moved + weight), label)


BASELINES: Mapping[str, Rule] = {
    "last place": LastPlace(),
    "most frequent": MostFrequent(),
    "Markov-1": Markov(1),
    "Markov-2": Markov(2),
    "counter": Counter(),
}


def follows(samples: Samples, known: Known, label: np.ndarray, depth: int) -> np.ndarray:
    """bool [E]: the `depth` visits just before are known, and have the labels of the last ones of the sample."""
    matching = np.ones(len(known.row), bool)
    position = np.arange(len(known.row))
    enough = samples.lengths >= depth
    for back in range(1, depth + 1):
        before = np.maximum(position - back, 0)
        same = (known.row[before] == known.row - back) & (known.owner[before] == known.owner)
        wanted = samples.rows[np.maximum(samples.starts[1:] - back, samples.starts[:-1])]
        matching &= same & (label[known.row[before]] == label[wanted][known.owner])
    return matching & enough[known.owner]


def _ranking(found: Candidates, score: np.ndarray, label: np.ndarray) -> Ranking:
    return Ranking(found.starts, found.label, score, int(label.max(initial=0)) + 1)


# --- the boosted ranker: gradient-boosted trees over features of the candidates, the strongest baseline ---


SETTINGS = {
    "objective": "rank_xendcg",
    "metric": "ndcg",
    "eval_at": [1],
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "max_bin": 63,
    "verbosity": -1,
}
ROUNDS, PATIENCE = 600, 80
SAMPLES = 4_000  # whose features exist at once


@dataclass(frozen=True)
class Ranker:
    """A fitted ranker; it ranks samples as the counting rules do."""

    booster: Any
    others: OthersTable

    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        labels, scores, lengths = [], [], []
        for some in samples.chunks(SAMPLES):
            found, features = candidate_features(visits, some, label, self.others)
            scores.append(_probabilities(self.booster.predict(features, num_threads=1), found))
            labels.append(found.label)
            lengths.append(np.diff(found.starts))
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return Ranking(starts, np.concatenate(labels), np.concatenate(scores), self.others.size)


def _probabilities(score: np.ndarray, found: Candidates) -> np.ndarray:
    """Softmax over the candidates of each sample, so that merged classes can add up."""
    owner = found.owner
    top = np.full(len(found.starts) - 1, -np.inf)
    np.maximum.at(top, owner, score)
    weight = np.exp(score - top[owner])
    return weight / np.bincount(owner, weight, len(top))[owner]


def fit_ranker(
    visits: Visits, part: np.ndarray, train: Samples, validation: Samples, label: np.ndarray, seed: int = 0
) -> Ranker:
    """Learn on the train part, stop on the validation part; samples whose target is no candidate teach nothing."""
    lightgbm = library("lightgbm", "the boosted ranker needs lightgbm", "places")
    learned = np.flatnonzero(part == 0)
    moves = Moves.of(visits.user[learned], label[learned], learned)
    others = OthersTable.of(moves, int(label.max(initial=0)) + 1)
    sets: list[Any] = []
    for samples in (train, validation):
        features, relevance, groups = _training_rows(visits, samples, label, others)
        reference = sets[0] if sets else None
        sets.append(lightgbm.Dataset(features, relevance, group=groups, reference=reference))
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    settings = SETTINGS | {"seed": seed, "num_threads": 1, "deterministic": True}
    return Ranker(lightgbm.train(settings, sets[0], ROUNDS, [sets[1]], callbacks=[stop]), others)


def _training_rows(
    visits: Visits, samples: Samples, label: np.ndarray, others: OthersTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, 1 for the target, and how many rows each sample has."""
    rows, relevance, groups = [], [], []
    for some in samples.chunks(SAMPLES):
        found, features = candidate_features(visits, some, label, others)
        hit = found.label == label[some.target][found.owner]
        reached = np.bincount(found.owner, hit, len(some)) > 0
        kept = reached[found.owner]
        rows.append(features[kept])
        relevance.append(hit[kept].astype(np.int32))
        groups.append(np.diff(found.starts)[reached])
    return np.concatenate(rows), np.concatenate(relevance), np.concatenate(groups)


def seen_by(visits: Visits, samples: Samples, known: Known, label: np.ndarray) -> dict[str, np.ndarray]:
    """The features of each known visit by name, and `inside`: whether it is in the history."""
    starts = np.searchsorted(known.owner, np.arange(len(samples) + 1))
    row, of = known.row, label[known.row]
    follows = consecutive(known.owner, row)
    seen = seen_from_departure(starts, visits.clock()[row], departures(visits)[row], of, of, follows)
    return dict(zip(SEEN, seen.T.astype(np.float64), strict=True)) | {"inside": known.inside.astype(np.float64)}


def kernels(seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under which a candidate's visits are added up."""
    week, month = np.exp(-seen["age"] / 7), np.exp(-seen["age"] / 30)
    near, wide = np.exp(-((seen["apart"] / 60) ** 2) / 2), np.exp(-((seen["apart"] / 180) ** 2) / 2)
    weekday, kind, here, two, inside = (seen[name] for name in ("weekday", "weekkind", "here", "two", "inside"))
    return {
        "week": week, "month": month, "near": near, "near month": near * month, "near weekday": near * weekday,
        "near kind": near * kind, "wide kind": wide * kind, "wide week": wide * week,
        "wide kind month": wide * kind * month, "here": here, "here month": here * month,
        "here week": here * week, "here near": here * near, "here wide kind": here * wide * kind, "two": two,
        "two wide": two * wide, "weekday": weekday, "inside near": inside * near,
        "inside wide kind": inside * wide * kind, "inside here": inside * here,
        "inside here wide": inside * here * wide,
    }  # fmt: skip


def candidate_features(
    visits: Visits, samples: Samples, label: np.ndarray, others: OthersTable
) -> tuple[Candidates, np.ndarray]:
    """The candidates of these samples, and float32 [C, features]."""
    known = known_visits(samples)
    found = candidates(samples, known, label)
    seen = seen_by(visits, samples, known, label)
    owner, columns = found.owner, {}
    for name, weight in kernels(seen).items():
        total = found.sums(weight)
        columns[name] = total
        columns[f"{name} share"] = total / np.maximum(np.bincount(owner, total, len(samples)), 1e-9)[owner]
    count, window = found.sums(np.ones(len(known.row))), found.sums(known.inside)
    columns["log count"] = np.log1p(count)
    columns["share"] = count / np.bincount(owner, count, len(samples))[owner]
    columns["window count"], columns["window share"] = window, window / samples.lengths[owner]
    columns |= _recency(visits, samples, known, found, label)
    here, user = label[samples.last][owner], visits.user[samples.target].astype(np.int64)[owner]
    others_left = others.left(user, here)
    columns["others move"] = others.moved(user, here, found.label) / np.maximum(others_left, 1)
    columns["others visit"] = np.log1p(others.visited(user, found.label))
    stay = np.minimum((visits.end - visits.start) / MINUTE, LONGEST)
    columns["mean stay"] = found.sums(stay[known.row]) / count
    columns |= {name: value[owner] for name, value in _of_sample(visits, samples, known, label, seen).items()}
    return found, np.stack([*columns.values()], 1).astype(np.float32)


def _recency(
    visits: Visits, samples: Samples, known: Known, found: Candidates, label: np.ndarray
) -> dict[str, np.ndarray]:
    leaving, owner = departures(visits), found.owner
    latest = np.full(len(found.label), -1)
    np.maximum.at(latest, found.slot, np.arange(len(known.row)))
    hours = (leaving[samples.last][owner] - leaving[known.row[latest]]) / 3600
    return {
        "visits since": np.log1p(known.later(len(samples))[latest]),
        "hours since": np.log1p(np.maximum(hours, 0)),
        "is here": found.label == label[samples.last][owner],
    }


def _of_sample(
    visits: Visits, samples: Samples, known: Known, label: np.ndarray, seen: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What all candidates of a sample share."""
    last, leaving = samples.last, departures(visits)[samples.last]
    history = samples.owner * (int(label.max(initial=0)) + 1) + label[samples.rows]
    distinct = np.bincount(np.unique(history) // (int(label.max(initial=0)) + 1), minlength=len(samples))
    return {
        "stay": np.minimum((visits.end - visits.start)[last] / MINUTE, LONGEST),
        "minute": leaving % DAY / MINUTE,
        "day of week": (leaving // DAY + 3) % 7,
        "window size": samples.lengths,
        "past size": np.bincount(known.owner, minlength=len(samples)),
        "distinct": distinct / samples.lengths,
        "departures": np.bincount(known.owner, seen["here"], len(samples)),
    }
