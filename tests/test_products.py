"""Packed products against plain ones, and steps that are compiled.

Legend: B = rows, I = inputs, O = outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.decoding.compiling import Compiling
from linnet.decoding.engine import generate
from linnet.decoding.products import PackedLinear, Streamed, Weights, named, packed
from linnet.decoding.requests import Decoding, Request, Sampling
from linnet.decoding.runner import Runner
from linnet.decoding.sampling import choose
from linnet.errors import BadInput, RunFailed
from linnet.model import kernels
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
    made = packed(model, weights)
    x = torch.randn(2, 3, 192, generator=torch.Generator().manual_seed(1))
    x = x * torch.logspace(-2, 2, 3)[:, None]  # rows of very different size
    x = x.to(made.embedding.weight.dtype)  # bfloat16 where its products are native
    for name, module in made.blocks.named_modules():
        if isinstance(module, PackedLinear) and module.inputs == 192:
            found, expected = module(x).float(), plain[name](x.float())
            error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert float(error.max()) < ERRORS[weights]
    assert len(packed_layers(made)) == 5  # four in the block and the head


@pytest.mark.parametrize("weights", ERRORS)
def test_rows_of_packed_products_do_not_know_their_neighbours(weights):
    model = packed(wide(), weights)
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
        made = packed(model, "float32")
        torch.testing.assert_close(made.head(made(ids).hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_scores_like_the_plain_one(tied):
    model, ids = wide(tied), random_ids(2, 20, vocabulary=512)
    made = packed(model, "int8")
    with torch.inference_mode():
        plain = model.head.nll(model(ids[:, :-1]).hidden, ids[:, 1:]).mean()
        rounded = made.head.nll(made(ids[:, :-1]).hidden, ids[:, 1:]).mean()
    assert float(rounded) == pytest.approx(float(plain), abs=0.05)
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_samples_of_int8_are_the_same_in_every_batch():
    runner = Runner(packed(wide(), "int8"))
    requests = [Request((5, 6, number), number) for number in range(12)]
    decoding = Decoding(Sampling(), 8)
    together = list(generate(runner, requests, decoding, rows=12))
    for rows in (1, 5):
        assert [s.ids for s in generate(runner, requests, decoding, rows=rows)] == [s.ids for s in together]


def test_unknown_numbers_are_named():
    with pytest.raises(BadInput, match="weights cannot be in int3; they can be in float32, bfloat16"):
        named("int3")


def test_graphs_of_two_runners_stay_apart() -> None:
    """The second has other modules in the same code, and guards of modules are not looked at."""
    model, decoding = wide(), Decoding(Sampling(temperature=0), 4)
    for weights in ("int8", "float32"):
        runner = Runner(packed(model, weights, single=True), Compiling.of(model.config, weights, "cpu", 1, 1))
        eager = Runner(packed(model, weights, single=True))
        found, expected = (list(generate(one, [Request((5, 6), 0)], decoding)) for one in (runner, eager))
        assert runner.notes == [] and runner.compile_seconds > 0
        assert [sample.ids for sample in found] == [sample.ids for sample in expected]


def assert_same_logits(first: Runner, second: Runner) -> None:
    """Along one row of given tokens, to a few roundings of bfloat16."""
    ids, runners = random_ids(1, 12, vocabulary=512), (first, second)
    with torch.inference_mode():
        states = [runner.empty(1, 20) for runner in runners]
        for position in range(12):
            logits = []
            for number, runner in enumerate(runners):
                found, states[number] = runner.step(states[number], ids[:, position])
                logits.append(found.float())
            assert float((logits[0] - logits[1]).norm()) < 0.03 * float(logits[0].norm())


@pytest.mark.parametrize(
    "weights, rows", [("int8", 3), ("int8", 1), ("float32", 1), ("float16", 1), ("bfloat16", 1)]
)
def test_a_compiled_step_decodes_the_same(weights, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    requests = [Request((5, 6, 7)[: 1 + number % 3], number) for number in range(5)]
    decoding = Decoding(Sampling(), 10)
    model = wide(bias=True)
    compiling = Compiling.of(model.config, weights, "cpu", len(requests), rows)
    cold = compiling.expected_seconds()
    same_bytes = weights == "int8" and rows == 1  # which a compiled row does not round activations for
    eager = Runner(packed(model, weights, single=same_bytes))
    compiled = Runner(packed(model, weights, single=rows == 1), compiling)
    found = list(generate(compiled, requests, decoding, rows=rows))
    expected = list(generate(eager, requests, decoding, rows=rows))
    assert compiled.notes == [] and compiled.compile_seconds > 0
    if eager.network.embedding.weight.dtype == torch.float32:
        assert [sample.ids for sample in found] == [sample.ids for sample in expected]
    else:  # two ways to round to bfloat16 draw other tokens sooner or later
        assert [sample.ids[0] for sample in found] == [sample.ids[0] for sample in expected]
        assert_same_logits(eager, compiled)
    assert compiling.mark.exists() and compiling.expected_seconds() < cold


@pytest.mark.parametrize("fixed", [False, True])
def test_a_compiler_that_fails_or_is_wrong_is_not_used(fixed, tmp_path, monkeypatch):
    """Its first step is computed beside an eager one; then the samples are those of eager steps, with a note."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, requests, decoding = wide(), [Request((5, 6), number) for number in range(3)], Decoding(Sampling(), 10)
    expected = list(generate(Runner(model, fixed=fixed), requests, decoding))

    def missing(function: object, **how: object) -> object:
        raise RuntimeError("no compiler here\nat all")

    def wrong(function: Any, **how: object) -> object:
        def compiled(ids: Tensor, state: Any) -> Any:
            hidden, state = function(ids, state)
            return hidden * torch.nan, state

        return compiled

    for compiler, note in ((missing, "no compiler here"), (wrong, "its first step is off by nan%")):
        monkeypatch.setattr(torch, "compile", compiler)
        runner = Runner(model, Compiling.of(model.config, "float32", "cpu", 3, 64), fixed=fixed)
        assert list(generate(runner, requests, decoding)) == expected
        assert runner.notes == [f"steps are not compiled: {note}"] and not runner.compile_seconds


def test_short_generations_are_not_compiled_and_long_ones_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = wide().config
    assert Compiling.choose(config, "float32", "cpu", 1, 64, 100) is None
    found = Compiling.choose(config, "float32", "cpu", 1, 64, 100_000)
    assert found is not None and found.single
    recurrent = ModelConfig(vocabulary=13, context=24, width=8, depth=1, mixer="gru")
    assert Compiling.choose(recurrent, "float32", "cpu", 64, 64, 100_000) is None
    with pytest.raises(BadInput, match="recurrent mixer"):
        Compiling.of(recurrent, "float32", "cpu", 1, 1)


def test_a_model_packed_for_one_row_reads_prompts_as_before():
    model, ids = wide(bias=True), random_ids(2, 20, vocabulary=512)
    single = packed(model, "float32", single=True)
    with torch.inference_mode():
        torch.testing.assert_close(single.head(single(ids).hidden), model.head(model(ids).hidden))


def test_weights_in_int8_that_stream_round_nothing_but_themselves(monkeypatch):
    """Half a step of 127 in each weight; the compiled step of one row reads them where its vectors are wide."""
    monkeypatch.setattr(kernels, "WIDE", True)
    model = wide(bias=True)
    made, plain = packed(model, "int8", single=True), dict(model.named_modules())
    streamed = {name: module for name, module in made.named_modules() if isinstance(module, Streamed)}
    assert len(streamed) == 5 and not packed_layers(made)
    for name, layer in streamed.items():
        whole = plain[name.removesuffix(".product")].weight
        assert layer.weight.dtype == torch.int8 and layer.scale is not None
        off = (layer.weight * layer.scale[:, None] - whole).abs()
        assert bool((off <= 0.5001 * layer.scale[:, None]).all())
        x = torch.randn(3, layer.inputs, generator=torch.Generator().manual_seed(4))
        expected = torch.nn.functional.linear(x, layer.weight * layer.scale[:, None], layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(kernels, "WIDE", False)
    assert len(packed_layers(packed(model, "int8", single=True))) == 5


@pytest.mark.parametrize("weights", ERRORS)
@pytest.mark.parametrize("single", [False, True])
def test_packing_leaves_the_model_as_it_was(weights, single):
    """The same weights, which go on learning the same."""
    model = wide(bias=True).requires_grad_(True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = random_ids(2, 20, vocabulary=512)
    list(generate(Runner(packed(model, weights, single=single)), [Request((1, 2))], Decoding(Sampling(), 5)))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert {name: value.dtype for name, value in model.state_dict().items()} == {
        name: value.dtype for name, value in before.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not packed_layers(model)
    model.head.loss(model(ids[:, :-1]).hidden, ids[:, 1:], torch.ones(2, 19)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_that_are_not_numbers_are_named():
    """Before a token is drawn where they are packed, else with the first one; no id is outside the vocabulary."""
    model = wide()
    with torch.no_grad():
        model.blocks[0].feedforward.down.weight[3, 5] = torch.nan
    with pytest.raises(RunFailed, match=r"blocks\.0\.feedforward\.down\.weight holds weights that are not finite"):
        packed(model, "int8")
    for temperature in (0.0, 1.0):
        with pytest.raises(RunFailed, match=r"\(NaN\): blocks\.0\.feedforward\.down\.weight holds weights"):
            list(generate(Runner(model), [Request((1, 2))], Decoding(Sampling(temperature), 5)))
        nothing = choose(torch.full((3, 13), torch.nan), Sampling(temperature), torch.rand(3))
        assert bool(((nothing >= 0) & (nothing < 13)).all())
