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

from linnet.domains.places.codec import FIRST, OthersTable, PlacesCodec
from linnet.domains.places.samples import Known, Samples, history_only, known_visits
from linnet.domains.places.visits import DAY, LONGEST, MINUTE, Visits

PAST, RECENT, SUGGESTION = 0, 1, 2  # kinds of entries of a row
RECENT_DAYS = 7  # before the day of the last departure; the day of the target would be news from the future
ALWAYS = 1e9
SEEN = (  # features of an entry: days, entries, minutes, or 1 where something holds
    "age", "rank", "apart", "arriving", "weekday", "weekkind", "here", "two", "near", "stay", "before", "follows",
)  # fmt: skip


@dataclass(frozen=True)
class Gathered:
    """Entries of some rows, end to end."""

    starts: np.ndarray  # int64 [n + 1]
    columns: Mapping[str, np.ndarray]  # int64 [E] each, and `seen`, float32 [E, len(SEEN)]
    rows: Mapping[str, np.ndarray]  # int64 [n] each: the user, the departure, and what comes next
    start: np.ndarray  # int64 [E] seconds on the local clock; entries of suggestions are now
    leave: np.ndarray  # int64 [E]


def seen_from_departure(
    starts: np.ndarray,
    start: np.ndarray,
    leave: np.ndarray,
    label: np.ndarray,
    cell: np.ndarray,
    follows: np.ndarray,
) -> np.ndarray:
    """float32 [E, len(SEEN)]: entries, as seen when the user leaves the last one of their row.

    This is the one definition of the features of a visit: every network, the boosted ranker and the following of
    live users read it. `follows` marks entries whose predecessor is the visit before them.
    """
    last, owner = starts[1:] - 1, np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    now, stay = leave[last][owner], (leave - start).astype(np.float32) / np.float32(MINUTE)
    led = np.where(follows, np.roll(leave, 1), start)  # the departure that led to the visit
    day, led_day = (now // DAY + 3) % 7, (led // DAY + 3) % 7  # 0 = Monday
    here = follows & (np.roll(label, 1) == label[last][owner])
    columns = {
        "age": np.maximum(now - start, 0).astype(np.float32) / np.float32(DAY),
        "rank": last[owner] - np.arange(len(owner)),
        "apart": _around_the_clock(now - led),
        "arriving": _around_the_clock(now - start),
        "weekday": day == led_day,
        "weekkind": (day >= 5) == (led_day >= 5),
        "here": here,
        "two": here & np.roll(follows, 1) & (np.roll(label, 2) == label[np.maximum(last - 1, 0)][owner]),
        "near": follows & (np.roll(cell, 1) == cell[last][owner]),
        "stay": stay,
        "before": np.where(follows, np.roll(stay, 1), stay),
        "follows": follows,
    }
    return np.stack([columns[name].astype(np.float32) for name in SEEN], 1)


def consecutive(owner: np.ndarray, row: np.ndarray) -> np.ndarray:
    """bool [E]: entries whose predecessor is the visit just before them, of the same row."""
    return np.concatenate([[False], (row[1:] == row[:-1] + 1) & (owner[1:] == owner[:-1])])[: len(row)]


def _around_the_clock(seconds: np.ndarray) -> np.ndarray:
    """float32: minutes between two times of the day, 0 to 720."""
    minutes = (seconds % DAY).astype(np.float32) / np.float32(MINUTE)
    return np.minimum(minutes, 1440 - minutes)


@dataclass(frozen=True)
class Cut:
    """How training rows are cut: at a share of the row's day, drawn from `lowest` to 1.

    Places that nobody had visited by then count as unseen. The visits between then and the history are hidden,
    unless predictions will know everything earlier (`hides` = False).
    """

    lowest: float
    hides: bool
    day: np.ndarray  # float64 [N] days since the user's first
    span: np.ndarray  # float64 [N] days of the user's train part
    first_seen: np.ndarray  # float64 [P] when anybody first came here, as a share of their train days

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
        length = np.bincount(known.owner, known.inside, rows).astype(np.int64)
        kept = 1 + (rng.random(rows) * length).astype(np.int64)
        kept = np.where(rng.random(rows) < self.subsequences, kept, length)
        return known.among(~known.inside | (known.later(rows) < kept[known.owner]))

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
    held: Samples | None = None  # of the validation part, where these are others
    task: str = ""  # what is predicted from what, for people

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
        known = known.among(known.later(len(some)) < self.longest)
        last, target = some.last, some.target
        owner, place = known.owner, visits.place[known.row].astype(np.int64)
        row = known.row
        start, leave = self._times
        kind = np.where(leave[last][owner] // DAY - start[row] // DAY <= RECENT_DAYS, RECENT, PAST)
        if self.suggestions:
            extra_owner, extra = ids.suggested.for_rows(ids, visits, owner, place, last)
            owner, place = np.concatenate([extra_owner, owner]), np.concatenate([extra, place])
            kind = np.concatenate([np.full(len(extra), SUGGESTION), kind])
            row = np.concatenate([last[extra_owner], row])
            order = np.argsort(owner, kind="stable")
            owner, place, kind, row = owner[order], place[order], kind[order], row[order]
        starts = np.searchsorted(owner, np.arange(len(some) + 1)).astype(np.int64)
        start, leave = start[row], leave[row]
        if rng is not None and self.augmentation.jitter:
            by = self.augmentation.moved(row, owner, rng)
            start, leave = start + by, leave + by
        columns = {"ids": ids.place[place]} | self._cells(place)
        if self.past:
            columns |= {"place": place, "kind": kind, "known": self._known(place, unseen_before[owner])}
            columns |= self._of_others(some, owner, columns["ids"])
            cell, follows = columns.get("cell1", place), consecutive(owner, row) & (kind != SUGGESTION)
            columns["seen"] = seen_from_departure(starts, start, leave, place, cell, follows)
        going = visits.place[target].astype(np.int64)
        following = {"ids": ids.place[going], "place": going, "known": self._known(going, unseen_before)}
        per_row = {"user": ids.user[visits.user[target]], "now": leave[starts[1:] - 1]}
        per_row |= {f"next.{name}": values for name, values in (following | self._cells(going)).items()}
        return Gathered(starts, columns, per_row, start, leave)

    def _cells(self, place: np.ndarray) -> dict[str, np.ndarray]:
        return {f"cell{number}": cells[place] for number, cells in enumerate(self.lookup.cells)}

    def _of_others(self, some: Samples, owner: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
        """Other people's moves from where the user is now, and their visits."""
        others, ids, visits = self.codec.others, self.lookup, self.visits
        users, here = ids.user[visits.user[some.target]], ids.place[visits.place[some.last]]
        return {
            "moved": others.moved(users[owner], here[owner], known), "left": others.left(users, here)[owner],
            "visited": others.visited(users[owner], known),
        }  # fmt: skip

    def _known(self, place: np.ndarray, before: np.ndarray) -> np.ndarray:
        """1 for places that the train part, or its cut, had seen."""
        known = self.lookup.place[place] >= FIRST
        if self.cut is not None:
            known = known & (self.cut.first_seen[place] < before)
        return known.astype(np.int64)

    def _cut(self, some: Samples, known: Known, cut: Cut, rng: np.random.Generator) -> tuple[Known, np.ndarray]:
        """Hide what lies between a drawn day and the history."""
        until = cut.day[some.target] * rng.uniform(cut.lowest, 1.0, len(some))
        visible = known.inside | (cut.day[known.row] < until[known.owner])
        return known.among(visible) if cut.hides else known, until / cut.span[some.target]


def departures(visits: Visits) -> np.ndarray:
    """int64 [N]: end of each stay on the local clock, in seconds; stays count two days at most."""
    return visits.clock() + np.minimum(visits.end - visits.start, LONGEST * MINUTE)


@dataclass(frozen=True)
class TopMembers:
    """The members of most weight of each group, 0 where there are fewer, and the weight that a member needs."""

    members: np.ndarray  # int64 [groups, M]
    least: np.ndarray  # int64 [groups]: the weight of the last member, or 1 where there is room

    @classmethod
    def of(cls, group: np.ndarray, member: np.ndarray, weight: np.ndarray, groups: int, most: int) -> TopMembers:
        useful = (weight > 0) & (member >= FIRST)
        group, member, weight = group[useful], member[useful], weight[useful]
        order = np.lexsort((member, -weight, group))
        group, member, weight = group[order], member[order], weight[order]
        rank = np.arange(len(group)) - np.searchsorted(group, group)
        table, least = np.zeros((groups, most), np.int64), np.ones(groups, np.int64)
        kept, last = rank < most, rank == most - 1
        table[group[kept], rank[kept]] = member[kept]
        least[group[last]] = weight[last]
        return cls(table, least)


@dataclass(frozen=True)
class Suggestions:
    """Known places that are worth a thought although the user never went there.

    A place is on a list by the counts of other people alone: the user's own are those of the answers of training.
    """

    popular: TopMembers  # of one group
    followers: TopMembers  # by the current place
    close: TopMembers  # by the coarsest cell of the current place
    table_place: np.ndarray  # int64 [V]: place number in the visit table, -1 = not in it
    others: OthersTable

    @classmethod
    def of(cls, codec: PlacesCodec, most: int, place_ids: np.ndarray) -> Suggestions:
        size, others = len(codec.places) + FIRST, codec.others
        table_place = np.full(size, -1)
        table_place[place_ids] = np.arange(len(place_ids))
        table_place[:FIRST] = -1
        keys, times = others.moves
        ids, everywhere = np.arange(size), np.zeros(size, np.int64)
        cell = codec.tree(codec.levels[0]) if codec.levels else everywhere
        return cls(
            TopMembers.of(everywhere, ids, others.stays, 1, most),
            TopMembers.of(keys // size, keys % size, times, size, most),
            TopMembers.of(cell, ids, others.stays, int(cell.max(initial=0)) + 1, most),
            table_place,
            others,
        )

    def for_rows(
        self, ids: Lookup, visits: Visits, owner: np.ndarray, place: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """(row, place of the table) of every suggestion: a known place that is not among the row's visits."""
        user, here = ids.user[visits.user[last]][:, None], ids.place[visits.place[last]]
        tables, lists = [(self.popular, np.zeros(len(last), np.int64)), (self.followers, here)], []
        if ids.cells:
            tables.append((self.close, np.minimum(ids.cells[0][visits.place[last]], len(self.close.least) - 1)))
        for table, group in tables:
            wanted = table.members[group]
            who = np.broadcast_to(user, wanted.shape).ravel()
            if table is self.followers:
                count = self.others.moved(who, np.repeat(here, wanted.shape[1]), wanted.ravel())
            else:
                count = self.others.visited(who, wanted.ravel())
            lists.append(np.where(count.reshape(wanted.shape) >= table.least[group][:, None], wanted, 0))
        wanted = self.table_place[np.concatenate(lists, 1)]
        row = np.broadcast_to(np.arange(len(last))[:, None], wanted.shape)
        span = len(visits.places) + 1
        keys = np.unique((row * span + wanted)[wanted >= 0])
        fresh = keys[~np.isin(keys, np.unique(owner * span + place), assume_unique=True)]
        return fresh // span, fresh % span
