"""How other people write these models down: what each key of a config.json means, family by family.

Reading collects everything that is wrong or has no counterpart here before it refuses. Writing is in `hf`, and
where the tensors go in `layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from linnet.errors import BadInput, nearest
from linnet.model.config import ModelConfig

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_python": "geglu"}
PLAIN = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


@dataclass
class Said:
    """The keys of a config.json, read with their types; `problems` holds what is wrong or cannot be expressed."""

    source: str
    tree: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.tree.get(key)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self._wrong(key, value, "a positive integer")
        return 1

    def number(self, key: str, default: float | None = None, tree: Mapping[str, Any] | None = None) -> float:
        value = (self.tree if tree is None else tree).get(key)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        self._wrong(key, value, "a positive number")
        return 1.0

    def switch(self, key: str, default: bool) -> bool:
        value = self.tree.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.problems.append(f"{key} is {value!r}, not true or false")
        return bool(value)

    def chosen(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """What linnet calls this choice."""
        value = self.tree.get(key, default)
        if isinstance(value, str) and value in known:
            return known[value]
        self.problems.append(f"{key}={value!r} cannot be expressed; linnet has {', '.join(known)}")
        return next(iter(known.values()))

    def complained(self, *keys: str) -> bool:
        """Whether one of these is known to be wrong, so that nothing can be said of what follows from it."""
        return any(problem.startswith(f"{key} is ") for problem in self.problems for key in keys)

    def _wrong(self, key: str, value: Any, right: str) -> None:
        self.problems.append(f"{key} is missing" if value is None else f"{key} is {value!r}, not {right}")

    def only(self, key: str, *accepted: Any) -> None:
        """Note a key whose value would change what the model computes."""
        if key in self.tree and self.tree[key] not in accepted:
            self.problems.append(f"{key}={self.tree[key]!r} cannot be expressed")


def llama(said: Said) -> dict[str, Any]:
    said.only("partial_rotary_factor", None, 1, 1.0)
    said.only("rope_interleaved", None, False)
    return _modern(said, head_width=None, qk_norm=False, biased=said.switch("mlp_bias", False))


def qwen3(said: Said) -> dict[str, Any]:
    said.only("use_sliding_window", None, False)
    kinds = said.tree.get("layer_types") or ()
    if strange := sorted({str(kind) for kind in kinds} - {"full_attention"}):
        said.problems.append(f"layer_types has {', '.join(strange)}, which cannot be expressed")
    return _modern(said, head_width=128, qk_norm=True, biased=False)


def _modern(said: Said, *, head_width: int | None, qk_norm: bool, biased: bool) -> dict[str, Any]:
    """Pre-norm with rms norms, rotary positions and a gated feed-forward."""
    width, heads = said.whole("hidden_size"), said.whole("num_attention_heads")
    turning = rotary(said)
    if turning.pop("share") != 1:
        said.problems.append("partial_rotary_factor cannot be expressed for this family")
    return {
        "vocabulary": said.whole("vocab_size"),
        "context": said.whole("max_position_embeddings", 2048),
        "width": width,
        "depth": said.whole("num_hidden_layers"),
        "positions": "rotary",
        "attention": {
            "heads": heads,
            "kv_heads": said.whole("num_key_value_heads", heads),
            "head_width": said.whole("head_dim", head_width or max(1, width // heads)),
            "qk_norm": qk_norm,
            "bias": said.switch("attention_bias", False),
            **turning,
        },
        "feedforward": {
            "kind": said.chosen("hidden_act", "silu", GATED),
            "width": said.whole("intermediate_size"),
            "bias": biased,
        },
        "norm": {"kind": "rms", "eps": said.number("rms_norm_eps", 1e-6)},
        "head": {"tied": said.switch("tie_word_embeddings", False)},
    }


def gpt2(said: Said) -> dict[str, Any]:
    said.only("scale_attn_weights", None, True)
    said.only("scale_attn_by_inverse_layer_idx", None, False)
    said.only("add_cross_attention", None, False)
    width, heads = said.whole("n_embd"), said.whole("n_head")
    return {
        "vocabulary": said.whole("vocab_size"),
        "context": said.whole("n_positions", 1024),
        "width": width,
        "depth": said.whole("n_layer"),
        "positions": "learned",
        "attention": {"heads": heads, "head_width": _even(said, "n_embd", width, heads), "bias": True},
        "feedforward": {
            "kind": said.chosen("activation_function", "gelu_new", PLAIN),
            "width": said.whole("n_inner", 4 * width),
            "bias": True,
        },
        "norm": {"kind": "layer", "bias": True, "eps": said.number("layer_norm_epsilon", 1e-5)},
        "head": {"tied": said.switch("tie_word_embeddings", True)},
    }


def gpt_neox(said: Said) -> dict[str, Any]:
    width, heads = said.whole("hidden_size"), said.whole("num_attention_heads")
    head_width = _even(said, "hidden_size", width, heads)
    turning = rotary(said, theta="rotary_emb_base", share=said.number("rotary_pct", 0.25))
    turned = int(head_width * turning.pop("share"))
    if (turned < 2 or turned % 2) and not said.complained("hidden_size", "num_attention_heads"):
        said.problems.append(f"the share that turns is {turned} of {head_width} values of a head; it must be even")
    return {
        "vocabulary": said.whole("vocab_size"),
        "context": said.whole("max_position_embeddings", 2048),
        "width": width,
        "depth": said.whole("num_hidden_layers"),
        "positions": "rotary",
        "attention": {
            "heads": heads,
            "head_width": head_width,
            "bias": said.switch("attention_bias", True),
            "rotary_width": None if turned == head_width else turned,
            **turning,
        },
        "feedforward": {
            "kind": said.chosen("hidden_act", "gelu", PLAIN),
            "width": said.whole("intermediate_size"),
            "bias": True,
        },
        "norm": {"kind": "layer", "bias": True, "eps": said.number("layer_norm_eps", 1e-5)},
        "head": {"tied": said.switch("tie_word_embeddings", False)},
        "parallel": said.switch("use_parallel_residual", True),
    }


def _even(said: Said, key: str, width: int, heads: int) -> int:
    if width % heads and not said.complained(key):
        said.problems.append(f"{key}={width} does not divide into {heads} heads")
    return max(1, width // heads)


def rotary(said: Said, theta: str = "rope_theta", share: float = 1.0) -> dict[str, Any]:
    """How queries and keys turn; newer files have `rope_parameters`, older ones `rope_scaling` beside a base."""
    given = said.tree.get("rope_parameters") or said.tree.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        said.problems.append("rope_parameters that differ between layers cannot be expressed")
        given = {}
    return {
        "rotary_base": said.number("rope_theta", said.number(theta, 10_000.0), given),
        "rotary_scaling": _scaling(said, given),
        "share": said.number("partial_rotary_factor", share, given),
    }


def _scaling(said: Said, given: Mapping[str, Any]) -> dict[str, Any] | None:
    match given.get("rope_type", given.get("type", "default")):
        case "default":
            return None
        case "linear":
            return {"kind": "linear", "factor": said.number("factor", tree=given)}
        case "llama3":
            trained = given.get("original_max_position_embeddings") or said.whole("max_position_embeddings")
            return {
                "kind": "llama3",
                "factor": said.number("factor", tree=given),
                "low": said.number("low_freq_factor", tree=given),
                "high": said.number("high_freq_factor", tree=given),
                "context": trained,
            }
        case kind:
            said.problems.append(f"rope_type={kind!r} cannot be expressed; linnet has default, linear, llama3")
            return None


READERS: Mapping[str, Callable[[Said], dict[str, Any]]] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "qwen3": qwen3,
}


def mistakes(error: ValidationError) -> list[str]:
    """What is wrong with the settings of a model, each with its key where it is about one."""
    found = []
    for mistake in error.errors():
        where = ".".join(map(str, mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        found.append(f"{where}: {message}" if where else message)
    return found


def config_of(tree: Mapping[str, Any], source: Path | str) -> tuple[str, ModelConfig]:
    """The family and the settings that a config.json stands for; refuses with all that stands in the way."""
    family = tree.get("model_type")
    known = ", ".join(READERS)
    if not isinstance(family, str):
        raise BadInput(f"{source} has no model_type; linnet reads {known}")
    if family not in READERS:
        close = nearest(family, READERS)
        hint = close if "did you mean" in close else f"; linnet reads {known}"
        raise BadInput(f'{source}: model_type "{family}" is unknown here{hint}')
    said = Said(str(source), tree)
    said.only("quantization_config", None)
    fields = READERS[family](said)
    if not said.problems:
        try:
            return family, ModelConfig.model_validate(fields)
        except ValidationError as error:
            said.problems += mistakes(error)
    raise BadInput(f"{source}: {'; '.join(said.problems)}")
