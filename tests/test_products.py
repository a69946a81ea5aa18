"""Packed products against plain ones, and steps that are compiled.

Legend: B = rows, I = inputs, O = outputs.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.decoding.asking import Ask, Decoding
from linnet.decoding.compiling import Compiled, choose, compiling
from linnet.decoding.engine import Plain, generate
from linnet.decoding.products import PackedLinear, Weights, named, pack
from linnet.decoding.sampling import Sampling
from linnet.errors import BadInput
from linnet.model.config import AttentionConfig, HeadConfig, ModelConfig
from linnet.model.model import Model
from small_models import configs, random_ids, random_model

# Relative error of one product of standard normal numbers: half a unit of the last place, and a margin.
ERRORS: dict[Weights, float] = {"float32": 2e-6, "float16": 4e-4, "bfloat16": 4e-3, "int8": 0.025, "int4": 0.12}


def wide(tied: bool = True, bias: bool = False) -> Model:
    """Large enough that every matrix is packed."""
    config = ModelConfig(
        vocabulary=512,
        context=32,
        width=192,
        depth=1,
        attention=AttentionConfig(heads=3, bias=bias),
        head=HeadConfig(tied=tied, bias=bias),
    )
    return random_model(config).requires_grad_(False)


def packed_layers(model: Model) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("weights", ERRORS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_multiplies_as_precisely_as_its_numbers_allow(weights, bias):
    model = wide(bias=bias)
    plain = dict(model.blocks.named_modules())
    packed = pack(copy.deepcopy(model), weights)
    x = torch.randn(2, 3, 192, generator=torch.Generator().manual_seed(1))
    x = x * torch.logspace(-2, 2, 3)[:, None]  # rows of very different size
    x = x.to(packed.embedding.weight.dtype)  # bfloat16 where its products are native
    for name, module in packed.blocks.named_modules():
        if isinstance(module, PackedLinear) and module.inputs == 192:
            found, expected = module(x).float(), plain[name](x.float())
            error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert float(error.max()) < ERRORS[weights]
    assert len(packed_layers(packed)) == 5  # four in the block and the head


@pytest.mark.parametrize("weights", ERRORS)
def test_rows_of_packed_products_do_not_know_their_neighbours(weights):
    model = pack(wide(), weights)
    layer = packed_layers(model)[0]
    x = torch.randn(8, 192, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 8)[:, None]
    x = x.to(model.embedding.weight.dtype)
    together = layer(x)
    for row in range(8):
        difference = (layer(x[row : row + 1])[0] - together[row]).norm()
        assert float(difference) <= 1e-6 * float(together[row].norm())


@settings(max_examples=15, deadline=None)
@given(config=configs(), seed=st.integers(0, 9))
def test_any_model_packed_in_float32_computes_the_same(config, seed):
    model, ids = random_model(config, seed), random_ids(2, 9)
    with torch.inference_mode():
        expected = model.head(model(ids).hidden)
        packed = pack(copy.deepcopy(model), "float32")
        torch.testing.assert_close(packed.head(packed(ids).hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_scores_like_the_plain_one(tied):
    model, ids = wide(tied), random_ids(2, 20, vocabulary=512)
    packed = pack(copy.deepcopy(model), "int8")
    with torch.inference_mode():
        plain = model.head.nll(model(ids[:, :-1]).hidden, ids[:, 1:]).mean()
        rounded = packed.head.nll(packed(ids[:, :-1]).hidden, ids[:, 1:]).mean()
    assert float(rounded) == pytest.approx(float(plain), abs=0.05)
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_samples_of_int8_are_the_same_in_every_batch():
    model = pack(wide(), "int8")
    asks = [Ask((5, 6, number), number) for number in range(12)]
    decoding = Decoding(Sampling(), 8)
    together = list(generate(model, asks, decoding, rows=12))
    for rows in (1, 5):
        assert [s.ids for s in generate(model, asks, decoding, rows=rows)] == [s.ids for s in together]


def test_unknown_numbers_are_named():
    with pytest.raises(BadInput, match="weights cannot be in int3; they can be in float32, bfloat16"):
        named("int3")


def assert_same_logits(model: Model, compiled: Compiled) -> None:
    """Along one row of given tokens, to a few roundings of bfloat16."""
    ids, steps = random_ids(1, 12, vocabulary=512), (Plain(model), compiled)
    with torch.inference_mode():
        states = [model.empty_state(1, 20), compiled.plain.model.empty_state(1, 20)]
        for place in range(12):
            said = []
            for number, step in enumerate(steps):
                hidden, states[number] = step.advance(ids[:, place : place + 1], states[number])
                said.append(step.logits(hidden).float())
            assert float((said[0] - said[1]).norm()) < 0.03 * float(said[0].norm())


@pytest.mark.parametrize(
    "weights, rows", [("int8", 3), ("int8", 1), ("float32", 1), ("float16", 1), ("bfloat16", 1)]
)
def test_a_compiled_step_decodes_the_same(weights, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    asks = [Ask((5, 6, 7)[: 1 + number % 3], number) for number in range(5)]
    decoding = Decoding(Sampling(), 10)
    eager = pack(wide(bias=True), weights)
    how = compiling(eager, weights, len(asks), rows)
    cold = how.expected_seconds()
    compiled = Compiled(pack(wide(bias=True), weights, single=rows == 1), how)
    found = list(generate(compiled.plain.model, asks, decoding, rows=rows, step=compiled))
    expected = list(generate(eager, asks, decoding, rows=rows))
    if eager.embedding.weight.dtype == torch.float32:
        assert [sample.ids for sample in found] == [sample.ids for sample in expected]
    else:  # two ways to round to bfloat16 draw other tokens sooner or later
        assert [sample.ids[0] for sample in found] == [sample.ids[0] for sample in expected]
        assert_same_logits(eager, compiled)
    assert how.mark.exists() and how.expected_seconds() < cold


def test_short_generations_are_not_compiled_and_long_ones_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = wide()
    assert choose(model, "float32", 1, 64, 100) is None
    found = choose(model, "float32", 1, 64, 100_000)
    assert found is not None and found.single
    recurrent = random_model(ModelConfig(vocabulary=13, context=24, width=8, depth=1, mixer="gru"))
    assert choose(recurrent, "float32", 64, 64, 100_000) is None
    with pytest.raises(BadInput, match="recurrent mixer"):
        compiling(recurrent, "float32", 1, 1)


def test_a_model_packed_for_one_row_reads_prompts_as_before():
    model, ids = wide(bias=True), random_ids(2, 20, vocabulary=512)
    single = pack(copy.deepcopy(model), "float32", single=True)
    with torch.inference_mode():
        torch.testing.assert_close(single.head(single(ids).hidden), model.head(model(ids).hidden))
