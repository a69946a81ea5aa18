"""What a search builds on: states that go on, fork and share a beginning give what one plain pass gives.

Legend: R = rows, V = vocabulary.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.decoding.products import Weights, packed
from linnet.decoding.runner import Runner
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.model.state import ConsumedStateError
from small_models import configs, random_model, small_config


def plain(model: Model, ids: list[int]) -> Tensor:
    return model.head(model(torch.tensor([ids])).hidden[0, -1])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    config=configs(),
    seed=st.integers(0, 999),
    stem=st.integers(0, 5),
    moves=st.lists(st.integers(0, 2), max_size=6),
)
def test_rows_that_step_fork_and_extend_are_as_if_read_at_once(config, seed, stem, moves):
    model, random = random_model(config, seed), np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return random.integers(0, 13, count).tolist()

    runner, beginning = Runner(model), ids(stem)
    with evaluating(model):
        after = runner.share(beginning)[1] if beginning else None
        rest = [ids(int(random.integers(1, 4))) for _ in range(3)]
        logits, state = runner.prefill(rest, after=after)
        rows = [beginning + row for row in rest]
        for move in moves:
            if max(map(len, rows)) > 18:
                break
            if move == 0:
                tokens = ids(len(rows))
                logits, state = runner.step(state, torch.tensor(tokens))
                rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
            elif move == 1:
                kept = random.integers(0, len(rows), int(random.integers(1, 5)))
                state, logits = state.select(torch.from_numpy(kept)), logits[torch.from_numpy(kept)]
                rows = [rows[index] for index in kept]
            else:
                more = [ids(int(random.integers(1, 4))) for _ in rows]
                logits, state = runner.extend(state, more)
                rows = [row + added for row, added in zip(rows, more, strict=True)]
        for found, row in zip(logits, rows, strict=True):
            close(found, plain(model, row))
        if max(map(len, rows)) < 22:
            more = [ids(2) for _ in rows]
            expected = [
                plain(model, row).double().log_softmax(-1)[added[0]] for row, added in zip(rows, more, strict=True)
            ]
            tokens, _ = runner.score(logits, state, more)
            np.testing.assert_allclose([row[0] for row in tokens], [float(one) for one in expected], atol=1e-4)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_state_is_consumed_and_select_is_how_one_goes_on_twice(weights: Weights) -> None:
    runner = Runner(packed(random_model(small_config()), weights))
    with evaluating(runner.network):
        _, state = runner.prefill([[1, 2, 3], [4]])
        twin = state.select(torch.tensor([0, 1]))
        first, _ = runner.step(state, torch.tensor([5, 6]))
        with pytest.raises(ConsumedStateError):
            runner.step(state, torch.tensor([5, 6]))
        again, _ = runner.step(twin, torch.tensor([5, 6]), torch.tensor([1]))
        close(again, first[1:])


def test_a_shared_beginning_is_not_consumed() -> None:
    runner = Runner(random_model(small_config()))
    with evaluating(runner.network):
        _, begun = runner.share([1, 2, 3])
        first, _ = runner.prefill([[4], [5, 6]], after=begun)
        second, _ = runner.prefill([[5, 6]], after=begun)
        close(first[1:], second)


@pytest.mark.parametrize("module", ["scheduler", "requests", "constraints"])
def test_what_decides_needs_no_torch(module: str) -> None:
    code = f"import sys, linnet.decoding.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
