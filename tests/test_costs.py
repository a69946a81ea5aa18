"""What a model says it costs, against the model itself and against a counter of operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from linnet.errors import BadInput
from linnet.model import kernels
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from linnet.model.costs import activation_bytes, costs, refuse_too_large
from linnet.model.model import Model
from small_models import configs, random_ids, random_model, small_config


def real_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Model(config).parameters())


def s5(width: int, depth: int, heads: int, feedforward: int) -> ModelConfig:
    """Rotary, no bias in attention, biases in the feed-forward and the layer norms, 35 characters."""
    return ModelConfig(
        vocabulary=35,
        context=64,
        width=width,
        depth=depth,
        attention=AttentionConfig(heads=heads),
        feedforward=FeedForwardConfig(kind="gelu", width=feedforward, bias=True),
        norm=NormConfig(kind="layer", bias=True),
    )


def s4(context: int) -> ModelConfig:
    """Learned positions and biases everywhere but in the tied head."""
    return ModelConfig(
        vocabulary=16_000,
        context=context,
        width=512,
        depth=6,
        positions="learned",
        attention=AttentionConfig(heads=8, bias=True),
        feedforward=FeedForwardConfig(kind="gelu", bias=True),
        norm=NormConfig(kind="layer", bias=True),
    )


PUBLISHED = {
    "S5 pilot": (s5(128, 4, 4, 384), 664_192),
    "S5 train": (s5(256, 6, 8, 1024), 4_741_888),
    "S5 10m": (s5(384, 6, 6, 1536), 10_651_776),
    "S4 baseline": (s4(128), 27_172_864),
    "S4 at 64 tokens": (s4(64), 27_140_096),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_their_published_parameters(name):
    config, published = PUBLISHED[name]
    assert real_parameters(config) == costs(config).parameters == published


@settings(max_examples=60, deadline=None)
@given(config=configs(), fields=st.dictionaries(st.sampled_from(["user", "hour"]), st.integers(1, 30)))
def test_the_formula_counts_the_parameters_of_any_model(config, fields):
    config = config.model_copy(update={"fields": fields})
    assert costs(config).parameters == real_parameters(config)


def counted_flops(config: ModelConfig) -> float:
    """FLOPs a token of one forward pass over a full context, as torch counts them."""
    model, ids = random_model(config), random_ids(2, config.context)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), FlopCounterMode(display=False) as counter:
        patch.setattr(kernels, "WIDE", True)  # torch does not count inside its fused kernel
        model.head(model(ids).hidden)
    return counter.get_total_flops() / ids.numel()


@settings(max_examples=20, deadline=None)
@given(config=configs(mixers=("attention",)))
def test_flops_are_those_that_torch_counts(config):
    """Exactly, since both count matrix products only and the explicit form computes the whole square."""
    assert counted_flops(config) == costs(config).flops_per_token


def test_a_deep_model_costs_two_flops_a_parameter_and_its_attention():
    config = PUBLISHED["S5 train"][0]
    parameters, mixing = costs(config).parameters, 6 * 4 * config.width * config.context
    assert costs(config).flops_per_token == pytest.approx(2 * parameters + mixing, rel=0.01)


def test_shared_keys_and_recurrent_layers_need_less_memory_a_token():
    wide = small_config(attention=AttentionConfig(heads=4, head_width=4))
    shared = small_config(attention=AttentionConfig(heads=4, kv_heads=1, head_width=4))
    assert costs(wide).kv_bytes_per_token == 2 * 2 * 4 * 4 * 4
    assert costs(shared).kv_bytes_per_token * 4 == costs(wide).kv_bytes_per_token
    assert costs(wide, kv_bytes=2).kv_bytes_per_token * 2 == costs(wide).kv_bytes_per_token
    assert costs(small_config(mixer="gru")).kv_bytes_per_token == 0


def bytes_kept(config: ModelConfig, rows: int) -> int:
    """What one eager forward in training keeps until its backward pass, weights left out."""
    model, ids = random_model(config).train(), random_ids(rows, config.context, vocabulary=config.vocabulary)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(ids).hidden
        model.head.loss(hidden, ids, torch.ones(ids.shape))
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_the_estimate_of_training_memory_is_near(kind):
    """Within a factor of two of what autograd keeps: it is an estimate that names the dials, not a promise."""
    config = ModelConfig(
        vocabulary=300,
        context=48,
        width=96,
        depth=3,
        attention=AttentionConfig(heads=4),
        feedforward=FeedForwardConfig(kind=kind),
    )
    kept = bytes_kept(config, 4) / (4 * config.context)
    assert 0.5 < activation_bytes(config) / kept < 2


def test_the_estimate_grows_with_batch_and_averaged_weights():
    config = small_config(head=HeadConfig(tied=False))
    one, more, averaged = costs(config), costs(config, batch_tokens=101), costs(config, ema=True)
    assert more.training_bytes - one.training_bytes == 100 * activation_bytes(config)
    assert averaged.training_bytes - one.training_bytes == 4 * one.parameters


def test_a_network_beyond_the_memory_of_the_machine_is_refused():
    refuse_too_large(small_config())
    with pytest.raises(BadInput, match="make the model smaller"):
        refuse_too_large(small_config(width=1 << 24, feedforward=FeedForwardConfig(kind="gelu")))
