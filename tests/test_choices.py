"""Finite sets of choices: the exact distribution of the model over them, against every choice computed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.decoding import choices as module
from linnet.decoding.choices import Table, tables
from linnet.decoding.constraints import Constraint
from linnet.decoding.engine import generate
from linnet.decoding.requests import Decoding, Request, Sampling, Stopping
from linnet.decoding.runner import Runner
from linnet.errors import RunFailed
from linnet.model.model import Model
from small_models import configs, random_model, small_config

IDS = st.integers(0, 12)
CHOICES = st.lists(st.lists(IDS, min_size=1, max_size=5).map(tuple), min_size=1, max_size=6, unique=True)
PROMPTS = st.lists(st.lists(IDS, min_size=1, max_size=9).map(tuple), min_size=1, max_size=4, unique=True)


def alone(model: Model, prompt: tuple[int, ...], choice: tuple[int, ...], ends: tuple[int, ...]) -> list[float]:
    """Log-probabilities of the tokens of one choice and of its end, from one plain pass."""
    with torch.inference_mode():
        scores = model.head(model(torch.tensor([[*prompt, *choice]])).hidden)[0].double().log_softmax(-1)
    tokens = [float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(choice)]
    return [*tokens, float(scores[-1, list(ends)].logsumexp(-1)) if ends else 0.0]


@settings(max_examples=40, deadline=None)
@given(
    config=configs(),
    prompts=PROMPTS,
    data=st.data(),
    ends=st.lists(IDS, max_size=2, unique=True).map(tuple),
    rows=st.sampled_from([1, 2, 5, 64]),
    seed=st.integers(0, 99),
)
def test_every_choice_is_scored_as_if_alone(config, prompts, data, ends, rows, seed):
    """Any model and prompts, each with choices of its own, whatever is computed together."""
    model = random_model(config, seed)
    wanted = {prompt: data.draw(CHOICES) for prompt in prompts}
    found = dict(tables(Runner(model), wanted, ends, rows))
    assert list(found) == prompts
    for prompt, table in found.items():
        assert list(table.choices) == wanted[prompt]
        for choice, tokens, end in zip(table.choices, table.tokens, table.ends, strict=True):
            np.testing.assert_allclose([*tokens, end], alone(model, prompt, choice, ends), rtol=1e-4, atol=1e-4)


SURE = Table(((1,), (2, 3), (4,)), ((-3.0,), (-0.1, -6.0), (-1.5,)), (-0.5, -0.1, -4.0))  # whole: -3.5, -6.2, -5.5


def test_the_likeliest_choice_is_greedy_whatever_it_begins_with() -> None:
    assert SURE.logprobs == pytest.approx([-3.5, -6.2, -5.5])
    sample = SURE.draw(Request((5,)), Sampling(temperature=0), 0)
    assert (sample.ids, sample.stop, sample.token_logprobs) == ((1,), "end", (-3.0,))
    assert sample.logprob == pytest.approx(-3.5)
    assert SURE.probabilities(Sampling(temperature=0)) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0, math.inf])
def test_draws_follow_the_conditional_distribution(temperature: float) -> None:
    """p(choice | prompt) of the three, to the power 1 / temperature."""
    sampling = Sampling(temperature)
    scores = np.array(SURE.logprobs) / temperature
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose(SURE.probabilities(sampling), expected, rtol=1e-9)
    drawn = [SURE.draw(Request((5,), number), sampling, 3).ids for number in range(3000)]
    counts = np.array([drawn.count(choice) for choice in SURE.choices])
    assert float(((counts - 3000 * expected) ** 2 / (3000 * expected)).sum()) < 2 + 4 * 2


def test_cuts_leave_the_likeliest_choices() -> None:
    assert SURE.probabilities(Sampling(top_k=1)) == [1.0, 0.0, 0.0]
    kept = SURE.probabilities(Sampling(min_p=0.1))
    assert kept[1] == 0.0 and min(kept[0], kept[2]) > 0 and sum(kept) == pytest.approx(1.0)


class OneOf(Constraint):
    """What masks the tokens of choices one by one."""

    def __init__(self, choices: list[tuple[int, ...]], end: int) -> None:
        self.choices = [(*choice, end) for choice in choices]

    def after(self, drawn: object) -> list[int]:
        begun = tuple(drawn)  # type: ignore[arg-type]
        return sorted({choice[len(begun)] for choice in self.choices if choice[: len(begun)] == begun})


def test_masking_token_by_token_is_another_distribution() -> None:
    """A choice that begins well and ends badly: masked, it is taken; as a whole, another one is likelier."""
    model = random_model(small_config(), 5)
    found = []
    for first in range(2, 12):
        choices = [(first, 3, 7), (first + 1,)]
        (table,) = dict(tables(Runner(model), {(1, 2): choices}, (0,), 64)).values()
        masked = Decoding(Sampling(temperature=0), 8, Stopping(end=0), OneOf(choices, 0))
        (sample,) = generate(Runner(model), [Request((1, 2))], masked)
        best = table.draw(Request((1, 2)), Sampling(temperature=0), 0)
        assert best.logprob == max(table.logprobs)
        found.append(best.logprob > sample.logprob + 0.1)
    assert any(found)


def test_a_prompt_is_read_once_for_all_of_its_choices() -> None:
    model, read = random_model(small_config()), []
    model.register_forward_pre_hook(lambda module, given: read.append(int(given[0].lengths.sum())))
    choices = [(1, 2, 3), (4,), (5, 6)]
    list(tables(Runner(model), {(1,) * 9: choices}, (0,), rows=2))
    assert read == [9, 4, 2]
    read.clear()
    list(tables(Runner(model), {(1,) * 9: choices, (2, 3): choices}, (0,), rows=6))
    assert read == [11, 12]


def test_scores_that_are_not_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(small_config())
    monkeypatch.setattr("linnet.decoding.runner.SCORED", 1)  # and rows are scored one by one
    assert len(list(module.tables(Runner(model), {(1,): [(2,), (3, 4)]}, (), 64))) == 1
    with torch.no_grad():
        model.embedding.weight[4, 0] = torch.nan
    with pytest.raises(RunFailed, match="not numbers .*: embedding.weight holds weights that are not finite"):
        list(module.tables(Runner(model), {(1,): [(2,), (3, 4)]}, (0,), 64))
