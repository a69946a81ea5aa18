"""Interchange: exact on a circuit whose variable is known, nothing in a random subspace or fresh weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from linnet import workbench
from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.probing.interchange import Pairs, Settings, held, interchange, random_basis, swapped
from linnet.probing.known.programs import known_circuit
from small_models import random_ids, random_model, small_config

STEP = 10  # of the known adder: predicts the third digit, from the third column and the carry into it


def adder_pairs(count: int) -> Pairs:
    """Sums whose third digit is read; in every other pair the carry into that column differs."""
    known = known_circuit("adder")
    ids, answers = known.prompts(4 * count)
    digit = {token: int(name) for token, name in enumerate(known.tokens) if name.isdigit()}
    rows = ids.tolist()
    own = [sum(digit[row[i]] for i in (3, 7)) for row in rows]
    carry = [(digit[int(a)] - total) % 10 for a, total in zip(answers[:, STEP], own, strict=True)]
    base, source = [], []
    for index in range(count):
        different = bool(index % 2)
        partner = next(i for i in range(index + 1, len(rows)) if (carry[i] != carry[index]) == different)
        base.append(index)
        source.append(partner)
    names = {int(name): token for token, name in enumerate(known.tokens) if name.isdigit()}
    wanted = [names[(own[b] + carry[s]) % 10] for b, s in zip(base, source, strict=True)]
    cut = ids[:, : STEP + 1]
    return Pairs(cut[base], cut[source], STEP, answers[base, STEP], torch.tensor(wanted))


def test_the_carry_of_the_known_adder_is_one_dimension() -> None:
    known, pairs = known_circuit("adder"), adder_pairs(300)
    fresh = Model(known.model.config).eval()
    settings = Settings(dimensions=(1,), steps=60)
    before = {name: value.clone() for name, value in known.model.state_dict().items()}
    found = {
        r.subspace: r for r in interchange(known.model, pairs, "blocks.0.hook_resid_post", STEP, settings, fresh)
    }
    assert found["learned"].value >= 0.95 and found["learned"].low > 0.9
    assert found["random"].value <= 0.6 and found["untrained"].value <= 0.6 and found["whole"].value <= 0.6
    assert all(torch.equal(value, before[name]) for name, value in known.model.state_dict().items())
    earlier = {r.subspace: r for r in interchange(known.model, pairs, "blocks.0.hook_resid_pre", STEP, settings)}
    assert earlier["learned"].value <= 0.6, "before the first feed-forward there is no carry"


def test_everything_exchanged_is_the_source_and_nothing_is_the_base() -> None:
    model = random_model(small_config())
    base, source = random_ids(4, 7, seed=1), random_ids(4, 7, seed=2)
    source[:, :-1] = base[:, :-1]  # the last step alone differs, so its whole stream decides
    tap, width = "blocks.0.hook_resid_post", model.config.width
    values = held(model, source, tap, 6)
    with torch.no_grad():
        whole = model(base, edit=((tap, swapped(values, 6, torch.eye(width))),)).hidden
        none = model(base, edit=((tap, swapped(values, 6, torch.zeros(width, 1))),)).hidden
        torch.testing.assert_close(whole[:, -1], model(source).hidden[:, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(none, model(base).hidden, rtol=0, atol=1e-6)
    basis = random_basis(width, 4, 0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), rtol=0, atol=1e-5)


def test_what_cannot_be_exchanged_is_refused() -> None:
    known, pairs = known_circuit("adder"), adder_pairs(10)
    shorter = Pairs(pairs.base, pairs.source[:, :-1], STEP, pairs.own, pairs.wanted)
    for problem, given in (
        ("base prompts have 11 tokens and source prompts 10", (shorter, "blocks.0.hook_resid_post", STEP)),
        ("there is no step 11", (pairs, "blocks.0.hook_resid_post", 11)),
        ('no tap "blocks.2.hook_resid_post"', (pairs, "blocks.2.hook_resid_post", STEP)),
        ("values of single positions", (pairs, "blocks.0.attn.hook_pattern", STEP)),
    ):
        with pytest.raises(BadInput, match=problem):
            interchange(known.model, *given)
    with pytest.raises(BadInput, match="half of its"):
        interchange(known.model, pairs, "blocks.0.hook_resid_post", STEP, Settings(dimensions=(40,)))


def first_digit(tokens: list[str]) -> tuple[str, object]:
    return tokens[1], lambda value: str(value)


def test_a_hypothesis_of_ones_own(adder: Path) -> None:
    record = workbench.interchange(
        adder, "test_interchange:first_digit", step=6, rows=60, dimensions=(1,), taps=("blocks.0.hook_resid_post",)
    )
    assert record.labels["subspace"] == ("whole", "learned 1", "random 1", "untrained 1")
    with pytest.raises(BadInput, match="needs --step"):
        workbench.interchange(adder, "test_interchange:first_digit")
    with pytest.raises(BadInput, match='did you mean "carry.'):
        workbench.interchange(adder, "carry.9")
    with pytest.raises(BadInput, match="outside of these rows"):
        workbench.interchange(adder, "test_interchange:first_digit", step=60)
