"""Splits and samples: which visits are learned from, and which visit is to be named from which history.

The published 6:2:2 protocol (by day, a 7-day history inside the same part) is one `Recipe`; splits by share of
each user's visits, by user, and by a column of the table are others. A recipe with the visits gives a hash, so
that two people can know that they scored the same samples.
Legend: N = visits, n = samples, H = all history entries of all samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from linnet.domains.places.visits import NO_PART, PARTS, Visits, ranges
from linnet.errors import BadInput, counted

CHUNK = 50_000  # samples looked at together, which bounds the memory


class Recipe(BaseModel):
    """How visits become samples. `days` and `most` bound the history; `same_part` keeps it inside its part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["day", "time", "user", "column"] = "time"
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    days: int | None = Field(7, description="of the calendar; None = no bound")
    most: int | None = Field(None, description="latest visits only; None = no bound")
    least: int = Field(3, description="visits that a history needs")
    same_part: bool = True
    skip_days: int = Field(7, description="days at the begin of each user's part without targets")
    all_parts: bool = Field(True, description="only users with samples in all three parts")
    calendar: Literal["utc", "local"] = "local"
    seed: int = Field(0, description="of a split by user")

    def in_words(self) -> str:
        shares = ":".join(f"{100 * share:g}" for share in self.fractions)
        by = {"time": "of each user's visits by time", "day": "of each user's days", "user": "of the users"}
        split = "split by a column" if self.by == "column" else f"split {shares} {by[self.by]}"
        bounds = [f"{self.days} days" if self.days is not None else "", f"{self.most} visits" if self.most else ""]
        last = " and ".join(filter(None, bounds))
        history = f"the latest {last}" if last else "all visits"
        return f"{split}; the next place from {history}{' of the same part' if self.same_part else ''}"


PUBLISHED = Recipe(by="day", calendar="utc")
CHECK_INS = Recipe(by="time", fractions=(0.8, 0.1, 0.1), days=None, most=50, least=1, same_part=False, skip_days=0,
                   all_parts=False)  # fmt: skip


class GivenRecipe(BaseModel):
    """What a person asked of a recipe; what is None is left to the recipe that the table gets. 0 = no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["day", "time", "user", "column"] | None = Field(None, description="what parts are cut by")
    fractions: tuple[float, float, float] | None = Field(None, description="shares of train, validation and test")
    days: int | None = Field(None, ge=0, description="length of a history")
    most: int | None = Field(None, ge=0, description="visits of a history at most")
    least: int | None = Field(None, ge=0, description="visits of a history at least")
    same_part: bool | None = Field(None, description="histories stay within a part")
    skip_days: int | None = Field(None, ge=0, description="days of a user without samples")
    all_parts: bool | None = Field(None, description="only users with samples in all parts")
    calendar: Literal["utc", "local"] | None = Field(None, description="whose days count")
    seed: int | None = Field(None, description="of a random split")

    def over(self, usual: Recipe) -> Recipe:
        """`usual` with what was asked for."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        unbounded = {name: None for name in ("days", "most") if given.get(name) == 0}
        return usual.model_copy(update=given | unbounded)


@dataclass(frozen=True)
class Samples:
    """Sample i: name visit `target[i]` from the visits `rows[starts[i]:starts[i + 1]]`, oldest first.

    `past_from[i]` to `past_to[i]` are further visits of the user that may be known beside the history: the
    train part (same information), or everything earlier (full past). They may overlap with the history.
    """

    target: np.ndarray  # int64 [n]
    starts: np.ndarray  # int64 [n + 1]
    rows: np.ndarray  # int32 [H]
    past_from: np.ndarray  # int64 [n]
    past_to: np.ndarray  # int64 [n]
    part: np.ndarray  # int8 [n]

    def __len__(self) -> int:
        return len(self.target)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def last(self) -> np.ndarray:
        """The latest visit of each history."""
        return self.rows[self.starts[1:] - 1]

    @property
    def owner(self) -> np.ndarray:
        """int64 [H]: the sample of each history entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def of(self, part: int) -> Samples:
        return self.choose(np.flatnonzero(self.part == part))

    def choose(self, chosen: np.ndarray) -> Samples:
        picked, _ = ranges(self.starts[chosen], self.starts[chosen + 1])
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64)
        return Samples(
            self.target[chosen], starts, self.rows[picked], self.past_from[chosen], self.past_to[chosen],
            self.part[chosen],
        )  # fmt: skip

    def chunks(self, size: int) -> Iterator[Samples]:
        """So many at a time, which bounds the memory."""
        for begin in range(0, len(self), size):
            yield self.choose(np.arange(begin, min(begin + size, len(self))))

    def among(self, kept: np.ndarray) -> Samples:
        """These samples on the visits that are kept (bool [N]), of users that keep all or none."""
        before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)  # [N + 1]: kept visits before each
        left = self.choose(np.flatnonzero(kept[self.target]))
        names = ("target", "rows", "past_from", "past_to")
        moved = {name: before[getattr(left, name)].astype(getattr(left, name).dtype) for name in names}
        return replace(left, **moved)

    def with_full_past(self, visits: Visits) -> Samples:
        """Everything the user did before the target may be used."""
        return replace(self, past_from=visits.bounds[visits.user[self.target]], past_to=self.target)


@dataclass(frozen=True)
class Known:
    """The visits that may be used for each sample: its past and its history, each visit once, oldest first."""

    owner: np.ndarray  # int64 [E] the sample
    row: np.ndarray  # int64 [E] the visit
    inside: np.ndarray  # bool [E] in the history of the sample

    def among(self, chosen: np.ndarray) -> Known:
        """These entries only (bool [E])."""
        return Known(self.owner[chosen], self.row[chosen], self.inside[chosen])

    def later(self, samples: int) -> np.ndarray:
        """int64 [E]: how many later visits are known for the sample."""
        end = np.searchsorted(self.owner, np.arange(samples), side="right")
        return end[self.owner] - 1 - np.arange(len(self.owner))


def known_visits(samples: Samples) -> Known:
    """Past and history of every sample."""
    past, past_owner = ranges(samples.past_from, samples.past_to)
    span = int(max(past.max(initial=0), samples.rows.max(initial=0))) + 1
    history = samples.owner * span + samples.rows
    keys = np.sort(np.concatenate([past_owner * span + past, history]), kind="stable")  # fast on two sorted runs
    keys = keys[np.append(keys[1:] != keys[:-1], True)[: len(keys)]]
    inside = np.zeros(len(keys), bool)
    inside[np.searchsorted(keys, history)] = True
    return Known(keys // span, keys % span, inside)


def history_only(samples: Samples) -> Known:
    return Known(samples.owner, samples.rows.astype(np.int64), np.ones(len(samples.rows), bool))


def divide(visits: Visits, recipe: Recipe) -> np.ndarray:
    """int8 [N]: the part of each visit; those of one moment of a user are in one part."""
    if abs(sum(recipe.fractions) - 1) > 1e-9 or min(recipe.fractions) < 0:
        raise BadInput(f"the shares of the parts {recipe.fractions} do not add up to 1")
    edges = np.round(np.cumsum(recipe.fractions)[:2], 12)  # 0.6 + 0.2 is 0.8, not 0.8000000000000001
    if recipe.by == "column":
        if visits.part is None:
            raise BadInput("the table has no split column; name one with --columns split=… or use another recipe")
        return visits.part
    bounds = visits.bounds
    first, cuts = bounds[:-1], edges[:, None]
    if recipe.by == "day":
        day = visits.day(local=recipe.calendar == "local")
        measure = day - day[first][visits.user]
        cuts = cuts * np.maximum.reduceat(measure, first)[visits.user]
    elif recipe.by == "time":
        again = (np.diff(visits.user, prepend=-1) == 0) & (np.diff(visits.start, prepend=-1) == 0)
        measure = np.maximum.accumulate(np.where(again, 0, np.arange(len(visits)))) - first[visits.user]
        cuts = np.floor(cuts * np.diff(bounds) + 1e-9)[:, visits.user]
    else:
        measure = np.array([_chance(str(name), recipe.seed) for name in visits.users])[visits.user]
    return (measure >= cuts).sum(0).astype(np.int8)


def _chance(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the user's name alone, not on who else is there."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64


def make_samples(visits: Visits, part: np.ndarray, recipe: Recipe) -> Samples:
    """All samples of all parts, in the order of the visits."""
    group = visits.user.astype(np.int64) * 4 + (np.maximum(part, 0) if recipe.same_part else 0)
    group = np.where(part == NO_PART, -1, group)
    order = np.argsort(group, kind="stable")  # inside a group the order of time stays
    high = np.empty(len(visits), np.int64)  # where each visit stands in this order
    high[order] = np.arange(len(visits))
    day = visits.day(local=recipe.calendar == "local")
    sorted_group = group[order]
    low = np.searchsorted(sorted_group, group)
    if recipe.days is not None:
        span = int(day.max() - day.min()) + recipe.days + 2 if len(day) else 1
        key = sorted_group * span + (day[order] - day.min())
        low = np.maximum(low, np.searchsorted(key, group * span + (day - day.min()) - recipe.days))
    if recipe.most is not None:
        low = np.maximum(low, high - recipe.most)
    wanted = (high - low >= recipe.least) & (part != NO_PART)
    if visits.target is not None and recipe.by in ("column", "day"):
        wanted &= visits.target
    wanted &= _late_enough(visits, part, day, recipe)
    if recipe.all_parts and recipe.by != "user":
        seen = np.zeros((len(visits.users), 3), bool)
        seen[visits.user[wanted], part[wanted]] = True
        wanted &= np.logical_and.reduce(seen, axis=1)[visits.user]
    target = np.flatnonzero(wanted)
    starts = np.concatenate([[0], np.cumsum(high[target] - low[target])]).astype(np.int64)
    rows = np.empty(int(starts[-1]), np.int32)
    for begin in range(0, len(target), CHUNK):
        some = target[begin : begin + CHUNK]
        rows[starts[begin] : starts[begin + len(some)]] = order[ranges(low[some], high[some])[0]]
    past_from = visits.bounds[visits.user[target]]
    past_to = np.minimum(train_end(visits, part)[visits.user[target]], target)
    return Samples(target, starts, rows, past_from, np.maximum(past_to, past_from), part[target])


def _late_enough(visits: Visits, part: np.ndarray, day: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Not in the first days of the user's part."""
    group = visits.user.astype(np.int64) * 4 + np.maximum(part, 0)
    first = np.full(len(visits.users) * 4 + 4, np.iinfo(np.int64).max)
    np.minimum.at(first, group, day)
    return day - first[group] >= recipe.skip_days


def train_end(visits: Visits, part: np.ndarray) -> np.ndarray:
    """int64 [users]: the row after the visits of a user's train part that precede every other part."""
    bounds = visits.bounds
    later = np.where(part != 0, np.arange(len(visits)), len(visits))
    first_later = np.full(len(visits.users), len(visits))
    np.minimum.at(first_later, visits.user, later)
    return np.minimum(first_later, bounds[1:])


def parts_without_samples(
    visits: Visits, part: np.ndarray, samples: Samples, recipe: Recipe | None
) -> dict[int, str]:
    """The empty parts, with why they are empty and which setting would change that; `recipe` None: a sample file.

    Where every user needs samples in all parts, one empty part empties the others: the cause comes first.
    """
    counts = np.bincount(samples.part, minlength=len(PARTS))
    empty = [number for number in range(len(PARTS)) if counts[number] == 0]
    if not empty:
        return {}
    had = ", ".join(f"{name} {int((part == number).sum()):,}" for number, name in enumerate(PARTS))
    if recipe is None:
        lines = ", ".join(f"{name} {count:,}" for name, count in zip(PARTS, counts, strict=True))
        return {number: f"the {PARTS[number]} part has no samples (samples: {lines})" for number in empty}
    alone = _numbers_of(visits, part, recipe.model_copy(update={"all_parts": False}))
    causes = [number for number in empty if alone[number] == 0]
    found = {}
    for number in [*causes, *(number for number in empty if number not in causes)]:
        text = f"the {PARTS[number]} part has no samples (visits: {had}): "
        if number in causes:
            found[number] = text + _why_empty(visits, part, number, recipe)
        elif causes:
            blocking = " and ".join(PARTS[cause] for cause in causes)
            hint = f"; {_RELAXED}" if causes == [2] else ""  # training needs the two others in any case
            found[number] = f"{text}every user needs samples in all parts, and there are none in {blocking}{hint}"
        else:
            found[number] = f"{text}no user has samples in all parts; {_RELAXED}"
    return found


_RELAXED = "--set data.recipe.all_parts=false asks for that no longer"


def _why_empty(visits: Visits, part: np.ndarray, number: int, recipe: Recipe) -> str:
    name = PARTS[number]
    if not (part == number).any():
        if recipe.by == "column":
            return f"no row of the split column says {name}"
        return f"there are too few {'users' if recipe.by == 'user' else 'visits'} for shares of {recipe.fractions}"
    loose: dict[str, object] = {"all_parts": False}
    for field, value, shown in (("skip_days", 0, "0"), ("least", 1, "1"), ("days", None, "0")):
        changed = recipe.model_copy(update=loose | {field: value})
        if getattr(recipe, field) != value and (count := _numbers_of(visits, part, changed)[number]):
            return f"--set data.recipe.{field}={shown} would give {count:,} (it is {getattr(recipe, field)})"
    loose |= {"skip_days": 0, "least": 1, "days": None}
    if count := _numbers_of(visits, part, recipe.model_copy(update=loose))[number]:
        return f"skip_days=0, least=1 and days=0 of data.recipe together would give {count:,}"
    return "no visit there has an earlier one of the same user in the same part to be told from"


def _numbers_of(visits: Visits, part: np.ndarray, recipe: Recipe) -> np.ndarray:
    return np.bincount(make_samples(visits, part, recipe).part, minlength=len(PARTS))


def fingerprint(visits: Visits, recipe: Recipe, samples: Samples) -> str:
    """A short hash of the visits, of the recipe and of the samples that it gave."""
    digest = hashlib.sha256(visits.fingerprint().encode() + recipe.model_dump_json().encode())
    for column in (samples.target, samples.starts, samples.past_from, samples.past_to):
        digest.update(np.ascontiguousarray(column, np.int64).data)
    digest.update(np.ascontiguousarray(samples.rows, np.int32).data)
    digest.update(np.ascontiguousarray(samples.part, np.int8).data)
    return digest.hexdigest()[:16]


def leaks(visits: Visits, samples: Samples, part: np.ndarray | None = None) -> list[str]:
    """Ways in which a sample could know its answer, or a part could know another; none for an honest split."""
    target = samples.target
    number = np.zeros(len(_HISTORY_LEAKS), np.int64)
    for some in samples.chunks(CHUNK):
        number += _history_leaks(visits, some)
    found = [f"leak: {count} {name}" for count, name in zip(number, _HISTORY_LEAKS, strict=True) if count]
    if (beyond := int((samples.past_to > target).sum())) > 0:
        found.append(f"leak: {beyond} pasts that reach beyond their target")
    both = np.intersect1d(target[samples.part == 0], target[samples.part > 0])
    if len(both):
        found.append(f"leak: {len(both)} visits are targets of the train part and of another")
    late = np.zeros(0, bool) if part is None else _late_training(visits, part)
    if late.any():
        users = len(np.unique(visits.user[late]))
        found.append(
            f"leak: {counted(int(late.sum()), 'train visit')} of {counted(users, 'user')} not earlier than the "
            "first visit of another part; the model learns from the future of what it is asked"
        )
    return found


_HISTORY_LEAKS = (
    "histories that hold their own target",
    "histories with visits that begin after their target",
    "histories of another user",
)


def _history_leaks(visits: Visits, samples: Samples) -> np.ndarray:
    """How many of these samples have each fault."""
    row, of = samples.rows, samples.target[samples.owner]
    faults = (row == of, visits.start[row] > visits.start[of], visits.user[row] != visits.user[of])
    return np.array([len(np.unique(samples.owner[fault])) for fault in faults])


def _late_training(visits: Visits, part: np.ndarray) -> np.ndarray:
    """bool [N]: train visits that are not earlier than the user's first visit of another part."""
    first_later = np.full(len(visits.users), np.iinfo(np.int64).max)
    np.minimum.at(first_later, visits.user[part > 0], visits.start[part > 0])
    return (part == 0) & (visits.start >= first_later[visits.user])
