"""Drawn series: the same for the same seed, finite, of about unit spread, and of many kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.series.baselines import is_seasonal
from linnet.domains.series.generators import Generator, mixed


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 300), st.integers(0, 10_000), st.sampled_from([1, 7, 52]))
def test_draws_are_finite_and_depend_on_the_seed_alone(count: int, length: int, seed: int, season: int) -> None:
    found = Generator(season).draw(count, length, seed)
    assert found.shape == (count, length) and np.isfinite(found).all()
    assert np.array_equal(found, Generator(season).draw(count, length, seed))
    assert not np.array_equal(found, Generator(season).draw(count, length, seed + 1))


def test_draws_are_of_many_kinds() -> None:
    found = Generator(season=12).draw(400, 144, seed=3)
    assert 0.5 < np.median(found.std(-1)) < 2
    seasonal = np.array([is_seasonal(one, 12) for one in found])
    assert 0.2 < seasonal.mean() < 0.9
    unseasonal = np.array([is_seasonal(one, 12) for one in Generator(season=7).draw(400, 144, seed=3)])
    assert unseasonal.mean() < seasonal.mean() - 0.1
    ends = found[:, -20:].mean(-1) - found[:, :20].mean(-1)
    assert np.quantile(ends, 0.1) < -0.5 and np.quantile(ends, 0.9) > 0.5, "trends go both ways"


def test_a_mixture_of_one_series_is_that_series_scaled() -> None:
    history = np.random.default_rng(0).normal(5, 2, 40)
    found = mixed([history], 5, 40, seed=1)
    wanted = (history - history.mean()) / np.abs(history - history.mean()).mean()
    assert found == pytest.approx(np.tile(wanted, (5, 1)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 50), st.integers(0, 99))
def test_mixtures_are_within_their_parts_whatever_the_lengths(lengths: list[int], length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    histories = [1e6 + rng.normal(size=size) for size in lengths]
    found = mixed(histories, 4, length, seed)
    assert found.shape == (4, length) and np.isfinite(found).all()
    assert (np.abs(found).mean(-1) <= 1 + 1e-6).all(), "the mean size of a convex sum is at most 1"
    assert np.array_equal(found, mixed(histories, 4, length, seed))
