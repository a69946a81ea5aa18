"""Visit tables that tests of places make up."""

from __future__ import annotations

import numpy as np

from linnet.domains.places import cells as s2
from linnet.domains.places.visits import DAY, MINUTE, Visits


def random_visits(seed: int, users: int = 4, visits: int = 60, places: int = 9, *, cells: bool = True) -> Visits:
    """A few people, each with favourites, over about two months; user u has visits - 5 u rows."""
    rng = np.random.default_rng(seed)
    counts = [visits - 5 * user for user in range(users)]
    user = np.repeat(np.arange(users), counts).astype(np.int32)
    shares = rng.dirichlet(np.full(places, 0.5), users)
    place = np.concatenate([rng.choice(places, count, p=shares[u]) for u, count in enumerate(counts)])
    place[:places] = rng.permutation(places)  # every place exists
    start = np.concatenate([np.cumsum(rng.integers(60, 2000, count)) for count in counts]) * MINUTE + 10 * DAY
    minutes = rng.integers(0, 60, len(user))
    lonlat = np.stack([116 + rng.normal(0, 0.05, places), 40 + rng.normal(0, 0.05, places)], 1)
    leaf = s2.cell_ids(lonlat[:, 0], lonlat[:, 1])
    tree = {level: s2.parents(leaf, level) for level in (11, 13, 14)} if cells else {}
    return Visits(
        user, place.astype(np.int32), start, start + minutes * MINUTE, np.full(len(user), 8 * 3600, np.int32),
        np.arange(len(user)), np.arange(users) + 100, np.arange(places) * 2, tree, lonlat if cells else None,
    )  # fmt: skip
