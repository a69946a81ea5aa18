"""The systems that `linnet bench train` compares, each built in a process of its own.

All of them start from the same weights, which a seed settles, and read the same rows.
Legend: B = rows, T = tokens, N = B x T, W = width, H = heads, D = head width.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain_gpt import NanoGpt, plain_copy
from bench.processes import Working
from linnet.data import Batch
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.tokens import decoder
from linnet.errors import RunFailed
from linnet.exchange.families import LLAMA
from linnet.exchange.tensors import written_tensors
from linnet.machine import PRECISIONS, autocast, graph_cache, keep_freed_memory, synchronize
from linnet.model.config import ModelConfig
from linnet.model.kernels import BLOCK
from linnet.model.model import Model
from linnet.training.distributed import Processes
from linnet.training.learner import Learner
from linnet.training.run import Run

EXACT_ROWS = 2  # that are compared in float32, without compiling
STEPS = 5  # the last of which the loss is compared
PARTS = {  # of a gradient, by what the parameters of ours, of the plain GPTs and of Llama are called
    "norms": r"norm|ln\d",
    "embedding": r"embed|tokens|positions",
    "attention": r"mixer|self_attn|\.(q|k|v|o|qkv|out)\.",
    "feedforward": r"feedforward|mlp|\.(gate|up|down)\.",
}


@dataclass(frozen=True)
class System:
    """Who trains, and how."""

    name: str
    kind: Literal["linnet", "plain", "nanogpt", "llama", "products"]
    precision: str = "float32"
    compiled: bool = False
    attention: str = "sdpa"  # of transformers: sdpa or eager
    keep_memory: bool = True  # tell glibc to keep freed memory


@dataclass(frozen=True)
class Gradient:
    """A loss, and the norm of its gradient in each part of the network."""

    loss: float
    norms: dict[str, float]

    @classmethod
    def of(cls, loss: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]) -> Gradient:
        squares = dict.fromkeys(PARTS, 0.0)
        for name, parameter in parameters:
            part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
            assert parameter.grad is not None, f"{name} has no gradient"
            squares[part] += float(parameter.grad.double().square().sum())
        return cls(float(loss), {part: square**0.5 for part, square in squares.items()})


@dataclass(frozen=True)
class Facts:
    """What systems that compute the same agree on."""

    parameters: int
    exact: Gradient  # of a few rows, in float32 and not compiled
    used: Gradient  # of the whole batch, as it is timed
    later: float  # the loss after some steps, as they are timed


@dataclass(frozen=True)
class Took:
    """One step by the clock, and by the processor: the second hardly sees what else the machine does."""

    seconds: float
    processor: float


class Trainer:
    """The usual loop around a module that gives a loss: fused AdamW, clipping, nothing else."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str, compiled: bool) -> None:
        self.model = model.to(device)
        self.device, self.precision = device, precision
        self.optim = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0, fused=True)
        if compiled:
            graph_cache()
            self.model.compile()

    def backward(self, batch: Batch) -> Tensor:
        with autocast(self.device, self.precision):
            loss: Tensor = self.model(batch["ids"].to(self.device), batch["next.ids"].to(self.device))
        loss.backward()
        return loss.detach()

    def step(self, batch: Batch) -> Tensor:
        loss = self.backward(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optim.step()
        self.optim.zero_grad(set_to_none=True)
        return loss


class Ours:
    """The same face of our learner. The run has a constant rate and the optimiser of `Trainer`."""

    def __init__(self, run: Run) -> None:
        self.learner = Learner(run, ArithmeticData().codec(), torch.device(run.device), Processes())
        self.model = decoder(self.learner.network)

    def backward(self, batch: Batch) -> Tensor:
        return self.learner.gradients(batch, 0)

    def step(self, batch: Batch) -> Tensor:
        return self.learner.step(batch, 0, 1).loss


class Llama(nn.Module):
    """The Llama of transformers with the weights of one of our models, as a module that gives a loss."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], attention: str) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = LLAMA.write(config) | {"use_cache": False, "attn_implementation": attention}
        self.llama = LlamaForCausalLM(LlamaConfig(**settings))
        named = {name: value.clone() for name, value in written_tensors(weights, LLAMA.names.entries(config))}
        left = self.llama.load_state_dict(named, strict=False)
        if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
            raise RunFailed(f"transformers' Llama has other weights than ours: {left}")

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        logits = self.llama(input_ids=ids).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def build(system: System, run: Run, batch: Batch) -> Working:
    """This system at work in its process: facts for the comparison, then one step a turn."""
    if system.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(run.threads)
    device = torch.device(run.device)
    if system.kind == "products":
        dtype = PRECISIONS.get(system.precision, torch.float32)
        return Working(
            None, clocked(matrix_products(cast(ModelConfig, run.model), batch.rows, dtype, run.device), run.device)
        )
    trainer, facts = prepared(system, run, batch, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Working(facts, clocked(lambda: trainer.step(batch), run.device), run.device)


def prepared(system: System, run: Run, batch: Batch, device: torch.device) -> tuple[Trainer | Ours, Facts]:
    """A trainer that has taken its first steps, and what it computed in them."""
    few = batch.slice(slice(EXACT_ROWS))
    ours = Ours(changed(run, "float32", compiled=False))
    mine = system.kind == "linnet"
    exact = ours if mine else Trainer(peer(system, ours.model), device, "float32", compiled=False)
    del ours
    first = gradient(exact, few)
    if mine:
        del exact
        trainer: Trainer | Ours = Ours(changed(run, system.precision, compiled=system.compiled))
    else:
        trainer = Trainer(exact.model, device, system.precision, system.compiled)
    used = gradient(trainer, batch)
    for _ in range(STEPS):
        trainer.step(batch)
    later = float(trainer.step(batch))
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return trainer, Facts(parameters, first, used, later)


def changed(run: Run, precision: str, *, compiled: bool) -> Run:
    training = run.training.model_copy(update={"compile": "on" if compiled else "off"})
    return run.model_copy(update={"precision": precision, "training": training})


def peer(system: System, ours: Model) -> nn.Module:
    """A module that gives a loss, with the weights of ours where it has the same architecture."""
    if system.kind == "nanogpt":
        return NanoGpt(ours.config)
    if system.kind == "plain":
        return plain_copy(ours)
    weights = {name: value.detach().cpu() for name, value in ours.state_dict().items()}
    return Llama(ours.config, weights, system.attention)


def gradient(trainer: Trainer | Ours, batch: Batch) -> Gradient:
    found = Gradient.of(trainer.backward(batch), trainer.model.named_parameters())
    trainer.model.zero_grad(set_to_none=True)
    return found


def clocked(step: Callable[[], object], device: str) -> Callable[[], Took]:
    def turn() -> Took:
        synchronize(device)
        began, worked = time.perf_counter(), time.process_time()
        step()
        synchronize(device)
        return Took(time.perf_counter() - began, time.process_time() - worked)

    return turn


def matrix_products(config: ModelConfig, rows: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """All matrix products of one training step and nothing else: forward, and both gradients of each."""
    tokens, heads, width = config.context, config.attention.heads, config.head_width
    mixing = (heads + 2 * config.kv_heads) * width, config.width
    up = config.feedforward_width * (2 if config.gated else 1), config.width
    down = config.width, config.feedforward_width
    shapes = [mixing, (config.width, heads * width), up, down] * config.depth
    shapes.append((config.vocabulary, config.width))
    made = {shape: torch.randn(shape, device=device).to(dtype) for shape in set(shapes)}
    sides = {size for shape in shapes for size in shape}
    flat = {size: torch.randn(rows * tokens, size, device=device).to(dtype) for size in sides}
    spans = [(first, min(first + BLOCK, tokens)) for first in range(0, tokens, BLOCK)]
    if tokens < 2 * BLOCK:
        spans = [(0, tokens)]
    q = torch.randn(rows * heads, tokens, width, device=device).to(dtype)

    def step() -> None:
        for out, into in shapes:
            weight, x, gradient = made[out, into], flat[into], flat[out]
            x @ weight.T
            gradient @ weight
            gradient.T @ x
        for _ in range(config.depth):
            for first, last in spans:
                part, seen = q[:, first:last], q[:, :last]
                scores = part @ seen.mT
                scores @ seen  # the mix, and below: gradients of queries, keys, patterns and values
                scores @ seen
                scores.mT @ part
                part @ seen.mT
                scores.mT @ part

    return step
