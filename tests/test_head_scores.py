"""Scores of heads: 1 where a head is known to do just that, and what a plain loop over patterns gives."""

from __future__ import annotations

import math

import pytest
import torch

from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.probing.heads import MEANINGS, head_scores, pattern_taps, patterns, repeated_rows
from linnet.probing.known.programs import known_circuit
from small_models import random_ids, random_model, small_config


def by_loop(pattern: torch.Tensor, ids: list[int]) -> dict[str, float]:
    """The scores of one head on one row, query by query."""
    found: dict[str, list[float]] = {name: [] for name in MEANINGS}
    for query in range(1, len(ids)):
        shares = pattern[query]
        found["entropy"].append(-sum(float(p * p.log()) for p in shares if p > 0))
        found["previous"].append(float(shares[query - 1]))
        found["first"].append(float(shares[0]))
        found["diagonal"].append(float(shares[query]))
        copies = [key for key in range(query) if ids[key] == ids[query]]
        if copies:
            found["duplicate"].append(sum(float(shares[key]) for key in copies))
        if after := [key + 1 for key in copies if key + 1 < query]:
            found["induction"].append(sum(float(shares[key]) for key in after))
    return {name: sum(values) / len(values) if values else math.nan for name, values in found.items()}


@pytest.mark.parametrize("mixer", ["attention", ("gru", "attention")])
def test_scores_are_those_of_a_loop(mixer: str) -> None:
    model = random_model(small_config(mixer=mixer))
    ids = random_ids(1, 14, vocabulary=4)
    scores = head_scores(model, ids)
    layers, found = patterns(model, ids[0].tolist())
    assert scores.layers == layers == ((0, 1) if mixer == "attention" else (1,))
    for layer, heads in enumerate(found):
        for head, pattern in enumerate(heads):
            for name, value in by_loop(pattern, ids[0].tolist()).items():
                assert float(scores.values[name][layer, head]) == pytest.approx(value, abs=1e-5)


def test_known_heads_have_the_score_of_their_program() -> None:
    known = known_circuit("induction")
    ids, _ = known.prompts(20)
    scores = head_scores(known.model, ids)
    assert float(scores.values["previous"][0, 2]) == pytest.approx(1, abs=1e-6)
    assert float(scores.values["induction"][1, 1]) == pytest.approx(1, abs=1e-6)
    others = [float(scores.values["induction"][1, head]) for head in (0, 2, 3)]
    assert max(others) < 0.7 and float(scores.margins["induction"][1, 1]) < 1e-6


def test_padding_does_not_count() -> None:
    model = random_model(small_config())
    ids = random_ids(3, 10, vocabulary=5)
    padded = torch.cat((ids, torch.zeros(3, 4, dtype=torch.int64)), 1)
    short, long = head_scores(model, ids), head_scores(model, padded, torch.tensor([10, 10, 10]))
    for name in MEANINGS:
        torch.testing.assert_close(short.values[name], long.values[name], rtol=0, atol=1e-6, equal_nan=True)


def test_a_layer_and_a_head_can_be_chosen() -> None:
    model = random_model(small_config())
    ids = random_ids(1, 8)[0].tolist()
    _, whole = patterns(model, ids)
    layers, one = patterns(model, ids, layer=1, head=0)
    assert layers == (1,) and torch.equal(one[0, 0], whole[1, 0])
    with pytest.raises(BadInput, match="layers with attention: 0, 1"):
        patterns(model, ids, layer=2)
    with pytest.raises(BadInput, match="counted from 0 to 1"):
        patterns(model, ids, head=2)
    with pytest.raises(BadInput, match="no attention layer"):
        pattern_taps(random_model(small_config(mixer="gru")))


def test_even_attention_has_the_entropy_of_even_attention() -> None:
    model: Model = random_model(small_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv" in name:
                parameter.zero_()
    ids = repeated_rows(13, 4, 5, seed=1, begin=0)
    assert torch.equal(ids[:, 1:6], ids[:, 6:]) and (ids[:, 0] == 0).all()
    values = head_scores(model, ids).values["entropy"]
    torch.testing.assert_close(
        values, torch.full_like(values, sum(math.log(query + 1) for query in range(1, 11)) / 10), rtol=0, atol=1e-5
    )
