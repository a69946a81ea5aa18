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
from typing import Protocol

import numpy as np

from linnet.domains.places.samples import Samples
from linnet.domains.places.scores import Ranking
from linnet.domains.places.visits import Visits, ranges


@dataclass(frozen=True)
class Known:
    """The visits that may be used for each sample: its past and its history, each visit once, oldest first."""

    owner: np.ndarray  # int64 [E] the sample
    row: np.ndarray  # int64 [E] the visit
    inside: np.ndarray  # bool [E] in the history of the sample


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


def known_visits(samples: Samples) -> Known:
    """Past and history of every sample."""
    past, past_owner = ranges(samples.past_from, samples.past_to)
    history, history_owner = samples.rows.astype(np.int64), samples.owner
    span = int(max(past.max(initial=0), history.max(initial=0))) + 1
    keys = np.concatenate([past_owner * span + past, history_owner * span + history])
    inside = np.repeat([False, True], [len(past), len(history)])
    order = np.argsort(keys, kind="stable")
    keys, inside = keys[order], inside[order]
    last = np.append(keys[1:] != keys[:-1], True)[
        : len(keys)
    ]  # of a visit in both, the history's entry comes last
    keys, inside = keys[last], inside[last]
    return Known(keys // span, keys % span, inside)


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
        np.maximum.at(latest, found.slot, _order_in_sample(known) + 1.0)
        return _ranking(found, latest, label)


@dataclass(frozen=True)
class MostFrequent:
    """The most frequent place of the history; equal counts go to the latest, or to the first seen."""

    ties: str = "latest"

    def rank(self, visits: Visits, samples: Samples, label: np.ndarray) -> Ranking:
        known = history_only(samples)
        found = candidates(samples, known, label)
        order = _order_in_sample(known) + 1.0
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
        past, history = _past_only(samples), history_only(samples)
        both = Known(
            np.concatenate([past.owner, history.owner]), np.concatenate([past.row, history.row]),
            np.repeat([False, True], [len(past.row), len(history.row)]),
        )  # fmt: skip
        found = candidates(samples, both, label)
        again = _moves_of_the_past(samples, history)
        moved = np.concatenate([follows(samples, past, label, 1), follows(samples, history, label, 1) & ~again])
        count = np.maximum(np.bincount(past.owner, minlength=len(samples)), 1)
        since = samples.lengths[history.owner] - 1 - _order_in_sample(history)
        weight = np.concatenate([self.share / count[past.owner], self.recent * self.decay**since])
        return _ranking(found, found.sums(moved + weight), label)


BASELINES: Mapping[str, Rule] = {
    "last place": LastPlace(),
    "most frequent": MostFrequent(),
    "Markov-1": Markov(1),
    "Markov-2": Markov(2),
    "counter": Counter(),
}


def follows(samples: Samples, known: Known, label: np.ndarray, depth: int) -> np.ndarray:
    """bool [E]: the `depth` known visits before this one carry the labels of the sample's last `depth` visits."""
    matching = np.ones(len(known.row), bool)
    position = np.arange(len(known.row))
    enough = samples.lengths >= depth
    for back in range(1, depth + 1):
        before = position - back
        same = (before >= 0) & (known.owner[before] == known.owner)
        wanted = samples.rows[np.maximum(samples.starts[1:] - back, samples.starts[:-1])]
        matching &= same & (label[known.row[before]] == label[wanted][known.owner])
    return matching & enough[known.owner]


def _moves_of_the_past(samples: Samples, history: Known) -> np.ndarray:
    """bool [E]: history entries that the past holds, too, with the visit before them."""
    row, of = history.row, history.owner
    neighbours = np.concatenate([[False], (row[1:] == row[:-1] + 1) & (of[1:] == of[:-1])])[: len(row)]
    return neighbours & (row > samples.past_from[of]) & (row < samples.past_to[of])


def history_only(samples: Samples) -> Known:
    return Known(samples.owner, samples.rows.astype(np.int64), np.ones(len(samples.rows), bool))


def _past_only(samples: Samples) -> Known:
    row, owner = ranges(samples.past_from, samples.past_to)
    return Known(owner, row, np.zeros(len(row), bool))


def _order_in_sample(known: Known) -> np.ndarray:
    """0 for a sample's first known visit, then 1, 2, …"""
    position = np.arange(len(known.owner))
    first = np.searchsorted(known.owner, np.arange(int(known.owner.max(initial=-1)) + 1))
    return position - first[known.owner] if len(position) else position


def _ranking(found: Candidates, score: np.ndarray, label: np.ndarray) -> Ranking:
    return Ranking(found.starts, found.label, score, int(label.max(initial=0)) + 1)
