"""Following people: what a run says about the next place of a user, after each visit, without any training.

A follower keeps the visits of each user in arrays, so that a prediction costs one row. New users and new places
need nothing: a new place can be predicted from its first visit on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from linnet.domains.places.codec import FIRST, Name, PlacesCodec
from linnet.domains.places.features import LONGEST_STAY
from linnet.domains.places.rows import is_recent
from linnet.errors import BadInput
from linnet.model.inputs import Inputs
from linnet.model.places.scorer import Scorer
from linnet.records import Candidate

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
    """`visit` tells it what happened, `next` asks it what comes."""

    def __init__(self, network: Scorer, codec: PlacesCodec) -> None:
        self.network, self.codec = network.eval(), codec
        self._places = {name: number + FIRST for number, name in enumerate(codec.places) if name is not None}
        self._users = {name: number + FIRST for number, name in enumerate(codec.users) if name is not None}
        self._trees = [codec.tree(level) for level in codec.levels]
        self._new: dict[int | str, int] = {}  # places that training did not see, by name
        self._followed: dict[int | str, Followed] = {}
        self._names: list[Name] = ["", "", *codec.places]

    def visit(self, user: int | str, place: int | str, start: int, end: int | None = None) -> None:
        """A stay from `start` to `end` (seconds on the user's local clock); a check-in has no end."""
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
        """The k most probable next places among those the user has been to."""
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
        """The user's visits as the network reads them: all of them known, and none suggested."""
        others, ids, here = self.codec.others, who["ids"], who["ids"][-1:]
        asking = np.array([who.user])
        user, source = np.broadcast_to(asking, who.count), np.broadcast_to(here, who.count)
        left = np.broadcast_to(others.left(asking, here), who.count)
        follows = np.ones(who.count, np.int64)
        follows[0] = 0
        fields = {
            "user": user, "place": who["place"], "start": who["start"], "leave": who["leave"],
            "kind": is_recent(who["start"], who["leave"][-1]), "follows": follows,
            "moved": others.moved(user, source, ids), "left": left,
            "visited": others.visited(user, ids), "known": (ids >= FIRST).astype(np.int64),
        }  # fmt: skip
        fields |= {name: who[name] for name in who.columns if name.startswith("cell")}
        told = {name: torch.from_numpy(np.array(column))[None] for name, column in fields.items()}
        return Inputs(torch.from_numpy(ids)[None], fields=told)
