"""`linnet bench train`: tokens/s of our training step and of the peers, in turn, on the same rows and weights.

Before anything is timed, ours and the peers must give the same loss for the same weights. Then each system moves
its own copy; the steps alternate, so a machine that drifts drifts for all of them.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linnet.benchmarks.machine import matmul_flops, one_line
from linnet.benchmarks.plain_gpt import plain_copy
from linnet.data import Batch
from linnet.domains.arithmetic import ArithmeticData
from linnet.errors import BadInput, RunFailed
from linnet.model.config import AttentionConfig, ModelConfig
from linnet.model.costs import costs
from linnet.records import BenchRecord
from linnet.training.allocator import keep_freed_memory
from linnet.training.distributed import Processes
from linnet.training.learner import Learner, autocast
from linnet.training.resolve import settle
from linnet.training.run import OptimConfig, Run, TrainingConfig

TOLERANCE = 2e-3  # nats between ours and a peer on the same weights, both in float32


@dataclass(frozen=True)
class Shape:
    """What is trained: `6x512` is depth x width."""

    depth: int = 6
    width: int = 512
    heads: int = 8
    vocabulary: int = 16_000
    batch: int = 16
    context: int = 128

    @classmethod
    def parse(cls, text: str, **sizes: int) -> Shape:
        depth, cross, width = text.partition("x")
        if not cross or not depth.isdigit() or not width.isdigit():
            raise BadInput(f'a shape has the form 6x512 (depth x width), and "{text}" has not')
        return cls(int(depth), int(width), **sizes)

    @property
    def name(self) -> str:
        return f"{self.depth}x{self.width}, {self.batch} x {self.context}"

    def run(self, precision: str, compile: str) -> Run:
        model = ModelConfig(
            vocabulary=self.vocabulary,
            context=self.context,
            width=self.width,
            depth=self.depth,
            attention=AttentionConfig(heads=self.heads),
        )
        training: dict[str, Any] = {"steps": 1, "batch": self.batch, "compile": compile}
        return settle(
            Run.model_validate(
                {
                    "recipe": "bench",
                    "precision": precision,
                    "data": ArithmeticData(),
                    "model": model,
                    "optim": OptimConfig(),
                    "training": TrainingConfig.model_validate(training),
                }
            )
        )


def random_batch(shape: Shape, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, shape.vocabulary, (shape.batch, shape.context + 1), generator=generator)
    lengths = torch.full((shape.batch,), shape.context)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(shape.batch, shape.context), lengths, None, {})


Step = Callable[[], Tensor]


class PlainTrainer:
    """The usual loop around the plain GPT: fused AdamW, clipping, nothing else."""

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


def time_in_turn(steps: dict[str, Step], repeats: int, wait: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of each system in each turn; they take turns, after two unmeasured steps each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            wait()
            began = time.perf_counter()
            step()
            wait()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def times_faster(seconds: dict[str, list[float]], peer: str) -> list[float]:
    """How many times as fast as this peer ours was, turn by turn, in ascending order."""
    return sorted(theirs / mine for mine, theirs in zip(seconds["linnet"], seconds[peer], strict=True))


def bench_train(shape: Shape, *, precision: str = "auto", compile: str = "off", repeats: int = 7) -> BenchRecord:
    """Ours at this precision against the plain GPT in float32, and at the same precision where that differs."""
    kept = keep_freed_memory()
    run = shape.run(precision, compile)
    device = torch.device(run.device)
    torch.set_num_threads(run.threads)
    ours = Learner(run, device, Processes())
    batch = random_batch(shape)
    agree(ours, batch, device)
    plain = {"plain fp32 eager": ("float32", False)}
    if run.precision != "float32":
        plain[f"plain {run.precision} compiled"] = (run.precision, True)
    steps: dict[str, Step] = {"linnet": lambda: ours.step(batch, 0, 1).loss}
    for name, (number, compiled) in plain.items():
        trainer = PlainTrainer(plain_copy(ours.model), device, number, compiled)
        steps[name] = functools.partial(trainer.step, batch.ids, batch.targets)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = time_in_turn(steps, repeats, wait)
    tokens = shape.batch * shape.context
    speeds = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    mine = speeds.pop("linnet")
    ratios = {name: times_faster(seconds, name) for name in speeds}
    spread = "; ".join(f"{name}: ratios from {found[0]:.2f} to {found[-1]:.2f}" for name, found in ratios.items())
    peak = matmul_flops(run.precision, device.type)
    share = "" if peak is None else f", {mine * training_flops(ours) / peak:.0%} of the measured matmul peak"
    return BenchRecord(
        name=f"train {shape.name}, {run.precision}, compile {compile}",
        ours=mine,
        peers=dict(speeds),
        ratios={name: statistics.median(found) for name, found in ratios.items()},
        unit="tokens/s",
        n=repeats,
        machine=one_line(),
        note=f"freed memory {'kept' if kept else 'not kept'} in all systems{share}; {spread}",
    )


def training_flops(learner: Learner) -> float:
    return 3.0 * costs(learner.model.config).flops_per_token


def agree(ours: Learner, batch: Batch, device: torch.device) -> None:
    """Refuse to time systems that do not compute the same."""
    plain = plain_copy(ours.model).to(device)
    with torch.no_grad():
        hidden = ours.model(batch.ids.to(device)).hidden
        mine = ours.model.head.nll(hidden, batch.targets.to(device)).mean()
        theirs = plain(batch.ids.to(device), batch.targets.to(device))
    if abs(float(mine - theirs)) > TOLERANCE:
        losses = f"ours gives {float(mine):.5f} nats and the plain GPT {float(theirs):.5f}"
        raise RunFailed(f"{losses}: nothing is timed")
