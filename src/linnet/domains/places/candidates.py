"""The places that a user has been to, as the candidates of each sample, with sums over their visits.

Every system that counts (rules, the boosted ranker, the neural scorer) looks at the same expansion: each sample's
known visits laid end to end, and the distinct labels among them. A label is a place number or a legacy id.
Legend: n = samples, E = known visits of all samples, C = candidates of all samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnet.domains.places.splits import Samples
from linnet.domains.places.visits import ranges


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

    def find(self, owner: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The candidate number of (sample, label) pairs; -1 where the label is no candidate of the sample."""
        span = int(max(self.label.max(initial=0), label.max(initial=0))) + 2
        key, wanted = self.owner * span + self.label, owner * span + label
        place = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
        found = (key[place] == wanted) & (label >= 0) if len(key) else np.zeros(len(wanted), bool)
        return np.where(found, place, -1)


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
