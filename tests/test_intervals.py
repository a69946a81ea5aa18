"""Intervals cover the truth as often as they say, also where the units are few, uneven or dependent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.intervals import Bootstrap, degrees_of_freedom, ratio_interval, student, wilson


@pytest.mark.parametrize(
    "right, n, low, high",
    [  # Newcombe (1998), Statistics in Medicine 17: table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - right, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 10_000), data=st.data())
def test_wilson_solves_its_equation_and_holds_the_share(n, data):
    """The ends are the shares p for which the observed one is 1.96 standard errors away."""
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            distance = abs(right / n - p) / math.sqrt(p * (1 - p) / n)
            assert distance == pytest.approx(1.959964, rel=1e-4)


def test_nothing_observed_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def documents(random: np.random.Generator, n: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Nats and characters of n documents: lengths are lognormal, short documents are harder, levels differ."""
    size = random.normal(size=n)
    characters = np.rint(np.exp(7 + spread * size)) + 1
    level = np.exp(random.normal(0, 0.2, n)) * (1 - 0.05 * size)
    return characters * level, characters


@pytest.mark.parametrize("n", [12, 40, 120, 400])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_ratios_of_documents_are_covered(n: int, spread: float) -> None:
    """At least 93 % of 1,000 repeats, whatever the documents' lengths."""
    random = np.random.default_rng(n)
    sums, counts = documents(random, 1_000_000, spread)
    truth = sums.sum() / counts.sum()
    found = np.array([ratio_interval(*documents(random, n, spread)) for _ in range(1000)])
    covered = (found[:, 0] <= truth) & (truth <= found[:, 1])
    assert covered.mean() >= 0.93


def test_it_is_the_interval_of_a_mean_where_all_counts_are_equal() -> None:
    sums = np.array([2.0, 3.0, 4.0, 7.0, 9.0])
    error = sums.std(ddof=1) / math.sqrt(5)
    leave_one_out = error * math.sqrt(5 / 4)  # the jackknife of CR3, a little wider
    half = student(degrees_of_freedom(np.ones(5))) * leave_one_out
    assert ratio_interval(sums, np.ones(5)) == pytest.approx((5 - half, 5 + half))
    assert degrees_of_freedom(np.ones(5)) == pytest.approx(4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 9)), min_size=2, max_size=12))
def test_each_unit_is_left_out_in_turn(pairs: list[tuple[float, int]]) -> None:
    sums, counts = np.array([s for s, _ in pairs]), np.array([c for _, c in pairs])
    ratio = sums.sum() / counts.sum()
    without = [(sums.sum() - s) / (counts.sum() - c) - ratio for s, c in pairs]
    half = student(degrees_of_freedom(counts)) * math.sqrt(sum(x * x for x in without))
    assert ratio_interval(sums, counts) == pytest.approx((ratio - half, ratio + half), abs=1e-9)


def test_degrees_of_freedom_are_those_of_the_matrix() -> None:
    counts = np.random.default_rng(0).lognormal(size=30)
    shares = counts / counts.sum()
    changes = np.diag(shares / (1 - shares)) @ (np.eye(30) - np.outer(np.ones(30), shares))
    product = changes @ changes.T
    assert degrees_of_freedom(counts) == pytest.approx(np.trace(product) ** 2 / np.trace(product @ product))
    assert degrees_of_freedom(np.array([5])) == degrees_of_freedom(np.array([5, 0])) == 0
    assert degrees_of_freedom(np.array([])) == 0


@pytest.mark.parametrize(
    "freedom, quantile", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (30, 2.0423), (1e9, 1.9600)]
)
def test_quantiles_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=5e-5)


def test_a_single_unit_has_no_width() -> None:
    assert ratio_interval(np.array([4.0]), np.array([2])) == (2.0, 2.0)
    assert ratio_interval(np.array([0.0, 6.0]), np.array([0, 3])) == (2.0, 2.0)
    assert ratio_interval(np.zeros(3), np.zeros(3)) == (0.0, 0.0)


@given(st.integers(1, 60), st.booleans())
def test_a_share_on_which_all_units_agree_has_wilsons_interval(units: int, right: bool) -> None:
    draws = Bootstrap.draw(units, resamples=50)
    low, high = draws.share_interval(lambda weights: np.full(len(weights), float(right)))
    assert (low, high) == wilson(units if right else 0, units)
    assert (high if right else low) == float(right) and low < high


def test_a_share_on_which_units_differ_has_the_interval_of_its_draws() -> None:
    draws, values = Bootstrap.draw(30), np.arange(30) % 3 == 0
    statistic = lambda weights: weights @ values / 30  # noqa: E731
    assert draws.share_interval(statistic) == draws.interval(statistic)


def test_one_unit_says_nothing_of_a_share_elsewhere() -> None:
    assert Bootstrap.draw(1).share_interval(lambda weights: np.full(len(weights), 0.7)) == (0.0, 1.0)
