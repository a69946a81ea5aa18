"""Stay detection: where a person's fixes stay within a distance for long enough.

The rule and its parameters are trackintel's `sliding` staypoints (a fix opens a stay; the first fix at or beyond
the distance closes it). Ours is vectorised and needs numpy alone, because trackintel brings geopandas, pyproj
and scikit-learn for these few lines; a plain loop stays in the tests as the oracle.
Legend: F = fixes, ordered by user and time; S = stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

EARTH = 6_371_000.0  # metres, as trackintel has it


class StayRule(BaseModel):
    """trackintel's names in brackets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metres: float = 200.0  # dist_threshold
    minutes: float = 30.0  # time_threshold
    gap_minutes: float = 24 * 60.0  # gap_threshold: a longer silence before the closing fix voids the stay
    include_last: bool = True


@dataclass(frozen=True)
class Stays:
    user: np.ndarray  # [S]
    start: np.ndarray  # [S] time of the first fix
    end: np.ndarray  # [S] time of the fix that left
    lon: np.ndarray  # [S] mean of the fixes
    lat: np.ndarray  # [S]
    first: np.ndarray  # [S] number of the first fix


def distance(
    lon: np.ndarray, lat: np.ndarray, to_lon: np.ndarray | float, to_lat: np.ndarray | float
) -> np.ndarray:
    """Haversine metres between points in degrees."""
    phi, to_phi = np.radians(lat), np.radians(to_lat)
    across = np.sin(np.radians(np.subtract(to_lon, lon)) / 2)
    along = np.sin((to_phi - phi) / 2)
    return 2 * EARTH * np.arcsin(np.sqrt(np.clip(along**2 + np.cos(phi) * np.cos(to_phi) * across**2, 0, 1)))


def detect_stays(user: np.ndarray, time: np.ndarray, lon: np.ndarray, lat: np.ndarray, rule: StayRule) -> Stays:
    """Stays of every user; `time` in seconds."""
    edges = (
        np.flatnonzero(np.diff(user, prepend=user[:1] - 1, append=user[-1:] + 1))
        if len(user)
        else np.zeros(1, int)
    )
    found: list[tuple[int, int, int]] = []
    for begin, stop in zip(edges[:-1], edges[1:], strict=True):
        found += _of_user(time, lon, lat, int(begin), int(stop), rule)
    first, past, leaving = np.array(found, np.int64).reshape(-1, 3).T
    sums = [np.concatenate([[0.0], np.cumsum(column - column[:1])]) for column in (lon, lat)]
    count = np.maximum(past - first, 1)
    centre = [(total[past] - total[first]) / count for total in sums]
    shift = (lon[:1], lat[:1]) if len(lon) else (np.zeros(1), np.zeros(1))
    return Stays(user[first], time[first], time[leaving], centre[0] + shift[0], centre[1] + shift[1], first)


def _of_user(
    time: np.ndarray, lon: np.ndarray, lat: np.ndarray, begin: int, stop: int, rule: StayRule
) -> list[tuple[int, int, int]]:
    """(first fix, end of its fixes, fix that closes) of each stay."""
    found = []
    first = begin
    while True:
        leaving = _first_beyond(lon, lat, first, stop, rule.metres)
        if leaving == stop:
            break
        lasted = time[leaving] - time[first] >= rule.minutes * 60
        if lasted and time[leaving] - time[leaving - 1] < rule.gap_minutes * 60:
            found.append((first, leaving, leaving))
        first = leaving
    if rule.include_last and stop - first > 1 and time[stop - 1] - time[first] >= rule.minutes * 60:
        found.append((first, stop - 1, stop - 1))
    return found


def _first_beyond(lon: np.ndarray, lat: np.ndarray, first: int, stop: int, metres: float) -> int:
    """The first fix at least this far from `first`, searched in blocks that double; `stop` if there is none."""
    begin, width = first + 1, 32
    while begin < stop:
        until = min(begin + width, stop)
        far = distance(lon[begin:until], lat[begin:until], lon[first], lat[first]) >= metres
        if far.any():
            return begin + int(far.argmax())
        begin, width = until, 2 * width
    return stop
