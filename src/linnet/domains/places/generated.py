"""Check-ins from a known process, so that the best possible accuracy can be computed.

A person owns a home, a workplace and some haunts, each of a category. Waiting times depend on the category of the
current place; the next place depends on a taste for the place, on its category's hours (shared by all people), and
on how categories follow each other (shared too); some check-ins explore a venue that is not the person's own.
Summing over the waiting times gives the true probability of every next place: `best` is the largest one, and its
mean over samples is the accuracy that a predictor who knows the process, and not the next time, would reach.
Legend: U = users, K = own places of a user, G = categories, W = waiting times, S = slots of the week.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from linnet.domains.places.visits import DAY, MINUTE
from linnet.files import refuse_existing, write_lines
from linnet.records import DataRecord

WAITS = np.array([35, 60, 95, 150, 240, 380, 540, 720, 1440])  # minutes
_BLOCKS = 6  # of four hours a day


class Process(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = 300
    visits: int = 160  # of each user
    own: int = 12  # places of each user
    categories: int = 8
    venues: int = 3000
    explore: float = 0.08  # share of check-ins at venues that are not the user's own
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """Rows by user and time. `best` is the probability of the most probable next place before the row happened."""

    user: np.ndarray  # int64 [U * visits]
    time: np.ndarray  # int64, seconds on the local clock
    venue: np.ndarray  # int64
    best: np.ndarray  # float64
    likeliest: np.ndarray  # int64: that place
    category: np.ndarray  # int64 [venues]


def generate(process: Process) -> Generated:
    rng = np.random.default_rng(process.seed)
    users, kinds = np.arange(process.users), process.categories
    hours = rng.normal(0, 1.6, (kinds, 2 * _BLOCKS))  # a category's taste for a slot of the week
    follow = rng.normal(0, 1.0, (kinds, kinds))
    patience = rng.dirichlet(np.full(len(WAITS), 0.8), kinds)  # [G, W]
    kind_of = rng.integers(0, kinds, process.venues)
    own = np.stack([rng.choice(process.venues, process.own, replace=False) for _ in users])  # [U, K]
    taste = rng.normal(0, 1.1, own.shape)
    fame = 1 / np.arange(1, process.venues + 1) ** 0.8
    here, now = own[:, 0].copy(), 1_700_000_000 + rng.integers(0, 7 * DAY, process.users)
    steps = []
    for _ in range(process.visits):
        slots = slot_of(now[:, None] + WAITS * MINUTE)  # [U, W]
        logit = taste[:, None, :] + hours[kind_of[own][:, None, :], slots[:, :, None]]
        logit = logit + follow[kind_of[here][:, None], kind_of[own]][:, None, :]
        logit = np.where((own == here[:, None])[:, None, :], -np.inf, logit)
        chance = np.exp(logit - logit.max(-1, keepdims=True))
        chance = (1 - process.explore) * chance / chance.sum(-1, keepdims=True)  # [U, W, K]
        wait_chance = patience[kind_of[here]]  # [U, W]
        place_chance = (wait_chance[:, :, None] * chance).sum(1)
        wait = _draw(rng, wait_chance)
        picked = own[users, _draw(rng, chance[users, wait])]
        strange = rng.choice(process.venues, process.users, p=fame / fame.sum())
        strange = np.where(
            (strange[:, None] == own).any(1) | (strange == here), (here + 1) % process.venues, strange
        )
        venue = np.where(rng.random(process.users) < process.explore, strange, picked)
        now = now + WAITS[wait] * MINUTE
        top = place_chance.argmax(1)
        steps.append((users, now, venue, place_chance[users, top], own[users, top]))
        here = venue
    user, time, venue, best, likeliest = (np.stack(column, 1).ravel() for column in zip(*steps, strict=True))
    return Generated(user, time, venue, best, likeliest, kind_of)


def slot_of(time: np.ndarray) -> np.ndarray:
    """Four-hour block of the day, weekdays and weekends apart."""
    weekend = (time // DAY + 3) % 7 >= 5
    return time % DAY * _BLOCKS // DAY + _BLOCKS * weekend


def _draw(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    """One column of each row, drawn with these probabilities (rows need not add up to 1)."""
    total = np.cumsum(chance, 1)
    return (rng.random(len(chance))[:, None] * total[:, -1:] > total).sum(1)


def make(path: Path, process: Process, *, force: bool = False) -> DataRecord:
    """Write a drawn table, and say what the best possible accuracy on it is."""
    refuse_existing(path, force=force)
    made = generate(process)
    write_check_ins(path, made)
    note = f"a predictor that knows the process would name {made.best.mean():.4f} of the next places first"
    rows = {"visits": len(made.user), "users": process.users, "places": len(np.unique(made.venue))}
    return DataRecord(path=str(path), rows=rows, counts={}, problems=(), notes=(note,))


def write_check_ins(path: Path, made: Generated) -> None:
    stamps = made.time.astype("datetime64[s]").astype(str)
    rows = zip(made.user.tolist(), stamps.tolist(), made.venue.tolist(), strict=True)
    lines = (f"u{user:05d},{stamp},v{venue:05d}\n" for user, stamp, venue in rows)
    write_lines(path, itertools.chain(["user_id,time,venue_id\n"], lines))
