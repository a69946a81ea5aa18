"""The families of models that other programs know: for each its settings, its tensors, and its names in files.

A family reads a config.json and collects everything that is wrong or not supported before it refuses. Most can be
written, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from linnet.codecs import Codec
from linnet.errors import BadInput, nearest
from linnet.exchange.settings import (
    GATED,
    PLAIN,
    Key,
    differences,
    read_keys,
    refuse,
    validated,
    written_keys,
)
from linnet.exchange.tensors import LESS_ONE, TRANSPOSED, Names, by_head
from linnet.model.config import ModelConfig
from linnet.untrusted import Fields, shown

MODERN = (
    Key("vocab_size", "vocabulary"),
    Key("hidden_size", "width"),
    Key("intermediate_size", "feedforward.width"),
    Key("num_hidden_layers", "depth"),
    Key("num_attention_heads", "attention.heads"),
    Key("num_key_value_heads", "attention.kv_heads", default=None),
    Key("max_position_embeddings", "context", default=2048),
    Key("rms_norm_eps", "norm.eps", "number", 1e-6),
    Key("hidden_act", "feedforward.kind", GATED, "silu"),
)
TRAINED_CONTEXT = "original_max_position_embeddings"
SCALING = (
    Key("factor", "factor", "number"),
    Key("low_freq_factor", "low", "number"),
    Key("high_freq_factor", "high", "number"),
    Key(TRAINED_CONTEXT, "context"),
)
MODERN_SETTINGS = {"positions": "rotary", "norm.kind": "rms"}
MODERN_NAMES = Names(
    "model.",
    "model.layers.",
    {
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
        "ln1": "input_layernorm",
        "ln2": "post_attention_layernorm",
        "mixer.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "mixer.out": "self_attn.o_proj",
        "mixer.q_norm": "self_attn.q_norm",
        "mixer.k_norm": "self_attn.k_norm",
        "feedforward.up": "mlp.gate_proj mlp.up_proj",
        "feedforward.down": "mlp.down_proj",
    },
    buffers=(".inv_freq",),
)
GEMMA_NAMES = replace(
    MODERN_NAMES,
    forms=lambda config: dict.fromkeys(("input_layernorm", "post_attention_layernorm", "model.norm"), LESS_ONE),
)
GPT2_NAMES = Names(
    "transformer.",
    "transformer.h.",
    {
        "embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        "ln1": "ln_1",
        "ln2": "ln_2",
        "mixer.qkv": "attn.c_attn",
        "mixer.out": "attn.c_proj",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    },
    lambda config: dict.fromkeys(("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), TRANSPOSED),
    (".attn.bias", ".attn.masked_bias"),
)
NEOX_NAMES = Names(
    "gpt_neox.",
    "gpt_neox.layers.",
    {
        "embedding": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "ln1": "input_layernorm",
        "ln2": "post_attention_layernorm",
        "mixer.qkv": "attention.query_key_value",
        "mixer.out": "attention.dense",
        "feedforward.up": "mlp.dense_h_to_4h",
        "feedforward.down": "mlp.dense_4h_to_h",
    },
    lambda config: {"attention.query_key_value": by_head(config.attention.heads)},
    (".attention.bias", ".attention.masked_bias", ".inv_freq"),
)
OF_GPT = {"norm.kind": "layer", "norm.bias": True, "feedforward.bias": True}


@dataclass(frozen=True)
class Portable:
    """A model without everything that belongs to a run: settings, our tensors by name, codec."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    codec: Codec
    further_ends: tuple[int, ...] = ()  # ids beside the codec's end that end a text, too


@dataclass(frozen=True)
class Imported:
    """A model that was read, its family, and what its reader should know."""

    model: Portable
    family: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Family:
    """`supported` names keys that change what is computed, with the values that linnet computes."""

    name: str  # its model_type
    title: str
    architecture: str  # the class of transformers
    keys: tuple[Key, ...]
    settings: Mapping[str, Any]  # that all its models have
    names: Names
    supported: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    further: Callable[[Fields, dict[str, Any]], None] = lambda fields, settings: None
    rotary: tuple[str, Callable[[Fields], float]] | None = ("rope_theta", lambda fields: 1.0)  # base, share
    always: Mapping[str, Any] = field(default_factory=dict)  # further keys that are written

    def read(self, fields: Fields) -> ModelConfig:
        return validated(fields, self.settings_of(fields))

    def settings_of(self, fields: Fields) -> dict[str, Any]:
        """Settings by their dotted names; what is wrong is gathered in the fields."""
        for key, accepted in {"quantization_config": (None,), **self.supported}.items():
            fields.only(key, *accepted)
        settings = {**self.settings, **read_keys(fields, self.keys)}
        if "attention.head_width" not in settings:
            _refuse_uneven(fields, settings, self.keys)
        if self.rotary:
            settings |= read_rotary(fields, settings, *self.rotary)
        self.further(fields, settings)
        return settings

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys that decide what is computed."""
        found = {"model_type": self.name, **written_keys(config, self.keys), **self.always}
        return found | (written_rotary(config) if self.rotary else {})

    def obstacles(self, config: ModelConfig) -> list[str]:
        """Everything in which this model is not of this family; empty if it can be written."""
        back = self.settings_of(Fields("config.json", self.write(config)))
        found = differences(config, back, self.title, self.keys)
        return found + (uneven(config, self.title) if self.name in ("llama", "qwen2") else [])


def uneven(config: ModelConfig, title: str) -> list[str]:
    heads = config.attention.heads
    fits = config.width % heads == 0
    return [] if fits else [f"model.width={config.width} does not divide into {heads} heads, as {title} demands"]


def _refuse_uneven(fields: Fields, settings: Mapping[str, Any], keys: tuple[Key, ...]) -> None:
    """Heads whose width follows from that of the model have to divide it."""
    names = {key.ours: key.theirs for key in keys}
    width, heads = settings["width"], settings["attention.heads"]
    if width % heads and not fields.wrong(names["width"], names["attention.heads"]):
        fields.problems.append(f"{names['width']}={width} does not divide into {heads} heads")


# --- rotary positions ------------------------------------------------------------------------------


def read_rotary(
    fields: Fields, settings: Mapping[str, Any], base: str, share: Callable[[Fields], float]
) -> dict[str, Any]:
    """How queries and keys turn; newer files have `rope_parameters`, older ones `rope_scaling` beside a base."""
    given = fields.table("rope_parameters") or fields.table("rope_scaling")
    if any(isinstance(value, Mapping) for value in given.values()):
        fields.problems.append("rope_parameters that differ between layers are not supported")
        given = {}
    inner = Fields(fields.source, given, fields.problems)
    width = settings.get("attention.head_width") or settings["width"] // settings["attention.heads"]
    turned = int(width * min(1.0, inner.number("partial_rotary_factor", share(fields))))
    if (turned < 2 or turned % 2) and not fields.problems:
        fields.problems.append(f"the share that turns is {turned} of {width} values of a head; it must be even")
    return {
        "attention.rotary_base": inner.number("rope_theta", fields.number(base, 10_000.0)),
        "attention.rotary_width": None if turned == width else turned,
        "attention.rotary_scaling": _read_scaling(fields, inner),
    }


def _read_scaling(fields: Fields, given: Fields) -> dict[str, Any] | None:
    kind = given.values.get("rope_type", given.values.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        fields.problems.append(f"rope_type={shown(kind)} is not supported; linnet has default, linear, llama3")
        return None
    if kind == "llama3" and given.values.get(TRAINED_CONTEXT) is None:
        given = Fields(
            given.source, {**given.values, TRAINED_CONTEXT: fields.values.get("max_position_embeddings")}
        )
        given.problems = fields.problems
    return {"kind": kind, **read_keys(given, SCALING[: 1 if kind == "linear" else None])}


def written_rotary(config: ModelConfig) -> dict[str, Any]:
    """The keys of rotary positions; old readers look for the base beside them."""
    base, scaling = config.attention.rotary_base, config.attention.rotary_scaling
    if scaling is None:
        return {"rope_theta": base, "rope_parameters": {"rope_type": "default", "rope_theta": base}}
    keys = SCALING[: 1 if scaling.kind == "linear" else None]
    slowed = {"rope_type": scaling.kind, **{key.theirs: getattr(scaling, key.ours) for key in keys}}
    return {"rope_theta": base, "rope_parameters": {**slowed, "rope_theta": base}, "rope_scaling": slowed}


# --- the families ----------------------------------------------------------------------------------


def _head_width(default: int | None) -> Key:
    return Key("head_dim", "attention.head_width", default=default)


def _tied(default: bool) -> Key:
    return Key("tie_word_embeddings", "head.tied", "flag", default)


BIAS = Key("attention_bias", "attention.bias", "flag", False)


def _refuse_windows(fields: Fields, settings: dict[str, Any]) -> None:
    """Windows of Qwen, which are switched off unless a layer is named."""
    kinds = fields.texts("layer_types", [])
    if strange := sorted(set(kinds) - {"full_attention"}):
        fields.problems.append(f"layer_types has {', '.join(strange)[:60]}, which is not supported")


def _refuse_short_window(fields: Fields, settings: dict[str, Any]) -> None:
    """Attention to the last few tokens only is that to all of them where the context is no longer."""
    if fields.values.get("sliding_window", 4096) is None:
        return
    window = fields.integer("sliding_window", 4096)
    if window < settings["context"] and not fields.problems:
        fields.problems.append(
            f"sliding_window={window} is less than max_position_embeddings={settings['context']}; "
            "attention to a window is not supported"
        )


def _scale_embedding(fields: Fields, settings: dict[str, Any]) -> None:
    settings["embedding_scale"] = settings["width"] ** 0.5


def _modern(name: str, title: str, *keys: Key, **further: Any) -> Family:
    """A family of rotary positions and RMS norms; keys of the same setting replace the usual ones."""
    known = {key.ours: key for key in (*MODERN, *keys)}
    chosen = {"settings": MODERN_SETTINGS, "names": MODERN_NAMES, **further}
    return Family(name, title, f"{title}ForCausalLM", tuple(known.values()), **chosen)


LLAMA = _modern(
    "llama",
    "Llama",
    _head_width(None),
    BIAS,
    Key("mlp_bias", "feedforward.bias", "flag", False),
    _tied(False),
    supported={"rope_interleaved": (None, False)},
    rotary=("rope_theta", lambda fields: fields.number("partial_rotary_factor", 1.0)),
)
MISTRAL = _modern("mistral", "Mistral", _head_width(None), _tied(False), further=_refuse_short_window)
WINDOWED: Mapping[str, Any] = {
    "supported": {"use_sliding_window": (None, False)},
    "further": _refuse_windows,
    "always": {"use_sliding_window": False},
}
BIASED, NORMED = MODERN_SETTINGS | {"attention.bias": "qkv"}, MODERN_SETTINGS | {"attention.qk_norm": True}
QWEN2 = _modern("qwen2", "Qwen2", _head_width(None), _tied(False), settings=BIASED, **WINDOWED)
QWEN3 = _modern("qwen3", "Qwen3", _head_width(128), BIAS, _tied(False), settings=NORMED, **WINDOWED)
GEMMA = _modern(
    "gemma",
    "Gemma",
    Key("hidden_act", "feedforward.kind", GATED, "gelu_pytorch_tanh"),
    _head_width(256),
    _tied(True),
    names=GEMMA_NAMES,
    supported={"attention_bias": (None, False), "use_bidirectional_attention": (None, False)},
    further=_scale_embedding,
)
GPT2 = Family(
    "gpt2",
    "GPT-2",
    "GPT2LMHeadModel",
    (
        Key("vocab_size", "vocabulary"),
        Key("n_positions", "context", default=1024),
        Key("n_embd", "width"),
        Key("n_layer", "depth"),
        Key("n_head", "attention.heads"),
        Key("activation_function", "feedforward.kind", PLAIN, "gelu_new"),
        Key("n_inner", "feedforward.width", default=None),
        Key("layer_norm_epsilon", "norm.eps", "number", 1e-5),
        _tied(True),
    ),
    OF_GPT | {"positions": "learned", "attention.bias": True},
    GPT2_NAMES,
    {
        "scale_attn_weights": (None, True),
        "scale_attn_by_inverse_layer_idx": (None, False),
        "add_cross_attention": (None, False),
    },
    rotary=None,
)
GPT_NEOX = Family(
    "gpt_neox",
    "GPT-NeoX",
    "GPTNeoXForCausalLM",
    (
        *(key for key in MODERN if key.theirs not in ("rms_norm_eps", "hidden_act", "num_key_value_heads")),
        Key("hidden_act", "feedforward.kind", PLAIN, "gelu"),
        Key("layer_norm_eps", "norm.eps", "number", 1e-5),
        Key("attention_bias", "attention.bias", "flag", True),
        Key("use_parallel_residual", "parallel", "flag", True),
        _tied(False),
    ),
    OF_GPT | {"positions": "rotary"},
    NEOX_NAMES,
    rotary=("rotary_emb_base", lambda fields: fields.number("rotary_pct", 0.25)),
)
FAMILIES = {family.name: family for family in (GEMMA, GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3)}


def read_config(tree: Mapping[str, Any], source: Path | str) -> tuple[Family, ModelConfig]:
    """The family and the settings that a config.json stands for; refuses with all that stands in the way."""
    name, known = tree.get("model_type"), ", ".join(FAMILIES)
    if not isinstance(name, str):
        raise BadInput(f"{source} has no model_type; linnet reads {known}")
    if name not in FAMILIES:
        close = nearest(name[:60], FAMILIES)
        hint = close if "did you mean" in close else f"; linnet reads {known}"
        raise BadInput(f'{source}: model_type "{name[:60]}" is unknown here{hint}')
    return FAMILIES[name], FAMILIES[name].read(Fields(str(source), tree))


def family_for(config: ModelConfig) -> Family:
    """The family in which this model can be written; refuses with everything in which it is no such model."""
    marks = {
        QWEN3: config.attention.qk_norm,
        QWEN2: config.attention.bias == "qkv",
        GEMMA: config.embedding_scale != 1,
        LLAMA: True,
    }
    family = next(family for family, here in marks.items() if here)
    refuse(family.obstacles(config), f"a Hugging Face folder of the family {family.architecture}")
    return family
