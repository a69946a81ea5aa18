"""Exact subsets: the walk equals one run a subset, and what follows from the table obeys its axioms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from linnet.errors import BadInput
from linnet.probing import ablation, parts, subsets
from linnet.probing.cases import Subject
from small_models import configs, random_model, small_config
from test_causal import some_cases

TABLES = st.integers(2, 5).flatmap(
    lambda n: arrays.arrays(np.float64, 2**n, elements=st.integers(-50, 50).map(float))
)


@settings(max_examples=20, deadline=None)
@given(config=configs(), by=st.sampled_from(["zero", "mean", "resample"]), some=st.booleans())
def test_the_walk_is_one_run_a_subset(config, by, some):
    subject = Subject(random_model(config), some_cases())
    chosen = [part for part in parts.writers(config)[1:] if not some or part.head != 1]
    chosen = chosen[:6] if some else chosen[-6:]
    found = subsets.exact_subsets(subject, chosen, by)
    torch.testing.assert_close(found, subsets.exact_subsets_naively(subject, chosen, by), rtol=1e-4, atol=1e-4)
    units = [ablation.unit_of(part) for part in chosen]
    everything = (1 << len(chosen)) - 1
    alone = found[[everything ^ 1 << i for i in range(len(chosen))]]
    torch.testing.assert_close(alone, ablation.ablate(subject, units, by)[0], rtol=1e-4, atol=1e-4)


def by_orders(table: np.ndarray) -> np.ndarray:
    """Shapley values by their definition."""
    n = int(math.log2(len(table)))
    added = np.zeros(n)
    for order in itertools.permutations(range(n)):
        subset = 0
        for i in order:
            added[i] += table[subset | 1 << i] - table[subset]
            subset |= 1 << i
    return added / math.factorial(n)


@given(table=TABLES)
def test_shapley_values_are_means_over_orders_and_sum_to_the_total(table):
    found = subsets.shapley(table)
    np.testing.assert_allclose(found, by_orders(table), atol=1e-9)
    assert found.sum() == pytest.approx(table[-1] - table[0], abs=1e-9)


@given(weights=st.lists(st.integers(-9, 9), min_size=2, max_size=5))
def test_parts_that_add_up_do_not_interact(weights):
    table = np.array(
        [sum(w for i, w in enumerate(weights) if s >> i & 1) for s in range(2 ** len(weights))], float
    )
    np.testing.assert_allclose(subsets.shapley(table), weights, atol=1e-9)
    np.testing.assert_allclose(subsets.interactions(table), 0, atol=1e-9)
    table[(np.arange(len(table)) & 3) == 3] += 1  # parts 0 and 1 do
    expected = np.zeros((len(weights), len(weights)))
    expected[0, 1] = expected[1, 0] = 1
    np.testing.assert_allclose(subsets.interactions(table), expected, atol=1e-9)


@given(table=TABLES, share=st.sampled_from([0.5, 0.9, 1.0]))
def test_minimal_circuits_keep_enough_and_nothing_inside_them_does(table, share):
    total = table[-1] - table[0]
    if total == 0:
        assert subsets.minimal_circuits(table, share) == [0]
        return
    enough = {s for s in range(len(table)) if (table[s] - table[0]) / total >= share}
    minimal = {s for s in enough if not any(t != s and t & s == t for t in enough)}
    assert set(subsets.minimal_circuits(table, share)) == minimal


def test_an_estimate_holds_the_exact_values_in_its_intervals():
    config = small_config()
    subject = Subject(random_model(config), some_cases())
    chosen = parts.writers(config)[1:]
    exact = subsets.shapley(subsets.exact_subsets(subject, chosen).mean(1).double().numpy())
    found = subsets.estimated_shapley(subject, chosen, orders=64)
    assert found.orders == 64
    assert (np.abs(found.values - exact) <= 2 * found.half + 1e-6).all()
    assert found.values.sum() == pytest.approx(exact.sum(), abs=1e-4)


def test_too_many_parts_say_what_the_estimate_takes():
    config = small_config(depth=5)
    subject = Subject(random_model(config), some_cases())
    with pytest.raises(BadInput, match=r"15 parts have 32,768 subsets.*at most 14 parts.*64 of them take about"):
        subsets.exact_subsets(subject, parts.writers(config)[1:])
