"""`linnet bench train`: tokens/s and memory of our training step and of the peers, from the same weights.

Before anything is timed, ours and each peer must give the same loss and the same gradient, in float32 and as they
are timed, and after a few steps the same loss again. Then they take turns (`bench.processes`).
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from bench.processes import Limit, installed, take_turns
from bench.training_systems import STEPS, Facts, Gradient, System, Took, build
from linnet.data import Batch
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.errors import BadInput, RunFailed
from linnet.machine import compiler_at_hand, matmul_flops, native_bfloat16, one_line
from linnet.model.config import ModelConfig
from linnet.model.costs import costs
from linnet.records import BenchRecord
from linnet.training.resolve import settle
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import Constant
from linnet.untrusted import mistake_text

EXACT = 2e-3  # between ours and a peer, both in float32: of nats, and as a share of the norms of a gradient
USED = 0.03  # the same as they are timed: rounding of bfloat16 moves small gradients by some per cent
WARM_UP = 1  # steps of each system that do not count, beside those of the comparison


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

    def model(self, **parts: Any) -> ModelConfig:
        """The settings of this model; a shape that no model can have is named with the reason."""
        try:
            return ModelConfig.model_validate(
                {
                    "vocabulary": self.vocabulary,
                    "context": self.context,
                    "width": self.width,
                    "depth": self.depth,
                    "attention": {"heads": self.heads},
                    **parts,
                }
            )
        except ValidationError as error:
            shape = f"{self.depth}x{self.width} with {self.heads} heads"
            raise BadInput(
                f"there is no model of the shape {shape}: {'; '.join(map(mistake_text, error.errors()))}"
            ) from None

    def run(self, precision: str, compile: str, threads: int = 0, device: str = "auto") -> Run:
        """A run whose steps are those of a plain AdamW at a constant rate."""
        training: dict[str, Any] = {"steps": 1, "batch": self.batch, "compile": compile}
        optim = OptimConfig(betas=(0.9, 0.999), weight_decay=0, schedule=Constant())
        return settle(
            Run.model_validate(
                {
                    "recipe": "bench",
                    "device": device,
                    "precision": precision,
                    "threads": threads,
                    "data": ArithmeticData(),
                    "model": self.model(),
                    "optim": optim,
                    "training": TrainingConfig.model_validate(training),
                }
            )
        )


def random_batch(shape: Shape, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, shape.vocabulary, (shape.batch, shape.context + 1), generator=generator)
    lengths = torch.full((shape.batch,), shape.context)
    weights = torch.ones(shape.batch, shape.context)
    return Batch({"ids": tokens[:, :-1], "next.ids": tokens[:, 1:], "weights": weights, "lengths": lengths})


def systems_of(run: Run, *, compiling: bool, llama: str) -> tuple[list[System], dict[str, str]]:
    """Ours and its peers on this machine, and who cannot take part; `llama` is best, none, sdpa or eager."""
    number, absent = run.precision, dict[str, str]()
    plain_bf16 = "plain bf16 compiled"
    systems = [
        System("linnet", "linnet", number, compiling),
        System("plain fp32 eager", "plain"),
        System("plain fp32 eager, untuned malloc", "plain", keep_memory=False),
        System(f"own matrix products, {number}", "products", number),
        System(plain_bf16, "plain", "bfloat16", compiled=True),
    ]
    if run.device != "cpu":
        del systems[2]  # of the same kind there
    native, compiler = native_bfloat16(run.device), compiler_at_hand(run.device)
    if not (native and compiler):
        systems.pop()
        missing = "are no bfloat16 instructions" if not native else "is no C++ compiler"
        absent[plain_bf16] = f"skipped: there {missing} here"
    if llama != "none" and not installed("transformers"):
        absent["transformers Llama"] = "not installed: pip install 'linnet-sequences[hf]'"
    elif llama != "none":
        kernels = (llama,) if llama != "best" else ("sdpa", "eager") if run.device == "cpu" else ("sdpa",)
        number = "bfloat16" if native else "float32"
        way = "compiled" if compiler else "not compiled"
        systems += [
            System(f"transformers Llama ({kernel}, {way}, {number})", "llama", number, compiler, kernel)
            for kernel in kernels
        ]
    return systems, absent


def check(facts: Mapping[str, Facts | None]) -> None:
    """Refuse to time systems that do not compute the same, or that are not of one size."""
    ours = facts["linnet"]
    assert ours is not None
    for name, other in facts.items():
        if other is None:
            continue
        if abs(other.parameters / ours.parameters - 1) > 0.01:
            raise RunFailed(
                f"ours has {ours.parameters:,} parameters and {name} {other.parameters:,}: nothing is timed"
            )
        differ = [
            *differences("in float32", ours.exact, other.exact, EXACT),
            *differences("as it is timed", ours.used, other.used, USED),
        ]
        if not abs(ours.later - other.later) <= USED * abs(ours.later):  # also where one of them is no number
            differ.append(f"the loss after {STEPS} steps is {ours.later:.4f} and {other.later:.4f}")
        if differ:
            raise RunFailed(f"ours and {name} differ from the same weights: {'; '.join(differ)}; nothing is timed")


def differences(when: str, ours: Gradient, other: Gradient, tolerance: float) -> Iterator[str]:
    """What is not equal within the tolerance, or no number."""
    if not abs(ours.loss - other.loss) <= tolerance:
        yield f"the loss {when} is {ours.loss:.5f} and {other.loss:.5f} nats"
    for part, norm in ours.norms.items():
        if not abs(norm - other.norms[part]) <= tolerance * norm:
            yield f"the norm of the gradient of {part} {when} is {norm:.4g} and {other.norms[part]:.4g}"


def times_faster(seconds: dict[str, list[float]], peer: str) -> list[float]:
    """How many times as fast as this peer ours was, turn by turn, in ascending order."""
    return sorted(theirs / mine for mine, theirs in zip(seconds["linnet"], seconds[peer], strict=False))


def processor_time_note(turns: Mapping[str, list[Took]]) -> str:
    """The ratios that a busy machine spoils less than those by the clock."""
    spent = {name: statistics.median(took.processor for took in taken) for name, taken in turns.items()}
    mine = spent.pop("linnet")
    ratios = ", ".join(f"{name} {theirs / mine:.2f}" for name, theirs in spent.items())
    return f"ratios in processor time ({mine:.2f} s a step of ours): {ratios}"


def bench_train(
    shape: Shape,
    *,
    precision: str = "auto",
    compile: str = "off",
    device: str = "auto",
    limit: float | None = None,
    repeats: int = 7,
    threads: int = 0,
    llama: str = "best",
) -> tuple[BenchRecord, BenchRecord]:
    """Speed and peak memory of ours at this precision beside the peers."""
    if llama not in ("best", "none", "sdpa", "eager"):
        raise BadInput(f'llama="{llama}" is none of best, none, sdpa and eager')
    clock = Limit(limit)
    run, batch = shape.run(precision, compile, threads, device), random_batch(shape)
    systems, absent = systems_of(run, compiling=compile == "on", llama=llama)
    makes = {system.name: functools.partial(build, system, run, batch) for system in systems}
    found = take_turns(makes, run.device, turns=repeats, warm_up=WARM_UP, limit=clock, check=check)
    absent |= found.absent
    seconds = {name: [took.seconds for took in taken] for name, taken in found.turns.items()}
    later = ", ".join(f"{name} {facts.later:.3f}" for name, facts in found.facts.items() if facts is not None)
    notes = [f"losses after {STEPS} steps: {later}", *(f"{name} {why}" for name, why in absent.items())]
    notes.append(peaks_note(run, shape, seconds))
    if run.device == "cpu":
        notes.append(processor_time_note(found.turns))
    speed = speed_record(shape, run, compile, seconds, list(absent), notes)
    return speed, memory_record(speed, found.peaks, list(absent), run.device != "cpu")


def speed_record(
    shape: Shape, run: Run, compile: str, seconds: dict[str, list[float]], absent: list[str], notes: list[str]
) -> BenchRecord:
    tokens = shape.batch * shape.context
    speeds = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    mine = speeds.pop("linnet")
    ratios = {name: times_faster(seconds, name) for name in speeds}
    spread = "; ".join(f"{name}: ratios from {found[0]:.2f} to {found[-1]:.2f}" for name, found in ratios.items())
    return BenchRecord(
        name=f"train {shape.name}, {run.precision}, compile {compile}",
        ours=mine,
        peers={**speeds, **dict.fromkeys(absent)},
        ratios={**{name: statistics.median(found) for name, found in ratios.items()}, **dict.fromkeys(absent)},
        unit="tokens/s",
        n=len(seconds["linnet"]),
        machine=one_line(),
        note="; ".join(text for text in (*notes, spread) if text),
    )


def memory_record(speed: BenchRecord, memory: dict[str, float], absent: list[str], on_gpu: bool) -> BenchRecord:
    """The peak of each process; a ratio below 1 means that ours needs less. Products alone are no peer here."""
    mine = memory["linnet"]
    peers = {name: value for name, value in memory.items() if name != "linnet" and "products" not in name}
    return BenchRecord(
        name=f"peak memory of {speed.name}",
        ours=mine,
        peers={**peers, **dict.fromkeys(absent)},
        ratios={**{name: mine / value for name, value in peers.items()}, **dict.fromkeys(absent)},
        unit="MB",
        n=1,
        machine=speed.machine,
        note="" if on_gpu else "of the whole process, with Python and its libraries",
    )


def peaks_note(run: Run, shape: Shape, seconds: dict[str, list[float]]) -> str:
    """The measured peaks of this machine, and which share of the one that applies our step reaches."""
    torch.set_num_threads(run.threads)
    found = {name: matmul_flops(name, run.device) for name in ("float32", "bfloat16")}
    peaks = ", ".join(f"{name} {peak / 1e9:,.1f} GFLOP/s" for name, peak in found.items() if peak is not None)
    mine = shape.batch * shape.context / statistics.median(seconds["linnet"])
    peak, flops = found.get(run.precision), 3.0 * costs(shape.model()).flops_per_token
    return f"measured matmul peaks: {peaks}{share_note(mine * flops, peak, run.precision)}"


def share_note(flops: float, peak: float | None, precision: str) -> str:
    """How near a step comes to the peak; products this small may run faster than those it is measured with."""
    if peak is None:
        return ""
    if flops > peak:
        return f"; ours is above the {precision} peak, so for this shape that peak is no bound"
    return f"; ours reaches {flops / peak:.0%} of the {precision} peak"
