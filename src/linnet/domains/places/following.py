"""Following people: what a run predicts for a user after each visit, without any training.

A follower keeps the visits of each user in arrays, so that a prediction costs one row. New users and new places
need nothing: a new place can be predicted from its first visit on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from linnet.domains.places.batches import pad
from linnet.domains.places.codec import FIRST, Name, PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.places.features import Lookup, Suggestions, VisitRows
from linnet.domains.places.sample_files import kind_of, read_id
from linnet.domains.places.samples import Samples
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.visits import Visits
from linnet.errors import BadInput
from linnet.model.contract import Network
from linnet.records import Candidate
from linnet.workbench.open import Opened

ROOM = 64  # visits that a new user's arrays hold; they double when they are full


@dataclass
class Followed:
    """One user's visits: the first `count` entries of each array."""

    name: int | str
    user: int  # id of the codec
    count: int = 0
    place: np.ndarray = field(default_factory=lambda: np.zeros(ROOM, np.int32))
    start: np.ndarray = field(default_factory=lambda: np.zeros(ROOM, np.int64))
    end: np.ndarray = field(default_factory=lambda: np.zeros(ROOM, np.int64))

    def add(self, place: int, start: int, end: int) -> None:
        if self.count + 1 == len(self.place):  # one entry stays free for the visit to come
            self.place, self.start, self.end = (
                np.resize(c, 2 * len(c)) for c in (self.place, self.start, self.end)
            )
        self.place[self.count], self.start[self.count], self.end[self.count] = place, start, end
        self.count += 1

    def visits(self, places: np.ndarray) -> Visits:
        """The user's own table; its last row is a stand-in for the visit to come."""
        rows, last = self.count + 1, self.count - 1
        self.place[self.count], self.start[self.count], self.end[self.count] = (
            self.place[last], self.end[last], self.end[last],
        )  # fmt: skip
        nothing = np.zeros(rows, np.int32)
        columns = self.place[:rows], self.start[:rows], self.end[:rows]
        return Visits(nothing, *columns, nothing, np.arange(rows), np.array([self.name], object), places)


class Follower:
    """`visit` takes what happened, `next` predicts what comes: the same as `linnet predict` for the same visits.

    `suggestions` places of each kind where the user has never been are weighed, as the run was trained to do, and
    the `longest` latest visits count: `Follower.of` takes both from the run.
    """

    def __init__(self, network: Network, codec: PlacesCodec, *, suggestions: int = 0, longest: int = 4096) -> None:
        if not isinstance(network, Scorer):
            raise BadInput(
                "a follower needs the scorer (the recipes places and places-ensemble), and this run has another "
                "network: use linnet predict"
            )
        self.network, self.codec, self.longest = network.eval(), codec, longest
        self.suggestions = suggestions
        self._place_kind, self._user_kind = kind_of(codec.places), kind_of(codec.users)
        self._users = {name: number + FIRST for number, name in enumerate(codec.users) if name is not None}
        self._numbers = {name: number for number, name in enumerate(codec.places) if name is not None}
        self._names: list[Name] = list(codec.places)
        self._ids = codec.place_ids(np.array([*codec.places, None], object)[:-1])
        self._trees = [codec.tree(level) for level in codec.levels]
        self._suggested = Suggestions.of(codec, suggestions, self._ids)
        self._followed: dict[int | str, Followed] = {}

    @classmethod
    def of(cls, opened: Opened) -> Follower:
        """A follower with what the run knows and weighs."""
        data, codec = opened.run.data, opened.codec
        if not isinstance(data, PlacesData) or not isinstance(codec, PlacesCodec):
            raise BadInput(f"this is a run on {data.domain}, and only runs on places name next places")
        return cls(opened.network, codec, suggestions=data.suggestions, longest=data.longest)

    def visit(self, user: int | str, place: int | str, start: int, end: int | None = None) -> None:
        """A stay from `start` to `end` (seconds on the user's local clock); a check-in has no end."""
        user, place = read_id("the user", user, self._user_kind), read_id("the place", place, self._place_kind)
        end = start if end is None else end
        if end < start:
            raise BadInput(f"the visit of {user!r} ends before it begins")
        who = self._followed.setdefault(user, Followed(user, self._users.get(user, 1)))
        if who.count and start < who.start[who.count - 1]:
            raise BadInput(f"the visit of {user!r} begins before the visit before it")
        if place not in self._numbers:
            self._numbers[place] = len(self._names)
            self._names.append(place)
            self._ids = np.append(self._ids, 1)
        who.add(self._numbers[place], start, end)

    def next(self, user: int | str, k: int = 10) -> tuple[Candidate, ...]:
        """The k most probable next places: where the user has been, and what is suggested."""
        if k < 1:
            raise BadInput(f"k is {k}; it must be at least 1")
        user = read_id("the user", user, self._user_kind)
        who = self._followed.get(user)
        if who is None:
            raise BadInput(f"nothing is known about user {user!r} yet; give a visit first")
        with torch.inference_mode():
            scored = self.network.predict(pad(self.rows(who).gather(np.zeros(1, np.int64))))
        top = torch.topk(scored.logp, min(k, len(scored.logp)))
        names = [self._names[number] for number in scored.options.place[top.indices].tolist()]
        return tuple(
            Candidate(value=name, probability=float(share))
            for name, share in zip(names, top.values.exp().tolist(), strict=True)
        )

    def rows(self, who: Followed) -> VisitRows:
        """What the network reads: one row, made as those of training and of `predict` are."""
        cells = tuple(tree[self._ids] for tree in self._trees)
        lookup = Lookup(self._ids, np.array([who.user]), cells, self._suggested)
        zero = np.zeros(1, np.int64)
        first, rows = max(0, who.count - self.longest), np.arange(who.count, dtype=np.int32)
        samples = Samples(
            zero + who.count, np.array([0, who.count - first]), rows[first:], zero, zero, np.full(1, 2, np.int8)
        )
        places = np.empty(len(self._ids), np.int8)  # the names themselves are not read
        visits = who.visits(places)
        return VisitRows(visits, samples, self.codec, True, self.longest, self.suggestions, known_ids=lookup)
