"""Following people: what a run says about the next place of a user, after each visit, without any training.

A follower keeps the visits of each user in arrays, so that a prediction costs one row. New users and new places
need nothing: a new place can be predicted from its first visit on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from linnet.domains.places.codec import FIRST, Name, PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.places.features import LONGEST_STAY
from linnet.domains.places.histories import kind_of
from linnet.domains.places.rows import SUGGESTION, Suggestions, is_recent
from linnet.domains.places.told import read_id
from linnet.errors import BadInput
from linnet.model.inputs import Inputs
from linnet.model.places.scorer import Scorer
from linnet.records import Candidate
from linnet.training.networks import Network
from linnet.workbench.opening import Opened

ROOM = 64  # visits that a new user's arrays hold; they double when they are full


@dataclass
class Followed:
    """One user's visits, the first `count` entries of each array."""

    user: int
    count: int = 0
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, **values: int) -> None:
        if not self.columns:
            self.columns = {name: np.zeros(ROOM, np.int64) for name in values}
        if self.count == len(next(iter(self.columns.values()))):
            self.columns = {name: np.concatenate([old, np.zeros_like(old)]) for name, old in self.columns.items()}
        for name, value in values.items():
            self.columns[name][self.count] = value
        self.count += 1

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name][: self.count]


class Follower:
    """`visit` tells it what happened, `next` asks it what comes: what `linnet predict` says of the same visits.

    `suggestions` places of each kind where the user has never been are weighed, as the run was trained to do, and
    the `longest` latest visits count: `Follower.of` takes both from the run.
    """

    def __init__(self, network: Network, codec: PlacesCodec, *, suggestions: int = 0, longest: int = 4096) -> None:
        if not isinstance(network, Scorer):
            raise BadInput(
                "a follower needs the scorer (the recipes places and places-ensemble), and this run has another "
                "network: ask it with linnet predict"
            )
        self.network, self.codec, self.longest = network.eval(), codec, longest
        self._place_kind, self._user_kind = kind_of(codec.places), kind_of(codec.users)
        self._places = {name: number + FIRST for number, name in enumerate(codec.places) if name is not None}
        self._users = {name: number + FIRST for number, name in enumerate(codec.users) if name is not None}
        self._trees = [codec.tree(level) for level in codec.levels]
        self._new: dict[int | str, int] = {}  # places that training did not see, by name
        self._followed: dict[int | str, Followed] = {}
        self._names: list[Name] = ["", "", *codec.places]
        named = [name is not None for name in codec.places]
        ids = np.where(np.concatenate([[False] * FIRST, named]), np.arange(len(self._names)), 1)
        self._suggested = Suggestions.of(codec, suggestions, ids) if suggestions else None

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
        who = self._followed.setdefault(user, Followed(self._users.get(user, 1)))
        if who.count and start < who["start"][-1]:
            raise BadInput(f"the visit of {user!r} begins before the one that was told before it")
        known = self._places.get(place, 1)
        label = known if known >= FIRST else self._label(place)
        cells = {f"cell{n}": int(tree[known]) for n, tree in enumerate(self._trees)}
        who.add(place=label, ids=known, start=start, leave=start + min(end - start, LONGEST_STAY), **cells)

    def _label(self, place: int | str) -> int:
        if place not in self._new:
            self._new[place] = len(self._names)
            self._names.append(place)
        return self._new[place]

    def next(self, user: int | str, k: int = 10) -> tuple[Candidate, ...]:
        """The k most probable next places: where the user has been, and what is suggested."""
        if k < 1:
            raise BadInput(f"k is {k}; at least one place must be asked for")
        user = read_id("the user", user, self._user_kind)
        who = self._followed.get(user)
        if who is None:
            raise BadInput(f"nothing is known about user {user!r} yet; tell a visit first")
        with torch.inference_mode():
            said = self.network.predict(self.row(who))
        top = torch.topk(said.logp, min(k, len(said.logp)))
        names = [self._names[label] for label in said.options.place[top.indices].tolist()]
        return tuple(
            Candidate(value=name, probability=float(share))
            for name, share in zip(names, top.values.exp().tolist(), strict=True)
        )

    def row(self, who: Followed) -> Inputs:
        """What the network reads: suggestions, then the user's visits, the latest one last."""
        others, offered = self.codec.others, self._offered(who)
        told = {name: who[name][-self.longest :] for name in who.columns}
        last = {name: column[-1] for name, column in told.items()}
        fields = {name: np.concatenate([np.full(len(offered), last[name]), told[name]]) for name in told}
        fields["place"][: len(offered)] = fields["ids"][: len(offered)] = offered
        for number, tree in enumerate(self._trees):
            fields[f"cell{number}"][: len(offered)] = tree[offered]
        ids = fields.pop("ids")
        asking, here = np.array([who.user]), np.array([last["ids"]])
        user, source = np.broadcast_to(asking, len(ids)), np.broadcast_to(here, len(ids))
        fields |= {
            "user": user, "kind": is_recent(fields["start"], last["leave"]),
            "follows": np.ones(len(ids), np.int64), "known": (ids >= FIRST).astype(np.int64),
            "moved": others.moved(user, source, ids), "visited": others.visited(user, ids),
            "left": np.broadcast_to(others.left(asking, here), len(ids)),
        }  # fmt: skip
        fields["kind"][: len(offered)] = SUGGESTION
        fields["follows"][: len(offered) + 1] = 0  # suggestions follow nothing, and neither does the first visit
        read = {name: torch.from_numpy(np.array(column))[None] for name, column in fields.items()}
        return Inputs(torch.from_numpy(ids)[None], fields=read)

    def _offered(self, who: Followed) -> np.ndarray:
        """int64: known places where the user has never been and somebody else has, in ascending order."""
        if self._suggested is None:
            return np.empty(0, np.int64)
        here = int(who["ids"][-1])
        cell = int(who["cell0"][-1]) if self._trees else None
        wanted = np.setdiff1d(self._suggested.of_place(here, cell), who["place"][-self.longest :])
        return wanted[self.codec.others.visited(np.full(len(wanted), who.user), wanted) > 0]
