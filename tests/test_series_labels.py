"""Neighbours and forests against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.series.forest import Forest, best_split, features, grown
from linnet.domains.series.neighbours import Majority, NearestNeighbour, complete, lengths_of, warped


def warped_by_cells(one: np.ndarray, other: np.ndarray, window: float) -> float:
    """Dynamic time warping as it is defined, one cell at a time."""
    rows, columns = one.shape[1], other.shape[1]
    slack = max(window, 1 / max(1, min(rows, columns) - 1))
    table = np.full((rows + 1, columns + 1), np.inf)
    table[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            if abs(i / max(1, rows - 1) - j / max(1, columns - 1)) <= slack + 1e-12:
                cost = np.square(one[:, i] - other[:, j]).sum()
                table[i + 1, j + 1] = cost + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return float(table[rows, columns])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.lists(st.integers(1, 9), min_size=2, max_size=5), st.floats(0.01, 1), st.integers(0, 99)
)
def test_warping_along_diagonals_equals_warping_by_cells(
    channels: int, lengths: list[int], window: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    case, *others = (rng.normal(size=(channels, length)) for length in lengths)
    found = warped(case, tuple(others), window)
    assert found == pytest.approx([warped_by_cells(case, other, window) for other in others])


def test_warping_sees_a_shifted_bump_that_euclid_misses() -> None:
    def bump(middle: float, height: float) -> np.ndarray:
        return height * np.exp(-np.square(np.arange(60) - middle) / 18)

    train = np.stack([bump(15, 1.0), bump(40, 0.6)])[:, None]
    test, truth = np.stack([bump(40, 1.0), bump(15, 0.6)])[:, None], [0, 1]
    for window, wanted in ((1.0, truth), (0.0, truth[::-1])):
        fitted = NearestNeighbour(window).fit(train, np.array([0, 1]), 2)
        assert fitted.probabilities(test).argmax(-1).tolist() == wanted
        assert fitted.probabilities(train).argmax(-1).tolist() == [0, 1]


def test_euclidean_distances_are_sums_of_squares_over_channels() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(5, 2, 7)), rng.normal(size=(3, 2, 7))
    found = NearestNeighbour().fit(train, np.arange(5), 5).distances(test)
    assert found == pytest.approx(np.square(test[:, None] - train).sum((2, 3)))


def test_padding_is_no_step_and_gaps_are_lines() -> None:
    nan = np.nan
    cases = np.array([[[1.0, nan, 3, nan, nan]], [[nan, 2.0, nan, 4, 8]], [[nan] * 5]])
    assert lengths_of(cases).tolist() == [3, 5, 1]
    assert complete(cases[0], 3).tolist() == [[1, 2, 3]]
    assert complete(cases[1], 5).tolist() == [[2, 2, 3, 4, 8]]
    assert complete(cases[2], 1).tolist() == [[0]]
    assert np.isfinite(features(cases)).all()
    for window in (0.0, 0.5):
        fitted = NearestNeighbour(window).fit(cases, np.array([0, 1, 2]), 3)
        assert fitted.probabilities(cases).argmax(-1).tolist() == [0, 1, 2]


def test_the_majority_gives_the_shares_of_the_training_cases() -> None:
    found = Majority().fit(np.zeros((4, 1, 2)), np.array([2, 2, 0, 2]), 4).probabilities(np.zeros((2, 1, 2)))
    assert found.tolist() == [[0.25, 0, 0.75, 0]] * 2


# Trees


def impurity(marks: np.ndarray) -> float:
    shares = marks.mean(0)
    return float(len(marks) * (1 - np.square(shares).sum()))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 3), st.integers(0, 200))
def test_the_split_is_the_purest_of_all(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, marks = rng.integers(0, 4, (rows, columns)) / 3, np.eye(3)[rng.integers(0, 3, rows)]
    every = []
    for column in range(columns):
        for value in np.unique(table[:, column])[:-1]:
            below = table[:, column] <= value
            every.append(impurity(marks[below]) + impurity(marks[~below]))
    found = best_split(table, marks)
    assert (found is None) == (not every)
    if found is not None:
        below = table[:, found[0]] <= found[1]
        assert 0 < below.sum() < rows
        assert impurity(marks[below]) + impurity(marks[~below]) == pytest.approx(min(every))


def test_a_tree_knows_its_own_cases_and_a_forest_new_ones() -> None:
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, 120)
    steps = np.arange(50)
    waves = np.sin(steps * (0.3 + 0.4 * classes[:, None]) + rng.uniform(0, 6, (120, 1))) + rng.normal(
        0, 0.3, (120, 50)
    )
    cases = np.stack([waves, rng.normal(size=(120, 50))], 1)
    fitted = Forest(trees=20).fit(cases[:80], classes[:80], 3)
    found = fitted.probabilities(cases[80:])
    assert found.sum(-1) == pytest.approx(np.ones(40)) and (found.argmax(-1) == classes[80:]).mean() > 0.9
    again = Forest(trees=20).fit(cases[:80], classes[:80], 3).probabilities(cases[80:])
    assert np.array_equal(found, again)
    table = features(cases)
    tree = grown(table, classes, 3, np.random.default_rng(2))
    assert (tree.probabilities(table).argmax(-1) == classes).mean() > 0.85
    alone = grown(np.ones((6, 2)), np.array([0, 1] * 3), 2, np.random.default_rng(0))
    assert len(alone.feature) == 1, "cases that are all alike cannot be split"
