"""The boosted ranker: gradient-boosted trees over features of the candidates, the strongest baseline.

A prediction is made at the departure from the last known visit, and nothing later is used. Counts over other
people exclude the user's own rows.
Legend: n = samples, E = known visits of all samples, C = candidates, N = visits of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linnet.domains.places.codec import Moves, OthersTable
from linnet.domains.places.counters import Candidates, Known, candidates, known_visits
from linnet.domains.places.features import LONGEST_STAY, departures
from linnet.domains.places.samples import Samples
from linnet.domains.places.scores import Ranking
from linnet.domains.places.visits import DAY, MINUTE, Visits
from linnet.errors import BadInput

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
        for begin in range(0, len(samples), SAMPLES):
            some = samples.choose(np.arange(begin, min(begin + SAMPLES, len(samples))))
            found, features = _features(visits, some, label, self.others)
            scores.append(_probabilities(self.booster.predict(features, num_threads=1), found))
            labels.append(found.label)
            lengths.append(np.diff(found.starts))
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return Ranking(starts, np.concatenate(labels), np.concatenate(scores), self.others.size)


def _features(
    visits: Visits, samples: Samples, label: np.ndarray, others: OthersTable
) -> tuple[Candidates, np.ndarray]:
    known = known_visits(samples)
    found = candidates(samples, known, label)
    return found, candidate_features(visits, samples, known, found, label, others)[0]


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
    try:
        import lightgbm
    except ImportError:
        raise BadInput("the boosted ranker needs lightgbm: pip install linnet[places]") from None
    others = count_others(visits, part, label)
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
    for begin in range(0, len(samples), SAMPLES):
        some = samples.choose(np.arange(begin, min(begin + SAMPLES, len(samples))))
        found, features = _features(visits, some, label, others)
        hit = found.label == label[some.target][found.owner]
        reached = np.bincount(found.owner, hit, len(some)) > 0
        kept = reached[found.owner]
        rows.append(features[kept])
        relevance.append(hit[kept].astype(np.int32))
        groups.append(np.diff(found.starts)[reached])
    return np.concatenate(rows), np.concatenate(relevance), np.concatenate(groups)


DAY_MINUTES = 1440


def count_others(visits: Visits, part: np.ndarray, label: np.ndarray) -> OthersTable:
    """Moves and stays of the train part, by label."""
    train = np.flatnonzero(part == 0)
    return OthersTable.of(Moves.of(visits.user[train], label[train], train), int(label.max(initial=0)) + 1)


@dataclass(frozen=True)
class Evidence:
    """Each known visit, seen from the moment that its sample asks about."""

    age: np.ndarray  # float64 [E] days from the visit's start to the departure
    apart: np.ndarray  # float64 [E] minutes on the clock between now and the departure that led to the visit
    same_weekday: np.ndarray  # bool [E]
    same_kind: np.ndarray  # bool [E] both on weekdays or both on weekends
    from_here: np.ndarray  # bool [E] the visit before it was where the user is now
    from_two: np.ndarray  # bool [E] the two visits before it were the last two places
    inside: np.ndarray  # bool [E] in the history


def evidence(visits: Visits, samples: Samples, known: Known, label: np.ndarray) -> Evidence:
    leaving, row = departures(visits), known.row
    now = leaving[samples.last][known.owner]
    has_before, before = _previous(known, visits)
    led = np.where(has_before, leaving[before], visits.clock()[row])
    apart = np.abs((now - led) % DAY) / MINUTE
    here = label[samples.last][known.owner]
    earlier = samples.rows[np.maximum(samples.starts[1:] - 2, samples.starts[:-1])]
    two = (samples.lengths >= 2)[known.owner]
    has_second, second = has_before & _shift(has_before), before - 1
    second_same = has_second & two & (label[np.maximum(second, 0)] == label[earlier][known.owner])
    from_here = has_before & (label[before] == here)
    weekday_now, weekday = (now // DAY + 3) % 7, (led // DAY + 3) % 7
    return Evidence(
        np.maximum(now - visits.clock()[row], 0) / DAY,
        np.minimum(apart, DAY_MINUTES - apart),
        weekday_now == weekday,
        (weekday_now >= 5) == (weekday >= 5),
        from_here,
        from_here & second_same,
        known.inside,
    )


def _previous(known: Known, visits: Visits) -> tuple[np.ndarray, np.ndarray]:
    """Whether the visit just before is known too, and its row."""
    row = known.row
    same = np.zeros(len(row), bool)
    same[1:] = (row[1:] == row[:-1] + 1) & (known.owner[1:] == known.owner[:-1])
    same &= (row > 0) & (visits.user[row] == visits.user[np.maximum(row - 1, 0)])
    return same, np.maximum(row - 1, 0)


def _shift(flags: np.ndarray) -> np.ndarray:
    return np.concatenate([[False], flags[:-1]]) if len(flags) else flags


def kernels(seen: Evidence) -> dict[str, np.ndarray]:
    """The weights under which a candidate's visits are added up."""
    week, month = np.exp(-seen.age / 7), np.exp(-seen.age / 30)
    near, wide = np.exp(-((seen.apart / 60) ** 2) / 2), np.exp(-((seen.apart / 180) ** 2) / 2)
    kind, weekday = seen.same_kind.astype(float), seen.same_weekday.astype(float)
    here, two, inside = seen.from_here.astype(float), seen.from_two.astype(float), seen.inside.astype(float)
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
    visits: Visits, samples: Samples, known: Known, found: Candidates, label: np.ndarray, others: OthersTable
) -> tuple[np.ndarray, list[str]]:
    """float32 [C, features] and their names."""
    seen = evidence(visits, samples, known, label)
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
    stay = np.minimum(visits.end - visits.start, LONGEST_STAY) / MINUTE
    columns["mean stay"] = found.sums(stay[known.row]) / count
    columns |= {name: value[owner] for name, value in _of_sample(visits, samples, known, label, seen).items()}
    return np.stack([*columns.values()], 1).astype(np.float32), list(columns)


def _recency(
    visits: Visits, samples: Samples, known: Known, found: Candidates, label: np.ndarray
) -> dict[str, np.ndarray]:
    leaving, owner = departures(visits), found.owner
    latest = np.full(len(found.label), -1)
    np.maximum.at(latest, found.slot, np.arange(len(known.row)))
    end = np.searchsorted(known.owner, np.arange(len(samples)), side="right")
    hours = (leaving[samples.last][owner] - leaving[known.row[latest]]) / 3600
    return {
        "visits since": np.log1p(end[owner] - 1 - latest),
        "hours since": np.log1p(np.maximum(hours, 0)),
        "is here": found.label == label[samples.last][owner],
    }


def _of_sample(
    visits: Visits, samples: Samples, known: Known, label: np.ndarray, seen: Evidence
) -> dict[str, np.ndarray]:
    """What all candidates of a sample share."""
    last, leaving = samples.last, departures(visits)[samples.last]
    history = samples.owner * (int(label.max(initial=0)) + 1) + label[samples.rows]
    distinct = np.bincount(np.unique(history) // (int(label.max(initial=0)) + 1), minlength=len(samples))
    return {
        "stay": np.minimum(visits.end - visits.start, LONGEST_STAY)[last] / MINUTE,
        "minute": leaving % DAY / MINUTE,
        "day of week": (leaving // DAY + 3) % 7,
        "window size": samples.lengths,
        "past size": np.bincount(known.owner, minlength=len(samples)),
        "distinct": distinct / samples.lengths,
        "departures": np.bincount(known.owner, seen.from_here, len(samples)),
    }
