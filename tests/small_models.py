"""Models of a few thousand parameters for tests, with weights large enough for a fault of wiring to show."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from linnet.model.config import (
    AttentionConfig,
    FeedForwardConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    RotaryScaling,
)
from linnet.model.contract import Network
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.model.taps import Affine

POSITIONS = ("rotary", "sinusoidal", "learned", "none")
MIXERS = ("attention", "gru", ("attention", "gru"))


def small_config(**changes: Any) -> ModelConfig:
    """Two layers, two heads over one pair of keys and values, width 12; `changes` are fields of the config."""
    chosen = {"vocabulary": 13, "context": 24, "width": 12, "depth": 2, **changes}
    chosen.setdefault("attention", AttentionConfig(heads=2, kv_heads=1, head_width=4))
    return ModelConfig.model_validate(chosen)


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """In eval mode; every weight matters, biases and norms too, which fresh ones would hide."""
    random = torch.Generator().manual_seed(seed)
    model = Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim < 2:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
    return model.eval()


def with_vectors(**changes: Any) -> Model:
    """A model with a column of numbers that enter the residual stream as they are."""
    config = small_config(**changes)
    column = {"vector": {"kind": "numbers", "width": config.width}}
    model = random_model(ModelConfig.model_validate(config.model_dump() | {"columns": column}))
    with torch.no_grad():
        model.get_parameter("columns.vector.enter.weight").copy_(torch.eye(config.width))
        model.get_parameter("columns.vector.enter.bias").zero_()
    return model


def vectors_then_ids(vectors: torch.Tensor, ids: torch.Tensor, **rest: Any) -> Inputs:
    """Rows [B, P + T] that begin with vectors [B, P, W], where no ids are, and go on with ids [B, T]."""
    (rows, first, width), tokens = vectors.shape, ids.shape[1]
    is_id = torch.arange(first + tokens).expand(rows, -1) >= first
    columns = {
        "ids": torch.cat((ids.new_zeros(rows, first), ids), 1),
        "vector": torch.cat((vectors, vectors.new_zeros(rows, tokens, width)), 1),
    }
    return Inputs(columns, {"ids": is_id, "vector": ~is_id}, **rest)


def random_ids(rows: int, tokens: int, *, vocabulary: int = 13, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def taps_without_effect(network: Network, read: Any) -> list[str]:
    """The names of taps where an edit changes nothing; each of them fires."""
    names, deaf = tuple(network.taps()), []
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        plain = network(read, keep=names)
        assert list(plain.kept) == list(names)
        for name in names:
            value = plain.kept[name]
            edit = Affine(torch.full((), 0.5), torch.rand(value.shape).to(value))
            for one in (edit, lambda x: x * 0.5 + torch.rand(x.shape).to(x)):
                changed = network(read, edit=((name, one),)).hidden
                known = plain.hidden.isfinite() & changed.isfinite()
                if bool((changed - plain.hidden)[known].abs().max() < 1e-5):
                    deaf.append(name)
    return deaf


@st.composite
def configs(draw: st.DrawFn, *, mixers: tuple[Any, ...] = MIXERS, causal: bool = True) -> ModelConfig:
    """Any legal combination of the choices that make a model."""
    kv_heads = draw(st.sampled_from([1, 2]))
    kind = draw(st.sampled_from(["rms", "layer"]))
    return ModelConfig(
        vocabulary=13,
        context=24,
        width=draw(st.sampled_from([8, 16])),
        depth=2,
        mixer=draw(st.sampled_from(mixers)),
        positions=draw(st.sampled_from(POSITIONS)),
        attention=AttentionConfig(
            heads=kv_heads * draw(st.sampled_from([1, 2])),
            kv_heads=kv_heads,
            head_width=draw(st.sampled_from([None, 2, 6])),
            causal=causal,
            qk_norm=draw(st.booleans()),
            bias=draw(st.sampled_from([False, True, "qkv"])),
            rotary_width=draw(st.sampled_from([None, 2])),
            value_embeddings=draw(st.sampled_from(["none", "none", "alternate", "all"])),
            rotary_scaling=draw(st.sampled_from([None, RotaryScaling(kind="llama3", factor=4, context=16)])),
        ),
        feedforward=FeedForwardConfig(
            kind=draw(st.sampled_from(["gelu", "gelu_tanh", "geglu", "geglu_tanh", "swiglu", "relu2"])),
            width=draw(st.sampled_from([None, 10])),
            bias=draw(st.booleans()),
        ),
        norm=NormConfig(kind=kind, bias=kind == "layer" and draw(st.booleans())),
        head=HeadConfig(
            tied=draw(st.booleans()), bias=draw(st.booleans()), softcap=draw(st.sampled_from([None, 5.0]))
        ),
        embedding_scale=draw(st.sampled_from([1.0, 1.0, 8**0.5])),
        scaled_residual=draw(st.booleans()),
        parallel=draw(st.booleans()),
    )
