"""The boosted ranker: gradient-boosted trees over the candidate features, the strongest baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linnet.domains.places.candidates import Candidates, candidates, known_visits
from linnet.domains.places.features import candidate_features, count_others
from linnet.domains.places.others import OthersTable
from linnet.domains.places.scores import Ranking
from linnet.domains.places.splits import Samples
from linnet.domains.places.visits import Visits
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
