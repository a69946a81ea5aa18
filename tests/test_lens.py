"""Lenses: the last layer says what the model says, and tuned ones come closer to it on rows they did not see."""

from __future__ import annotations

import pytest
import torch

from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.probing import lens
from small_models import random_ids, random_model, small_config


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(small_config(depth=3))


def test_the_last_layer_is_the_model(model: Model) -> None:
    ids = random_ids(1, 12)[0]
    found = lens.lens(model, ids)
    with torch.no_grad():
        said = model.head(model(ids[None]).hidden[0]).log_softmax(-1)
    torch.testing.assert_close(found.logprobs[-1], said, rtol=0, atol=1e-5)
    assert found.divergence()[-1].abs().max() == 0 and (found.divergence()[:-1] > -1e-6).all()
    torch.testing.assert_close(found.logprobs.exp().sum(-1), torch.ones(4, 12), rtol=0, atol=1e-5)


def test_translators_come_closer_and_leave_the_model_alone(model: Model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    everything = torch.ones(60, 20, dtype=torch.bool)
    learning = lens.residuals(model, random_ids(60, 20, seed=1), everything)
    translators = lens.tuned(model, learning, lens.Training(steps=40))
    scored = lens.residuals(model, random_ids(60, 20, seed=2), everything)
    plain, tuned = lens.divergences(model, scored), lens.divergences(model, scored, translators)
    assert all(ours < theirs for ours, theirs in zip(tuned[:-1], plain[:-1], strict=True))
    assert plain[-1] == tuned[-1] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_divergences_are_means_of_single_rows(model: Model) -> None:
    ids = random_ids(3, 10)
    streams = lens.residuals(model, ids, torch.ones(3, 10, dtype=torch.bool))
    rows = torch.stack([lens.lens(model, row).divergence().mean(-1) for row in ids]).mean(0)
    torch.testing.assert_close(torch.tensor(lens.divergences(model, streams)), rows, rtol=0, atol=1e-5)


def test_too_few_tokens_are_refused(model: Model) -> None:
    streams = lens.residuals(model, random_ids(1, 10), torch.ones(1, 10, dtype=torch.bool))
    with pytest.raises(BadInput, match="at least 24 tokens"):
        lens.tuned(model, streams)
