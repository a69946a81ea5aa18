"""What is known about each candidate place: kernel sums over the user's visits, recency, others' moves.

These are the features of the boosted ranker, the strongest baseline. A prediction is asked for at the departure
from the last known visit, and nothing later is used. Counts over other people exclude the user's own rows.
Legend: n = samples, E = known visits of all samples, C = candidates, N = visits of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnet.domains.places.candidates import Candidates, Known
from linnet.domains.places.others import Moves, OthersTable
from linnet.domains.places.splits import Samples
from linnet.domains.places.visits import DAY, MINUTE, Visits

LONGEST_STAY = 2879 * MINUTE
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


def departures(visits: Visits) -> np.ndarray:
    """int64 [N]: end of each stay on the local clock, in seconds; stays count two days at most."""
    return visits.clock() + np.minimum(visits.end - visits.start, LONGEST_STAY)


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
