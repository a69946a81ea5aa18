"""Samples as rows of visits: what a model of the next place reads, gathered when a batch is made.

A row holds the known visits of one sample, oldest first, so that its last visit is where the user is now; before
them stand suggestions, known places that the user has never been to. Rows are gathered from the visit table when
they are needed: a million visits are not copied.

Training rows can be cut as the published parts are: everything after a random day of the train part but the
history is hidden, and places that nobody had visited by then count as unseen. So a model learns on what it will
meet: an old past, a fresh week, and unknown places.
Legend: N = visits, P = places of the table, n = rows, E = visits and suggestions of all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.counters import Known, history_only, known_visits
from linnet.domains.places.samples import Samples
from linnet.domains.places.visits import DAY, MINUTE, Visits

PAST, RECENT, SUGGESTION = 0, 1, 2  # kinds of entries of a row
RECENT_DAYS = 7  # before the day of the last departure; the day of the target would be news from the future
ALWAYS = 1e9
LONGEST_STAY = 2879 * MINUTE


@dataclass(frozen=True)
class Gathered:
    """Entries of some rows, end to end. Targets are one a row."""

    starts: np.ndarray  # int64 [n + 1]
    ids: np.ndarray  # int64 [E] known ids
    fields: Mapping[str, np.ndarray]  # int64 [E] each
    target: np.ndarray  # int64 [n] known id of the next place
    next: Mapping[str, np.ndarray]  # int64 [n] each: place, known, cells of the next place


@dataclass(frozen=True)
class Cut:
    """How training rows are cut: at a share of the row's day, drawn from `lowest` to 1.

    Places that nobody had visited by then count as unseen. The visits between then and the history are hidden,
    unless predictions will know everything earlier (`hides` = False).
    """

    lowest: float = 0.6
    hides: bool = True
    day: np.ndarray | None = None  # float64 [N] days since the user's first
    span: np.ndarray | None = None  # float64 [N] days of the user's train part
    first_seen: np.ndarray | None = (
        None  # float64 [P] when anybody first came here, as a share of their train days
    )

    @classmethod
    def of(cls, visits: Visits, part: np.ndarray, lowest: float, *, hides: bool = True) -> Cut:
        day = visits.day(local=False)
        since = (day - day[visits.bounds[:-1]][visits.user]).astype(np.float64)
        span = np.zeros(len(visits.users))
        train = part == 0
        np.maximum.at(span, visits.user[train], since[train])
        span = np.maximum(span + 1, 1)[visits.user]
        seen = np.full(len(visits.places), ALWAYS)
        np.minimum.at(seen, visits.place[train], (since / span)[train])
        return cls(lowest, hides, since, span, seen)


@dataclass(frozen=True)
class Augmentation:
    """How training rows differ from epoch to epoch, beside their cuts."""

    jitter: float = 0.0  # minutes (a standard deviation) by which the known visits move
    subsequences: float = 0.0  # share of the rows that keep a drawn number of the latest visits of their history

    def keep_latest(self, known: Known, rows: int, rng: np.random.Generator) -> Known:
        """Hide the older visits of the histories of some rows; at least the last one stays."""
        end = np.searchsorted(known.owner, np.arange(rows), side="right")
        since = end[known.owner] - 1 - np.arange(len(known.owner))
        length = np.bincount(known.owner, known.inside, rows).astype(np.int64)
        kept = 1 + (rng.random(rows) * length).astype(np.int64)
        kept = np.where(rng.random(rows) < self.subsequences, kept, length)
        return _subset(known, ~known.inside | (since < kept[known.owner]))

    def moved(self, row: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [E] seconds: the entries of one visit of a row move together."""
        by = np.rint(rng.normal(0, self.jitter * MINUTE, len(row))).astype(np.int64)
        key = owner * (int(row.max(initial=0)) + 1) + row
        _, first, entry = np.unique(key, return_index=True, return_inverse=True)
        return by[first][entry.ravel()]


@dataclass(frozen=True)
class Lookup:
    """Ids of the codec by number of the table, and what is suggested from it."""

    place: np.ndarray  # int64 [P]
    user: np.ndarray  # int64 [U]
    cells: tuple[np.ndarray, ...]  # int64 [P] each: of the cells of places, coarse to fine
    suggested: Suggestions

    @classmethod
    def of(cls, codec: PlacesCodec, visits: Visits, suggestions: int) -> Lookup:
        place, nowhere = codec.place_ids(visits.places), np.zeros(len(visits.places), np.uint64)
        cells = tuple(codec.cell_ids(level, visits.cells.get(level, nowhere)) for level in codec.levels)
        return cls(place, codec.user_ids(visits.users), cells, Suggestions.of(codec, suggestions, place))


@dataclass(frozen=True)
class VisitRows:
    """Rows of samples over a visit table. Without `past`: the published form, places and cells of the history."""

    visits: Visits
    samples: Samples
    codec: PlacesCodec
    past: bool = True
    longest: int = 4096  # latest visits that a row may hold
    suggestions: int = 0  # of each kind: popular, followers of the current place, popular close by
    cut: Cut | None = None
    augmentation: Augmentation = Augmentation()
    known_ids: Lookup | None = None  # where it is at hand already

    characters: int = 0  # there is no text to count
    utf8_bytes: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, chosen: np.ndarray) -> VisitRows:
        """Only the rows of these samples."""
        return replace(self, samples=self.samples.choose(chosen))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Entries of each row and one for its target; an upper bound where rows are cut."""
        known = self.samples.lengths
        if self.past:
            known = known + np.maximum(self.samples.past_to - self.samples.past_from, 0)
        return np.minimum(known, self.longest) + 3 * self.suggestions + 1

    @property
    def targets(self) -> int:
        return len(self)

    @property
    def steps(self) -> int:
        """Entries of all rows, and one of each for its target."""
        return int(self.lengths.sum())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.visits.fingerprint().encode())
        for column in (self.samples.target, self.samples.starts, self.samples.rows):
            digest.update(np.ascontiguousarray(column, np.int64).data)
        return digest.hexdigest()[:16]

    @cached_property
    def lookup(self) -> Lookup:
        return self.known_ids or Lookup.of(self.codec, self.visits, self.suggestions)

    @cached_property
    def _times(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [N] each: start and departure on the local clock; once, so that a batch costs its own rows."""
        return self.visits.clock(), departures(self.visits)

    def gather(self, chosen: np.ndarray, rng: np.random.Generator | None = None) -> Gathered:
        """The entries of these rows; `rng` draws the cuts of training."""
        some, visits, ids = self.samples.choose(chosen), self.visits, self.lookup
        known = known_visits(some) if self.past else history_only(some)
        unseen_before = np.full(len(some), ALWAYS)
        if self.cut is not None and rng is not None:
            known, unseen_before = self._cut(some, known, self.cut, rng)
        if rng is not None and self.augmentation.subsequences:
            known = self.augmentation.keep_latest(known, len(some), rng)
        known = _latest(known, len(some), self.longest)
        last, target = some.last, some.target
        owner, place = known.owner, visits.place[known.row].astype(np.int64)
        row = known.row
        start, leave = self._times
        kind = is_recent(start[row], leave[last][owner])
        if self.suggestions:
            extra_owner, extra = ids.suggested.for_rows(ids, visits, owner, place, last)
            user = ids.user[visits.user[target]][extra_owner]
            # A place that nobody else knows would come from the user's own future.
            elsewhere = self.codec.others.visited(user, ids.place[extra]) > 0
            extra_owner, extra = extra_owner[elsewhere], extra[elsewhere]
            owner, place = np.concatenate([extra_owner, owner]), np.concatenate([extra, place])
            kind = np.concatenate([np.full(len(extra), SUGGESTION), kind])
            row = np.concatenate([last[extra_owner], row])
            order = np.argsort(owner, kind="stable")
            owner, place, kind, row = owner[order], place[order], kind[order], row[order]
        fields = self._fields(some, owner, place)
        if self.past:
            fields |= self._evidence(some, owner, place, kind, row)
            if rng is not None and self.augmentation.jitter:
                by = self.augmentation.moved(row, owner, rng)
                fields |= {name: fields[name] + by for name in ("start", "leave")}
            fields["known"] = self._known(place, unseen_before[owner])
        starts = np.searchsorted(owner, np.arange(len(some) + 1)).astype(np.int64)
        next_place = visits.place[target].astype(np.int64)
        following = {"place": next_place, "known": self._known(next_place, unseen_before)}
        following |= self._cells(next_place)
        return Gathered(starts, ids.place[place], fields, ids.place[next_place], following)

    def _fields(self, some: Samples, owner: np.ndarray, place: np.ndarray) -> dict[str, np.ndarray]:
        return {"user": self.lookup.user[self.visits.user[some.target]][owner]} | self._cells(place)

    def _cells(self, place: np.ndarray) -> dict[str, np.ndarray]:
        return {f"cell{number}": cells[place] for number, cells in enumerate(self.lookup.cells)}

    def _evidence(
        self, some: Samples, owner: np.ndarray, place: np.ndarray, kind: np.ndarray, row: np.ndarray
    ) -> dict[str, np.ndarray]:
        visits, ids, others = self.visits, self.lookup, self.codec.others
        start, leave = (times[row] for times in self._times)
        users, here = ids.user[visits.user[some.target]], ids.place[visits.place[some.last]]
        user, known = users[owner], ids.place[place]
        follows = np.zeros(len(row), np.int64)
        follows[1:] = (row[1:] == row[:-1] + 1) & (owner[1:] == owner[:-1])
        follows &= kind != SUGGESTION
        return {
            "place": place, "start": start, "leave": leave, "kind": kind, "follows": follows,
            "moved": others.moved(user, here[owner], known),
            "left": others.left(users, here)[owner], "visited": others.visited(user, known),
        }  # fmt: skip

    def _known(self, place: np.ndarray, before: np.ndarray) -> np.ndarray:
        """1 for places that the train part, or its cut, had seen."""
        known = self.lookup.place[place] >= FIRST
        if self.cut is not None and self.cut.first_seen is not None:
            known = known & (self.cut.first_seen[place] < before)
        return known.astype(np.int64)

    def _cut(self, some: Samples, known: Known, cut: Cut, rng: np.random.Generator) -> tuple[Known, np.ndarray]:
        """Hide what lies between a drawn day and the history."""
        assert cut.day is not None and cut.span is not None
        until = cut.day[some.target] * rng.uniform(cut.lowest, 1.0, len(some))
        visible = known.inside | (cut.day[known.row] < until[known.owner])
        return _subset(known, visible) if cut.hides else known, until / cut.span[some.target]


def departures(visits: Visits) -> np.ndarray:
    """int64 [N]: end of each stay on the local clock, in seconds; stays count two days at most."""
    return visits.clock() + np.minimum(visits.end - visits.start, LONGEST_STAY)


def is_recent(start: np.ndarray, now: np.ndarray) -> np.ndarray:
    """RECENT or PAST for visits that began then, on the clock of the departure."""
    return np.where(now // DAY - start // DAY <= RECENT_DAYS, RECENT, PAST)


def _subset(known: Known, chosen: np.ndarray) -> Known:
    return Known(known.owner[chosen], known.row[chosen], known.inside[chosen])


def _latest(known: Known, rows: int, longest: int) -> Known:
    end = np.searchsorted(known.owner, np.arange(rows), side="right")
    return _subset(known, end[known.owner] - np.arange(len(known.owner)) <= longest)


@dataclass(frozen=True)
class Suggestions:
    """Known places that are worth a thought although the user never went there; 0 fills short lists."""

    popular: np.ndarray  # int64 [M] known ids
    followers: np.ndarray  # int64 [V, M] by the current place
    close: np.ndarray  # int64 [cells, M] by the coarsest cell of the current place
    table_place: np.ndarray  # int64 [V]: place number in the visit table, -1 = not in it

    @classmethod
    def of(cls, codec: PlacesCodec, most: int, place_ids: np.ndarray) -> Suggestions:
        size, others = len(codec.places) + FIRST, codec.others
        table_place = np.full(size, -1)
        table_place[place_ids] = np.arange(len(place_ids))
        table_place[:FIRST] = -1
        order = np.argsort(-others.stays, kind="stable")
        keys, times = others.moves
        followers = _top(keys // size, keys % size, times, size, most)
        if codec.levels:
            cell = codec.tree(codec.levels[0])
            close = _top(cell, np.arange(size), others.stays, int(cell.max()) + 1, most)
        else:
            close = np.zeros((1, most), np.int64)
        return cls(order[:most], followers, close, table_place)

    def for_rows(
        self, ids: Lookup, visits: Visits, owner: np.ndarray, place: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """(row, place of the table) of every suggestion: a known place that is not among the row's visits."""
        here = visits.place[last]
        lists = [np.broadcast_to(self.popular, (len(last), len(self.popular))), self.followers[ids.place[here]]]
        if ids.cells:
            lists.append(self.close[np.minimum(ids.cells[0][here], len(self.close) - 1)])
        wanted = self.table_place[np.concatenate(lists, 1)]
        row = np.broadcast_to(np.arange(len(last))[:, None], wanted.shape)
        span = len(visits.places) + 1
        keys = np.unique((row * span + wanted)[wanted >= 0])
        return _not_in(keys, np.unique(owner * span + place), span)


def _not_in(keys: np.ndarray, known: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
    fresh = keys[~np.isin(keys, known, assume_unique=True)]
    return fresh // span, fresh % span


def _top(group: np.ndarray, member: np.ndarray, weight: np.ndarray, groups: int, most: int) -> np.ndarray:
    """[groups, most]: the members of most weight of each group, 0 where there are fewer."""
    useful = (weight > 0) & (member >= FIRST)
    group, member, weight = group[useful], member[useful], weight[useful]
    order = np.lexsort((member, -weight, group))
    group, member = group[order], member[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    table = np.zeros((groups, most), np.int64)
    kept = rank < most
    table[group[kept], rank[kept]] = member[kept]
    return table
