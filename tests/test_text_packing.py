"""Packed batches: every target once an epoch, in one shape, whatever the chunks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import data
from linnet.data import Batch, Masked, Packed, Padded
from linnet.errors import BadInput
from linnet.rows import Rows


def rows_of(lengths: list[int]) -> Rows:
    """Rows in which token number i has the id i, so that each pair is known by its input."""
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    scored = np.arange(starts[-1]) % 7 != 3
    scored[starts[:-1]] = False
    return Rows({"ids": np.arange(starts[-1]), "half": np.arange(starts[-1]) // 2}, starts, scored)


def inside(batch: Batch) -> torch.Tensor:
    return torch.arange(batch["ids"].shape[1]) < batch["lengths"][:, None]


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    rows=st.integers(1, 5),
    context=st.integers(1, 9),
    chunk=st.sampled_from([3, 1 << 20]),
    apart=st.booleans(),
)
def test_every_pair_comes_once_an_epoch(
    lengths: list[int], rows: int, context: int, chunk: int, apart: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "WHOLE", min(chunk, 8))
        patch.setattr(data, "CHUNK", chunk)
        sequences = rows_of(lengths)
        pairs = sum(lengths) - len(lengths)
        if not pairs:
            with pytest.raises(BadInput, match="no rows of two tokens"):
                Packed(sequences, rows, context, 1)
            return
        plan = Packed(sequences, rows, context, 1, apart)
        lasts = {int(stop) - 1 for stop in sequences.starts[1:]}
        wanted = Counter(i for i in range(sum(lengths)) if i not in lasts)
        for epoch in range(2):
            found: Counter[int] = Counter()
            for step in range(plan.steps_per_epoch):
                batch = plan.batch(epoch * plan.steps_per_epoch + step)
                real = inside(batch)
                assert batch["ids"].shape == (min(rows, plan.lines), context)
                found.update(batch["ids"][real].tolist())
                assert (batch["next.ids"][real] == batch["ids"][real] + 1).all()
                assert (batch["half"][real] == batch["ids"][real] // 2).all()
                np.testing.assert_array_equal(
                    batch["weights"][real] > 0, sequences.scored[batch["next.ids"][real].numpy()]
                )
                assert not batch["weights"][~real].any()
                check_documents(batch, sequences, apart)
            assert found == wanted


def check_documents(batch: Batch, sequences: Rows, apart: bool) -> None:
    if not apart:
        assert "documents" not in batch
        return
    for ids, numbers, length in zip(batch["ids"], batch["documents"], batch["lengths"], strict=True):
        ids = ids[:length]
        row = np.searchsorted(sequences.starts, ids.numpy(), side="right")
        same = (row[1:] == row[:-1]) & (ids[1:] == ids[:-1] + 1).numpy()
        np.testing.assert_array_equal(np.diff(numbers[:length]) == 0, same)
        assert (numbers[length:] == -1).all()


def test_rows_keep_their_order_without_shuffling() -> None:
    plan = Packed(rows_of([4, 3, 5]), 1, 3, 1, shuffle=False)
    ids = torch.cat([plan.batch(step)["ids"].flatten() for step in range(plan.steps_per_epoch)])
    assert ids.tolist() == [0, 1, 2, 4, 5, 7, 8, 9, 10]


def test_batches_are_functions_of_seed_and_step() -> None:
    sequences = rows_of([5] * 40)
    plan, again, other = (Packed(sequences, 4, 8, seed) for seed in (1, 1, 2))
    forward = [plan.batch(step) for step in range(25)]
    for step in reversed(range(25)):
        assert torch.equal(again.batch(step)["ids"], forward[step]["ids"])
    assert not torch.equal(other.batch(0)["ids"], forward[0]["ids"])
    assert not torch.equal(plan.batch(plan.steps_per_epoch)["ids"], forward[0]["ids"])


def test_a_share_of_the_rows_is_dropped_each_epoch() -> None:
    sequences = rows_of([6] * 1000)
    for whole, some in (
        (Packed(sequences, 4, 16, 1), Packed(sequences, 4, 16, 1, drop=0.3)),
        (Padded(sequences, 16, 1), Padded(sequences, 16, 1, drop=0.3)),
    ):
        left_out: list[set[int]] = []
        for epoch in range(2):
            missing: set[int] = set()
            for step in range(whole.steps_per_epoch):
                index = epoch * whole.steps_per_epoch + step
                one, other = whole.batch(index), some.batch(index)
                assert torch.equal(one["ids"], other["ids"])
                missing |= {int(i) // 6 for i in one["next.ids"][(one["weights"] > 0) & (other["weights"] == 0)]}
                assert not {int(i) // 6 for i in one["next.ids"][other["weights"] > 0]} & missing
            left_out.append(missing)
        assert 250 < len(left_out[0]) < 350
        assert left_out[0] != left_out[1]


def test_a_share_of_the_inputs_is_masked() -> None:
    plan = Packed(rows_of([50] * 40), 4, 32, 1)
    masked = Masked(plan, 0.15, 5, 1)
    changed = total = 0
    for step in range(plan.steps_per_epoch):
        one, other = plan.batch(step), masked.batch(step)
        assert torch.equal(one["next.ids"], other["next.ids"]) and torch.equal(one["weights"], other["weights"])
        assert torch.equal(masked.batch(step)["ids"], other["ids"])
        differs = one["ids"] != other["ids"]
        assert (other["ids"][differs] < 5).all()
        changed, total = changed + int(differs.sum()), total + one["ids"].numel()
    assert 0.12 < changed / total < 0.18


def test_lines_of_a_batch_come_from_all_over_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "WHOLE", 8)
    monkeypatch.setattr(data, "CHUNK", 8)
    plan = Packed(rows_of([5] * 800), 8, 16, 3)
    chunks = {int(i) // 40 for i in plan.batch(0)["ids"][:, 0]}
    assert len(chunks) >= 7
