"""The systems that `linnet bench train` lets take turns, each in a process of its own.

All of them start from the same weights, which a seed settles, and read the same rows.
Legend: B = rows, T = tokens, N = B x T, W = width, H = heads, D = head width.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain_gpt import plain_copy
from bench.processes import Answer, Apart, peak_megabytes
from linnet.data import Batch
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.tokens import decoder
from linnet.errors import RunFailed
from linnet.exchange.hf import shape_json
from linnet.exchange.layouts import give
from linnet.model.attention import BLOCK
from linnet.model.config import ModelConfig
from linnet.training.allocator import keep_freed_memory
from linnet.training.distributed import Processes
from linnet.training.learner import DTYPES, Learner, autocast
from linnet.training.run import Run

Step = Callable[[], Tensor]
Kind = Literal["linnet", "plain", "llama", "products"]


@dataclass(frozen=True)
class System:
    """Who trains, and how."""

    name: str
    kind: Kind
    precision: str = "float32"
    compiled: bool = False
    attention: str = "sdpa"  # of transformers: sdpa or eager
    keeping: bool = True  # tell glibc to keep freed memory


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


class PlainTrainer:
    """The usual loop around a module that gives a loss: fused AdamW, clipping, nothing else."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str, compiled: bool) -> None:
        self.model = model.to(device)
        self.device, self.precision = device, precision
        self.optim = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        if compiled:
            self.model.compile()

    def step(self, ids: Tensor, targets: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            loss = self.model(ids.to(self.device), targets.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optim.step()
        self.optim.zero_grad(set_to_none=True)
        return loss.detach()


class Llama(nn.Module):
    """The Llama of transformers with the weights of one of our models, as a module that gives a loss."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], attention: str) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        said = shape_json(config, "llama") | {"use_cache": False, "attn_implementation": attention}
        self.llama = LlamaForCausalLM(LlamaConfig(**said))
        named = {name: value.clone() for name, value in give(weights, "llama", config)}
        left = self.llama.load_state_dict(named, strict=False)
        if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
            raise RunFailed(f"transformers' Llama has other weights than ours: {left}")

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        logits = self.llama(input_ids=ids).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def matrix_products(config: ModelConfig, rows: int, dtype: torch.dtype, device: str) -> Step:
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
    if len(spans) < 2 or tokens < 2 * BLOCK:
        spans = [(0, tokens)]
    q = torch.randn(rows * heads, tokens, width, device=device).to(dtype)

    def step() -> Tensor:
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
        return torch.zeros(())

    return step


@dataclass(frozen=True)
class Ready:
    """What a process says of its system before it takes turns."""

    loss: float | None  # of the first batch, in float32, before any step
    parameters: int


@dataclass(frozen=True)
class Took:
    """One step by the clock, and by the processor: the second hardly sees what else the machine does."""

    seconds: float
    processor: float


def system(asked: System, run: Run, batch: Batch) -> tuple[Ready, Step]:
    """The first loss and the step of this system, from the weights that the run's seed gives."""
    device = torch.device(run.device)
    if asked.kind == "products":
        dtype = DTYPES.get(asked.precision, torch.float32)
        return Ready(None, 0), matrix_products(cast(ModelConfig, run.model), batch.rows, dtype, run.device)
    training = run.training.model_copy(update={"compile": "on" if asked.compiled else "off"})
    run = run.model_copy(update={"precision": asked.precision, "training": training})
    ours = Learner(run, ArithmeticData().codec(), device, Processes())
    model = decoder(ours.network)
    if asked.kind == "linnet":
        return of_linnet(ours, batch)
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    peer = plain_copy(model) if asked.kind == "plain" else Llama(model.config, weights, asked.attention)
    return of_a_peer(peer.to(device), asked, batch, device)


def of_linnet(ours: Learner, batch: Batch) -> tuple[Ready, Step]:
    with torch.no_grad():
        model = decoder(ours.network)
        hidden = model(batch["ids"].to(ours.device)).hidden
        loss = float(model.head.nll(hidden, batch["next.ids"].to(ours.device)).mean())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Ready(loss, parameters), lambda: ours.step(batch, 0, 1).loss


def of_a_peer(model: nn.Module, asked: System, batch: Batch, device: torch.device) -> tuple[Ready, Step]:
    with torch.no_grad():
        loss = float(model(batch["ids"].to(device), batch["next.ids"].to(device)))
    trainer = PlainTrainer(model, device, asked.precision, asked.compiled)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Ready(loss, parameters), lambda: trainer.step(batch["ids"], batch["next.ids"])


def at_its_place(asked: System, run: Run, batch: Batch) -> Answer:
    """This system in the process that it works in: it is asked whether it is ready, for a step, for its memory."""
    if asked.keeping:
        keep_freed_memory()
    torch.set_num_threads(run.threads)
    ready, step = system(asked, run, batch)
    wait = torch.cuda.synchronize if run.device == "cuda" else lambda: None

    def timed() -> Took:
        wait()
        began, worked = time.perf_counter(), time.process_time()
        step()
        wait()
        return Took(time.perf_counter() - began, time.process_time() - worked)

    answers = {"ready": lambda: ready, "step": timed, "peak": lambda: peak_megabytes(run.device)}
    return lambda question: answers[question]()


class Peer(Apart):
    """A system at work in its process, seen from outside."""

    def __init__(self, asked: System, run: Run, batch: Batch) -> None:
        super().__init__(asked.name, functools.partial(at_its_place, asked, run, batch))
        self.ready: Ready = self.ask("ready")

    def step(self) -> Took:
        took: Took = self.ask("step")
        return took

    def peak(self) -> float:
        """The megabytes that it needed."""
        return float(self.ask("peak"))


@contextmanager
def at_work(systems: list[System], run: Run, batch: Batch) -> Iterator[dict[str, Peer]]:
    """All of these, started one after the other; none survives the block."""
    peers: dict[str, Peer] = {}
    try:
        for asked in systems:
            peers[asked.name] = Peer(asked, run, batch)
        yield peers
    finally:
        for peer in peers.values():
            peer.close()
