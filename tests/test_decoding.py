"""Generation against its oracle, samples that do not depend on their neighbours, and what the cuts leave.

Legend: B = rows, V = vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.decoding import engine, naive
from linnet.decoding.requests import Decoding, Request, Sample, Sampling, Stopping
from linnet.decoding.runner import Runner
from linnet.decoding.sampling import choose, cut, likeliest
from linnet.errors import BadInput
from linnet.model.model import Model
from small_models import configs, random_model, small_config

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.05, 1.0),
    min_p=st.none() | st.floats(0.01, 1.0),
)


def how(
    sampling: Sampling | None = None, *, end: int | None = None, max_tokens: int = 10, seed: int = 0
) -> Decoding:
    return Decoding(Sampling() if sampling is None else sampling, max_tokens, Stopping(end=end), seed=seed)


def generate(model: Model, requests: list[Request], *, rows: int = 64, **options: object) -> list[Sample]:
    return list(engine.generate(Runner(model), requests, how(**options), rows=rows))  # type: ignore[arg-type]


def obviously(model: Model, request: Request, **options: object) -> Sample:
    return naive.generate(model, request, how(**options))  # type: ignore[arg-type]


PROMPTS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=20), min_size=1, max_size=5)


def same(found: list[Sample], expected: list[Sample]) -> None:
    assert [(s.ids, s.stop) for s in found] == [(s.ids, s.stop) for s in expected]
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    config=configs(),
    prompts=PROMPTS,
    sampling=SAMPLINGS,
    max_tokens=st.sampled_from([1, 5, 40]),
    end=st.none() | st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_it_is_the_obvious_generation_only_faster(config, prompts, sampling, max_tokens, end, seed):
    """For any model, ragged prompts up to the context, any sampling, and every reason to stop."""
    model = random_model(config, seed)
    requests = [Request(tuple(prompt), sample) for sample, prompt in enumerate(prompts)]
    options = {"sampling": sampling, "end": end, "max_tokens": max_tokens, "seed": seed}
    expected = [obviously(model, request, **options) for request in requests]
    same(generate(model, requests, **options), expected)


def test_short_prompts_outlive_long_ones_with_learned_positions():
    """The table of positions bounds each row by its own length, not by that of a longer row that has gone."""
    model = random_model(small_config(positions="learned", context=8))
    requests = [Request((1, 2, 3, 4, 5, 6, 7)), Request((1, 2))]
    options = {"sampling": Sampling(), "end": None, "max_tokens": 100}
    samples = generate(model, requests, **options)
    assert [len(sample.ids) for sample in samples] == [2, 7]  # the last token drawn is never read again
    same(samples, [obviously(model, request, **options) for request in requests])


def test_a_sample_is_the_same_in_every_batch():
    model = random_model(small_config(mixer=("attention", "gru")))
    random = np.random.default_rng(0)
    requests = [
        Request(tuple(random.integers(0, 13, length).tolist()), i) for i, length in enumerate([3, 1, 7, 5] * 16)
    ]
    options = {"sampling": Sampling(temperature=0.8, top_p=0.9), "end": 4, "max_tokens": 12, "seed": 3}
    together = generate(model, requests, rows=64, **options)
    for rows in (1, 8):
        same(generate(model, requests, rows=rows, **options), together)
    backwards = generate(model, requests[::-1], rows=64, **options)
    same(backwards[::-1], together)


def test_samples_of_one_prompt_differ_and_repeat_with_their_number_and_seed():
    model = random_model(small_config())
    options = {"sampling": Sampling(), "end": None, "max_tokens": 10}
    requests = [Request((1, 2), sample) for sample in range(4)]
    first = [s.ids for s in generate(model, requests, **options)]
    assert len(set(first)) == 4
    assert [s.ids for s in generate(model, requests, **options)] == first
    assert [s.ids for s in generate(model, requests[2:3], **options)] == first[2:3]
    assert [s.ids for s in generate(model, requests, seed=1, **options)] != first
    greedy = [s.ids for s in generate(model, requests, **(options | {"sampling": Sampling(temperature=0)}))]
    assert len(set(greedy)) == 1


def test_random_numbers_differ_with_everything_that_names_them():
    draws = {
        Request(prompt, sample).noise(seed).random()
        for seed in (0, 1)
        for prompt in ((1, 2), (12,))
        for sample in (0, 1)
    }
    assert len(draws) == 8


def test_logprobs_are_those_of_the_model_the_end_included():
    model = random_model(small_config())
    request = Request((1, 2, 3))
    for seed in range(30):
        (sample,) = generate(model, [request], sampling=Sampling(temperature=2.0), end=5, max_tokens=6, seed=seed)
        drawn = [*sample.ids, 5] if sample.stop == "end" else list(sample.ids)
        ids = torch.tensor([[*request.prompt, *drawn]])
        with torch.inference_mode():
            shares = model.head(model(ids).hidden).double().log_softmax(-1)[0]
        expected = sum(float(shares[2 + i, token]) for i, token in enumerate(drawn))
        assert sample.logprob == pytest.approx(expected, abs=1e-5)


def always(model: Model, token: int) -> Model:
    """The same model with one token that it always prefers."""
    assert model.head.bias is not None
    with torch.no_grad():
        model.head.bias[token] = 1e4
    return model


def test_reasons_to_stop():
    options = {"sampling": Sampling(), "max_tokens": 3}
    model = always(random_model(small_config(head={"bias": True})), 7)
    (ended,) = generate(model, [Request((1,))], end=7, **options)
    assert (ended.ids, ended.stop) == ((), "end")
    (long,) = generate(model, [Request((1,))], end=8, **options)
    assert (long.ids, long.stop) == ((7, 7, 7), "length")
    (endless,) = generate(model, [Request((1,))], end=None, **options)
    assert endless.stop == "length"
    full = tuple([1] * 24)
    (filled,) = generate(model, [Request(full)], end=None, **options)  # a full context has one answer left
    assert (filled.ids, filled.stop) == ((7,), "length")


def test_generating_leaves_a_model_in_training_as_it_was():
    model = random_model(small_config(dropout=0.5)).train()
    options = {"sampling": Sampling(), "end": None, "max_tokens": 6}
    first = generate(model, [Request((1, 2))], **options)
    assert model.training and torch.is_grad_enabled()
    assert generate(model, [Request((1, 2))], **options) == first  # without dropout, so the same again
    same([obviously(model, Request((1, 2)), **options)], first)
    assert model.training
    model(torch.tensor([[1, 2]])).hidden.sum().backward()


def test_no_requests_give_no_samples():
    assert generate(random_model(small_config()), [], sampling=Sampling(), end=None, max_tokens=3) == []


@pytest.mark.parametrize(
    "prompt, max_tokens, message",
    [
        ((), 3, "a prompt is empty"),
        ((1, 13), 3, r"token 13 of a prompt is outside the vocabulary \(0..12\)"),
        ((-1,), 3, "token -1 of a prompt"),
        ((1,) * 25, 3, "a prompt has 25 tokens, and the context of this model is 24"),
        ((1,), 0, "max tokens is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_generated_from_is_named(prompt, max_tokens, message):
    model, options = random_model(small_config()), {"sampling": Sampling(), "end": None, "max_tokens": max_tokens}
    with pytest.raises(BadInput, match=message):
        generate(model, [Request((1,)), Request(prompt)], **options)
    with pytest.raises(BadInput, match=message):
        obviously(model, Request(prompt), **options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must lie above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": math.nan}, "min_p is nan"),
    ],
)
def test_samplings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(BadInput, match=message):
        Sampling(**wrong)


# What the cuts leave.


@st.composite
def share_rows(draw: st.DrawFn) -> Tensor:
    """Probabilities [1, V], ties among them."""
    weights = draw(st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any))
    return torch.tensor([weights], dtype=torch.float64) / sum(weights)


@settings(max_examples=100, deadline=None)
@given(shares=share_rows(), k=st.integers(1, 14))
def test_top_k_leaves_the_k_likeliest_and_their_ties(shares, k):
    left = cut(shares, Sampling(top_k=k))[0]
    ordered = sorted(shares[0].tolist(), reverse=True)
    least = ordered[min(k, len(ordered)) - 1]
    assert left.tolist() == [share if share >= least else 0.0 for share in shares[0].tolist()]


@settings(max_examples=100, deadline=None)
@given(shares=share_rows(), p=st.floats(0.01, 1.0))
def test_top_p_leaves_the_fewest_that_reach_p(shares, p):
    left = cut(shares, Sampling(top_p=p))[0]
    kept = left > 0
    assert torch.equal(left[kept], shares[0][kept])
    assert float(left.sum()) >= p - 1e-12
    assert float(left.sum() - left[kept].min()) < p + 1e-12  # without the least of them it would not
    dropped = shares[0][~kept]
    assert not len(dropped) or float(dropped.max()) <= float(left[kept].min())


@settings(max_examples=100, deadline=None)
@given(shares=share_rows(), p=st.floats(0.01, 1.0))
def test_min_p_leaves_what_is_likely_beside_the_likeliest(shares, p):
    left = cut(shares, Sampling(min_p=p))[0]
    most = float(shares.max())
    assert left.tolist() == [share if share >= p * most else 0.0 for share in shares[0].tolist()]


@settings(max_examples=60, deadline=None)
@given(shares=share_rows(), sampling=SAMPLINGS)
def test_the_cuts_follow_each_other_and_always_leave_the_likeliest(shares, sampling):
    left = cut(shares, sampling)
    step = cut(shares, Sampling(top_k=sampling.top_k))
    step = cut(step, Sampling(top_p=sampling.top_p))
    assert torch.equal(left, cut(step, Sampling(min_p=sampling.min_p)))
    assert float(left.max()) == float(shares.max())


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.6, top_k=9), Sampling(top_p=0.8), Sampling(temperature=1.5, min_p=0.15)],
)
def test_draws_follow_the_cut_softmax(sampling):
    """Chi-square over 200,000 draws of one row; ids that were cut are never drawn."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)) * 1.5
    shares = cut((logits.double() / sampling.temperature).softmax(-1), sampling)[0]
    shares = shares / shares.sum()
    draws = 200_000
    uniform = torch.from_numpy(np.random.default_rng(2).random(draws))
    found = torch.bincount(choose(logits.expand(draws, -1), sampling, uniform), minlength=30).double()
    assert not found[shares == 0].any()
    expected = draws * shares[shares > 0]
    freedom = len(expected) - 1
    chi_square = float(((found[shares > 0] - expected) ** 2 / expected).sum())
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_draw_is_where_the_running_total_passes_it():
    """The edges too: a uniform number of 0 gives the first id that is possible, and the largest the last."""
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf, 0.0, -math.inf]]).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.34, 0.5, 0.67, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, Sampling(), uniform).tolist() == [1, 2, 2, 4, 4]


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e-3])
def test_the_coldest_temperatures_are_greedy(temperature):
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 30
    uniform = torch.from_numpy(np.random.default_rng(0).random(50))
    assert torch.equal(choose(logits, Sampling(temperature=temperature), uniform), logits.argmax(-1))
    assert torch.equal(choose(logits, Sampling(temperature=0), uniform), logits.argmax(-1))


def test_the_hottest_temperature_is_blind():
    logits = torch.randn(4000, 8) * 5
    uniform = torch.from_numpy(np.random.default_rng(0).random(4000))
    counts = torch.bincount(choose(logits, Sampling(temperature=math.inf), uniform), minlength=8)
    assert int(counts.min()) > 400


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 300))
def test_the_likeliest_id_is_the_first_of_equal_ones(seed: int, rows: int, width: int) -> None:
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).round()
    assert likeliest(logits).tolist() == [row.index(max(row)) for row in logits.tolist()]
