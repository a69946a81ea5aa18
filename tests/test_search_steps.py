"""The contract of steps, on tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.errors import BadInput
from linnet.search.steps import TableStep, Target


def law(ids: tuple[int, ...]) -> np.ndarray:
    """A law over 7 tokens that depends on all ids so far."""
    return np.random.default_rng([7, *ids]).dirichlet(np.full(7, 0.5))


@given(width=st.integers(1, 9), temperature=st.floats(0.2, 5.0))
def test_kept_children_are_the_likeliest_and_the_rest_is_the_mass_of_all_others(
    width: int, temperature: float
) -> None:
    step = TableStep(law, Target(5, temperature), width=width)
    root = step.begin([3, 1])
    rows = step.extend(root.handles.tolist() * 2, [4, 2])
    for index, prefix in enumerate([(3, 1, 4), (3, 1, 2)]):
        expected = law(prefix) ** (1 / temperature)
        expected /= expected.sum()
        np.testing.assert_allclose(np.exp(rows.full(index)), expected, rtol=1e-9)
        np.testing.assert_allclose(np.exp(rows.logprobs[index]), np.sort(expected)[::-1][:width], rtol=1e-9)
        np.testing.assert_allclose(expected[rows.ids[index]], np.exp(rows.logprobs[index]), rtol=1e-9)
        assert np.exp(rows.logprobs[index]).sum() + np.exp(rows.rest[index]) == pytest.approx(1)


def test_what_the_model_computes_is_counted_and_what_is_released_is_gone() -> None:
    step = TableStep(law, Target(5))
    root = step.begin([3, 1])
    rows = step.extend(root.handles.tolist(), [4])
    assert (step.prompt_tokens, step.forward_tokens) == (2, 1)
    np.testing.assert_array_equal(step.row(int(rows.handles[0])), rows.full(0))
    assert step.forward_tokens == 2
    step.release(rows.handles.tolist())
    with pytest.raises(KeyError):
        step.extend(rows.handles.tolist(), [0])


def test_targets_and_ends_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInput, match="needs at least 1 token"):
        Target(0)
    with pytest.raises(BadInput, match="greedy"):
        Target(5, 0.0)
    with pytest.raises(BadInput, match="outside the vocabulary"):
        TableStep(law, Target(5), ends=[7])
