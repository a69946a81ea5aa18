"""States that fork, share tokens, go back and are replaced.

Legend: B = rows, H = heads, Hk = key-value heads, T = queries, S = own keys, P = shared keys, D = head width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.model import kernels
from linnet.model.costs import costs
from linnet.model.inputs import Inputs
from linnet.model.kernels import Mask
from linnet.model.model import Model
from linnet.model.state import State
from small_models import configs, random_ids, random_model, small_config


def going(model: Model, ids: Tensor, state: State | None = None) -> State:
    with torch.inference_mode():
        output = model(ids, model.empty_state(len(ids), 1) if state is None else state)
    assert output.state is not None
    return output.state


class Walk:
    """A batch that is led about: what its rows have read, its state, and the same without shared tokens."""

    def __init__(self, model: Model, random: np.random.Generator) -> None:
        self.model, self.random = model, random
        self.recurrent = "gru" in model.config.mixers
        self.read: list[list[int]] = [[]]
        self.states = [model.empty_state(1, int(random.integers(0, 6))) for _ in range(2)]
        self.shared = 0
        self.extend()

    @property
    def filled(self) -> int:
        return max(state.filled for state in self.states)

    def extend(self) -> None:
        """Each row reads up to three tokens, some rows none; what comes out is that of no state at all."""
        added = self.random.integers(0, 4, len(self.read))
        added[self.random.integers(len(added))] = width = int(max(1, added.max()))
        if self.filled + width > self.model.config.context:
            return
        ids = torch.from_numpy(self.random.integers(0, 13, (len(self.read), width)))
        found = []
        for number, state in enumerate(self.states):
            output = self.model(Inputs({"ids": ids}, lengths=torch.from_numpy(added)), state)
            assert output.state is not None
            self.states[number] = output.state
            found.append(self.model.head(output.hidden))
        for row, count in enumerate(added):
            self.read[row] = self.read[row] + ids[row, :count].tolist()
            if count:
                close(found[0][row, :count], found[1][row, :count], 1e-5)
                alone = self.model(torch.tensor([self.read[row]])).hidden[0, -count:]
                close(found[0][row, :count], self.model.head(alone), 1e-4)
        for state in self.states:
            assert state.lengths.tolist() == [len(ids) for ids in self.read]

    def fork(self) -> None:
        rows = self.random.integers(0, len(self.read), int(self.random.integers(1, 5)))
        self.states = [state.select(torch.from_numpy(rows)) for state in self.states]
        self.read = [self.read[row] for row in rows]

    def leave(self) -> None:
        """Some rows go; who sits behind takes their places."""
        staying = set(
            self.random.permutation(len(self.read))[: self.random.integers(1, len(self.read) + 1)].tolist()
        )
        behind = [row for row in staying if row >= len(staying)]
        kept = [row if row in staying else behind.pop() for row in range(len(staying))]
        self.states = [state.compact(torch.tensor(kept)) for state in self.states]
        self.read = [self.read[row] for row in kept]

    def truncate(self) -> None:
        least = max(map(len, self.read)) if self.recurrent else self.shared
        one = int(self.random.integers(least, max(least, max(map(len, self.read))) + 1))
        each = self.random.integers(least, 25, len(self.read))
        to = one if self.random.integers(2) else torch.from_numpy(each)
        self.states = [state.truncate(to) for state in self.states]
        limits = [one] * len(self.read) if isinstance(to, int) else each.tolist()
        self.read = [ids[:limit] for ids, limit in zip(self.read, limits, strict=True)]

    def share(self) -> None:
        if not self.shared and self.read[0]:
            self.states = [state.select(torch.tensor([0])) for state in self.states]
            self.read = self.read[:1]
            self.states[0], self.shared = self.states[0].share(), len(self.read[0])

    def replace(self) -> None:
        """Some rows go on as forks of others that have read more meanwhile."""
        here = Walk.__new__(Walk)
        here.__dict__ |= self.__dict__
        self.states, kept = [state.select(torch.arange(len(self.read))) for state in self.states], self.read
        here.read = list(kept)
        here.fork()
        here.extend()
        places = self.random.permutation(len(kept))[: self.random.integers(1, len(kept) + 1)]
        source = self.random.integers(0, len(here.read), len(places))
        pairs = zip(self.states, here.states, strict=True)
        self.states = [
            mine.put(torch.from_numpy(places), theirs, torch.from_numpy(source)) for mine, theirs in pairs
        ]
        for place, row in zip(places, source, strict=True):
            self.read[place] = here.read[row]

    def refill(self) -> None:
        """A row is taken by a sequence that comes from nowhere; only where nothing is shared."""
        if self.shared:
            return
        ids = torch.from_numpy(self.random.integers(0, 13, (1, 4)))
        place = torch.tensor([int(self.random.integers(len(self.read)))])
        self.states = [state.put(place, going(self.model, ids)) for state in self.states]
        self.read[int(place)] = ids[0].tolist()

    def widen(self) -> None:
        self.states = [state.reserve(int(self.random.integers(0, 5))) for state in self.states]
        room = self.model.config.context if self.model.config.positions == "learned" else 40
        self.states = [state.reading(min(room, state.filled + 1)) for state in self.states]


STEPS = ["extend", "extend", "fork", "leave", "truncate", "share", "replace", "refill", "widen"]


@settings(max_examples=60, deadline=None)
@given(config=configs(), steps=st.lists(st.sampled_from(STEPS), min_size=3, max_size=14), seed=st.integers(0, 999))
def test_a_state_led_about_is_as_good_as_no_state(config, steps, seed):
    """And what rows share is as good as what each of them holds."""
    with torch.inference_mode():
        walk = Walk(random_model(config, seed), np.random.default_rng(seed))
        for step in steps:
            getattr(walk, step)()
            walk.extend()


@settings(max_examples=25, deadline=None)
@given(
    config=configs(mixers=("attention",)), seed=st.integers(0, 99), stem=st.integers(1, 8), nodes=st.integers(1, 9)
)
def test_a_packed_tree_over_shared_tokens_is_each_path_alone(config, seed, stem, nodes):
    model, random = random_model(config, seed), np.random.default_rng(seed)
    ids, prompt = torch.from_numpy(random.integers(0, 13, (2, nodes))), random_ids(1, stem, seed=seed)
    parents = [[int(random.integers(-1, node)) for node in range(nodes)] for _ in range(2)]
    above = torch.zeros(2, nodes, nodes, dtype=torch.bool)
    for row, node in np.ndindex(2, nodes):
        parent = parents[row][node]
        if parent >= 0:
            above[row, node] = above[row, parent]
            above[row, node, parent] = True
    with torch.inference_mode():
        state = going(model, prompt).share().select(torch.tensor([0, 0]))
        hidden = model(Inputs({"ids": ids}, ancestors=above), state).hidden
        for row, node in np.ndindex(2, nodes):
            path = [*ids[row, above[row, node]].tolist(), int(ids[row, node])]
            alone = model(torch.tensor([[*prompt[0].tolist(), *path]])).hidden[0, -1]
            close(hidden[row, node], alone, 1e-4)


def test_what_cannot_be_shared_placed_or_kept_is_refused() -> None:
    model = random_model(small_config())
    two, one = going(model, random_ids(2, 3)), going(model, random_ids(1, 3))
    with pytest.raises(ValueError, match="one row can be shared by its copies, and this state has 2"):
        two.share()
    shared = one.share()
    with pytest.raises(ValueError, match="shares its first tokens already"):
        shared.share()
    with pytest.raises(ValueError, match="share the same tokens"):
        two.put(torch.tensor([0]), shared)
    with pytest.raises(ValueError, match="shared by all rows and cannot be forgotten"):
        shared.truncate(2)
    with pytest.raises(ValueError, match="row 2 cannot go on: this state has 2"):
        two.compact(torch.tensor([2]))
    with pytest.raises(ValueError, match="stays where it is or comes from behind"):
        two.compact(torch.tensor([1, 0]))
    assert (two.rows, shared.rows) == (2, 1)  # a refusal consumes nothing


def test_shared_tokens_are_held_once() -> None:
    model = random_model(small_config())
    state = going(model, random_ids(1, 20)).share().select(torch.zeros(50, dtype=torch.int64)).reserve(3)
    per_token = costs(model.config).kv_bytes_per_token
    assert state.nbytes == per_token * (20 + 50 * 3) + 50 * 8


# Shared keys.


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(1, 4),
    own=st.integers(1, 6),
    common=st.integers(1, 9),
    width=st.sampled_from([1, 2, 5, 8]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    double=st.booleans(),
    seed=st.integers(0, 999),
)
def test_shared_keys_are_as_good_as_copies(
    rows, kv_heads, group, queries, own, common, width, scale, double, seed
):
    """Any mask over the rows' own keys, one that shows none of them too."""
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64 if double else torch.float32)

    q = scale * noise(rows, kv_heads * group, queries, width)
    k, v = noise(rows, kv_heads, own, width), noise(rows, kv_heads, own, width)
    shared = (noise(kv_heads, common, width), noise(kv_heads, common, width))
    allowed = torch.rand(rows, 1, queries, own, generator=random) < 0.5
    for mask in (Mask(allowed, False), Mask(None, False)):
        expected = kernels.explicit(q, *kernels.unshared(k, v, shared, mask), 0.0)
        close(kernels.with_shared(q, k, v, shared, mask), expected, 1e-12 if double else 1e-5)
