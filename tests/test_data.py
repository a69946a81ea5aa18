"""Batches as pure functions of the step, and the thread that makes them ahead of time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linnet.data import Batch, Padded, Prefetcher, pad_rows
from linnet.errors import BadInput
from linnet.rows import Rows


def sequences_of(lengths: list[int], *, with_field: bool = False) -> Rows:
    """Rows that begin with their own number; later tokens count on, and every third one is scored."""
    rows = [np.arange(n) + 1000 * index for index, n in enumerate(lengths)]
    ids = np.concatenate(rows) if rows else np.empty(0)
    scored = np.concatenate([(np.arange(n) > 0) & (np.arange(n) % 3 > 0) for n in lengths] or [np.empty(0, bool)])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    fields = {"hour": (ids * 7 % 24).astype(np.int64)} if with_field else {}
    return Rows({"ids": ids.astype(np.uint32)} | fields, starts, scored)


def same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows_of(batch: Batch) -> list[int]:
    """Which rows a batch holds."""
    return [int(first) // 1000 for first in batch["ids"][:, 0]]


LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 5), st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch(lengths: list[int], rows: int, seed: int, epoch: int) -> None:
    plan = Padded(sequences_of(lengths), rows, seed)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.batch(step) for step in steps]
    assert Counter(row for batch in batches for row in rows_of(batch)) == Counter(range(len(lengths)))
    assert [len(batch["ids"]) for batch in batches[:-1]] == [rows] * (len(batches) - 1), (
        "only the last may be short"
    )


def test_every_epoch_has_its_own_order() -> None:
    plan = Padded(sequences_of([3] * 50), 50, seed=1)
    orders = [rows_of(plan.batch(epoch)) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert rows_of(Padded(sequences_of([3] * 50), 50, seed=2).batch(0)) != orders[0]


@given(LENGTHS, st.integers(1, 12), st.integers(0, 200), st.integers(0, 200))
def test_a_batch_follows_from_its_step_alone(lengths: list[int], rows: int, step: int, other: int) -> None:
    plan = Padded(sequences_of(lengths), rows, seed=3)
    first = plan.batch(step)
    plan.batch(other)
    assert same(plan.batch(step), first)
    assert same(Padded(sequences_of(lengths), rows, seed=3).batch(step), first)


@given(LENGTHS, st.integers(1, 9))
def test_a_batch_is_its_rows_padded_on_the_right(lengths: list[int], multiple: int) -> None:
    sequences = sequences_of(lengths, with_field=True)
    chosen = np.arange(len(lengths))[::-1]
    batch = pad_rows(sequences, chosen, multiple)
    width = batch["ids"].shape[1]
    assert width % multiple == 0 and max(lengths) - 1 <= width < max(lengths) - 1 + multiple
    for place, row in enumerate(chosen):
        ids, length = sequences.row(row), lengths[row] - 1
        scored = sequences.scored[sequences.starts[row] : sequences.starts[row + 1]]
        hours = sequences.columns["hour"][sequences.starts[row] : sequences.starts[row + 1]]
        assert batch["lengths"][place] == length
        assert batch["ids"][place].tolist() == [*ids[:-1], *[0] * (width - length)]
        assert batch["next.ids"][place].tolist() == [*ids[1:], *[0] * (width - length)]
        assert batch["weights"][place].tolist() == [*scored[1:].astype(float), *[0.0] * (width - length)]
        assert batch["hour"][place, :length].tolist() == hours[:-1].tolist()


def test_a_fixed_length_is_the_length_of_every_batch() -> None:
    plan = Padded(sequences_of([3, 5, 9]), 1, seed=0, fixed=8)
    assert {plan.batch(step)["ids"].shape for step in range(3)} == {(1, 8)}
    with pytest.raises(BadInput, match="a row of 9 tokens does not fit into batches of 8 tokens"):
        pad_rows(sequences_of([10]), np.array([0]), fixed=8)


def test_padding_does_not_go_beyond_the_context() -> None:
    """Learned positions end there."""
    shapes = {
        length: pad_rows(sequences_of([length + 1]), np.array([0]), 8, 10)["ids"].shape for length in (3, 9, 10)
    }
    assert shapes == {3: (1, 8), 9: (1, 10), 10: (1, 10)}
    assert Padded(sequences_of([10]), 1, seed=0, context=10).batch(0)["ids"].shape == (1, 10)


def test_rows_may_stay_as_they_lie() -> None:
    plan = Padded(sequences_of([3] * 7), 3, seed=0, shuffle=False)
    assert [rows_of(plan.batch(step)) for step in range(4)] == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2]]


def test_a_data_set_without_rows_and_a_batch_without_rows_are_refused() -> None:
    with pytest.raises(BadInput, match="the data set has no rows"):
        Padded(sequences_of([]), 3, seed=0)
    with pytest.raises(BadInput, match="a batch needs at least one row, not 0"):
        Padded(sequences_of([3]), 0, seed=0)


@dataclass
class Counting:
    """A plan that remembers what it was asked for, and fails or waits where it is told to."""

    plan: Padded = field(default_factory=lambda: Padded(sequences_of([3] * 40), 2, seed=0))
    fails_at: int | None = None
    slow: float = 0.0
    asked: list[int] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        time.sleep(self.slow)
        if step == self.fails_at:
            raise BadInput(f"row {step} is wrong")
        return self.plan.batch(step)


def until(plan: Counting, asked: int) -> None:
    """Wait until a plan was asked for so many batches; a thread that hangs fails the test."""
    for _ in range(2000):
        if len(plan.asked) >= asked:
            return
        time.sleep(0.005)
    raise AssertionError(f"only {len(plan.asked)} batches were asked for, not {asked}")


def test_batches_come_in_the_order_of_their_steps() -> None:
    plan = Counting()
    batches = Prefetcher(plan, 5, 50, depth=3)
    read = list(batches)
    batches.close()
    assert plan.asked == list(range(5, 50))
    assert len(read) == 45
    assert all(same(batch, plan.plan.batch(step)) for step, batch in zip(range(5, 50), read, strict=True))


def test_no_more_batches_are_made_than_the_queue_holds() -> None:
    plan = Counting()
    batches = Prefetcher(plan, 0, 100, depth=3)
    until(plan, 4)  # three in the queue, one in the hand of the thread
    time.sleep(0.3)  # room for a thread that knows no bound to show it
    assert len(plan.asked) == 4
    next(iter(batches))
    until(plan, 5)
    batches.close()


def test_an_error_reaches_the_reader_in_its_place() -> None:
    batches = Prefetcher(Counting(fails_at=7), 5, 50)
    read = []
    with pytest.raises(BadInput, match="row 7 is wrong"):
        for batch in batches:
            read.append(batch)
    assert len(read) == 2
    batches.close()


def test_a_reader_may_leave_early() -> None:
    batches = Prefetcher(Counting(), 0, 1000, depth=2)
    before = threading.active_count()
    for _ in batches:
        break
    batches.close()
    assert threading.active_count() == before - 1


def test_nothing_is_read_where_nothing_is_left() -> None:
    batches = Prefetcher(Counting(), 7, 7)
    assert list(batches) == []
    batches.close()


def test_the_wait_for_a_batch_is_measured() -> None:
    batches = Prefetcher(Counting(slow=0.05), 0, 4)
    waits = []
    for _ in batches:
        waits.append(batches.waited)
    batches.close()
    assert sum(waits) >= 0.1, "four batches take 0.2 s to make, and nothing else is done meanwhile"


def test_a_slice_of_a_batch_keeps_everything_beside_the_rows() -> None:
    batch = pad_rows(sequences_of([4, 6, 8], with_field=True), np.arange(3))
    part = batch.slice(slice(1, 3))
    assert rows_of(part) == [1, 2]
    assert part["lengths"].tolist() == [5, 7]
    assert torch.equal(part["hour"], batch["hour"][1:])
    assert torch.equal(part["weights"], batch["weights"][1:])


def test_with_one_length_every_batch_has_one_shape_and_empty_rows_weigh_nothing() -> None:
    sequences = sequences_of([3, 5, 2, 4, 5])
    free, fixed = Padded(sequences, 2, seed=3), Padded(sequences, 2, seed=3, fixed=6)
    for step in range(2 * fixed.steps_per_epoch):
        short, whole = free.batch(step), fixed.batch(step)
        assert whole["ids"].shape == (2, 6)
        assert (
            whole["weights"].sum() == short["weights"].sum() and whole["lengths"].sum() == short["lengths"].sum()
        )
        assert whole["weights"][short.rows :].sum() == 0
