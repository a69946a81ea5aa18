"""What a model costs, computed from its settings: parameters, FLOPs, bytes of memory."""

from __future__ import annotations

from dataclasses import dataclass

from linnet.errors import BadInput
from linnet.model.config import IdColumn, ModelConfig, NetworkConfig, NumberColumn


@dataclass(frozen=True)
class Costs:
    """`flops_per_token` is one forward pass at a full context; training costs three times that."""

    parameters: int
    flops_per_token: int
    kv_bytes_per_token: int
    training_bytes: int
    context: int = 1  # steps of a row at most
    passes: int = 1  # readings of a row for one loss


def refuse_too_large(config: NetworkConfig) -> None:
    """A network whose weights alone take more than the memory of this machine is refused before it is made."""
    from linnet.machine import memory_bytes

    found, memory = config.costs(), memory_bytes()
    if found is not None and memory and 4 * found.parameters > memory:
        needed, there = (f"{size / 1e9:,.1f} GB" for size in (4 * found.parameters, memory))
        raise BadInput(
            f"{found.parameters:,} parameters take {needed}, and this machine has {there}: make the model smaller"
        )


def norm_parameters(config: ModelConfig, width: int) -> int:
    return 2 * width if config.norm.bias else width


def mixer_parameters(config: ModelConfig, mixer: str) -> tuple[int, int]:
    """(parameters, of which in matrices) of one mixer."""
    if mixer == "gru":
        matrices = 6 * config.width**2
        return matrices + 6 * config.width, matrices
    rows = (config.attention.heads + 2 * config.kv_heads) * config.head_width
    out = config.attention.heads * config.head_width
    matrices = config.width * (rows + out)
    biases = {False: 0, "qkv": rows, True: rows + config.width}[config.attention.bias]
    norms = 2 * norm_parameters(config, config.head_width) if config.attention.qk_norm else 0
    return matrices + biases + norms, matrices


def feedforward_parameters(config: ModelConfig) -> tuple[int, int]:
    up = config.feedforward_width * (2 if config.gated else 1)
    matrices = config.width * (up + config.feedforward_width)
    return matrices + (up + config.width if config.feedforward.bias else 0), matrices


def column_parameters(config: ModelConfig) -> int:
    """Of the columns beside the tokens: what they enter by, and their heads."""
    total = 0
    for column in config.columns.values():
        if isinstance(column, IdColumn):
            total += column.size * config.width + (column.size * (config.width + 1) if column.predicted else 0)
        else:
            total += (column.width + 1) * config.width + column.width * head_size(column) * (config.width + 1)
    return total


def head_size(column: NumberColumn) -> int:
    """Outputs for one number."""
    return {"none": 0, "mean": 1, "quantiles": len(column.quantiles), "bins": column.bins}[column.head]


def costs(config: ModelConfig, *, batch_tokens: int = 1, ema: bool = False, kv_bytes: int = 4) -> Costs:
    """The costs of this model; `batch_tokens` is how many tokens one micro-batch holds in training."""
    embedding = config.vocabulary * config.width
    parameters = embedding + column_parameters(config) + norm_parameters(config, config.width)
    parameters += config.context * config.width if config.positions == "learned" else 0
    parameters += (0 if config.head.tied else embedding) + (config.vocabulary if config.head.bias else 0)
    parameters += len(config.value_layers) * config.vocabulary * config.kv_heads * config.head_width
    flops = 2 * embedding
    kv = 0
    for mixer in config.mixers:
        mixing, mixing_matrices = mixer_parameters(config, mixer)
        feeding, feeding_matrices = feedforward_parameters(config)
        parameters += mixing + feeding + 2 * norm_parameters(config, config.width)
        flops += 2 * (mixing_matrices + feeding_matrices)
        if mixer == "attention":
            flops += 4 * config.attention.heads * config.head_width * config.context
            kv += 2 * config.kv_heads * config.head_width * kv_bytes
    # Weights, gradients and two optimiser moments in float32, averaged weights where they are kept.
    held = parameters * (20 if ema else 16)
    training = held + batch_tokens * activation_bytes(config)
    return Costs(parameters, flops, kv, training, config.context, config.loss.passes)


def activation_bytes(config: ModelConfig) -> int:
    """Bytes that one token keeps until its backward pass, in float32: an estimate, not a promise."""
    gates = 3 if config.gated else 2
    attention = 4 * config.head_width * config.attention.heads + 3 * config.attention.heads * config.context
    layer = 6 * config.width + attention + gates * config.feedforward_width
    return 4 * (config.depth * layer + 4 * config.width + min(config.vocabulary, 4 * config.width))
