"""`linnet bench train`: tokens/s and memory of our training step and of the peers, in turn, from the same weights.

Before anything is timed, ours and the peers must give the same loss. Then each system moves its own copy in its
own process; the steps alternate, so a machine that drifts drifts for all of them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import ValidationError

from bench.training_systems import Peer, System, Took, at_work, installed
from linnet.data import Batch
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.errors import BadInput, RunFailed
from linnet.exchange.families import mistakes
from linnet.machine import compiler_at_hand, matmul_flops, native_bfloat16, one_line
from linnet.model.config import ModelConfig
from linnet.model.costs import costs
from linnet.records import BenchRecord
from linnet.training.resolve import settle
from linnet.training.run import OptimConfig, Run, TrainingConfig

TOLERANCE = 2e-3  # nats between ours and a peer on the same weights, both in float32
WARM_UP = 2  # steps of each system that do not count
TRIAL = 3  # steps by which the settings of a peer are chosen


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
            raise BadInput(f"there is no model of the shape {shape}: {'; '.join(mistakes(error))}") from None

    def run(self, precision: str, compile: str, threads: int = 0) -> Run:
        training: dict[str, Any] = {"steps": 1, "batch": self.batch, "compile": compile}
        return settle(
            Run.model_validate(
                {
                    "recipe": "bench",
                    "precision": precision,
                    "threads": threads,
                    "data": ArithmeticData(),
                    "model": self.model(),
                    "optim": OptimConfig(),
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


@dataclass(frozen=True)
class Field:
    """Who takes part, who is tried out first, and who cannot, with the reason."""

    systems: list[System]
    llamas: list[System]
    absent: dict[str, str]


def field_of(run: Run, *, compiling: bool, llama: str) -> Field:
    """Ours and its peers on this machine; `llama` is best, none, sdpa or eager."""
    name, number = "linnet", run.precision
    systems = [
        System(name, "linnet", number, compiling),
        System("plain fp32 eager", "plain"),
        System("plain fp32 eager, untuned malloc", "plain", keeping=False),
        System(f"own matrix products, {number}", "products", number),
    ]
    absent: dict[str, str] = {}
    native = native_bfloat16(run.device)
    if not native:
        absent["plain bf16 compiled"] = "skipped: there are no bfloat16 instructions here"
    elif not compiler_at_hand(run.device):
        absent["plain bf16 compiled"] = "skipped: there is no C++ compiler here"
    else:
        systems.append(System("plain bf16 compiled", "plain", "bfloat16", compiled=True))
    if llama == "none":
        return Field(systems, [], absent)
    if not installed("transformers"):
        absent["transformers Llama"] = "not installed: pip install linnet[hf]"
        return Field(systems, [], absent)
    kernels = ("sdpa", "eager") if llama == "best" else (llama,)
    numbers = ("bfloat16",) if native else ("float32",)
    ways = (False, True) if llama == "best" and compiler_at_hand(run.device) else (False,)
    llamas = [
        System(
            f"transformers Llama ({kernel}, {'compiled' if way else 'not compiled'}, {one})",
            "llama",
            one,
            way,
            kernel,
        )
        for kernel in kernels
        for way in ways
        for one in numbers
    ]
    return Field(systems, llamas, absent)


def chosen_llama(llamas: list[System], run: Run, batch: Batch) -> tuple[System, str]:
    """The fastest setting of the peer by a short trial, and what the trial found."""
    if len(llamas) == 1:
        return llamas[0], ""
    found: dict[str, float] = {}
    for asked in llamas:
        with at_work([asked], run, batch) as peers:
            peer = peers[asked.name]
            for _ in range(WARM_UP):
                peer.step()
            found[asked.name] = min(peer.step().seconds for _ in range(TRIAL))
    best = min(llamas, key=lambda asked: found[asked.name])
    tokens = batch["ids"].numel()
    said = ", ".join(f"{name} {tokens / seconds:,.0f}" for name, seconds in found.items())
    return best, f"Llama's setting was chosen by a trial in tokens/s: {said}"


def time_in_turn(peers: dict[str, Peer], repeats: int) -> tuple[dict[str, Took], dict[str, list[Took]]]:
    """The first step of each, and each in every turn after the unmeasured ones."""
    first = {name: peer.step() for name, peer in peers.items()}
    turns: dict[str, list[Took]] = {name: [] for name in peers}
    for turn in range(repeats + WARM_UP - 1):
        for name, peer in peers.items():
            took = peer.step()
            if turn >= WARM_UP - 1:
                turns[name].append(took)
    return first, turns


def times_faster(seconds: dict[str, list[float]], peer: str) -> list[float]:
    """How many times as fast as this peer ours was, turn by turn, in ascending order."""
    return sorted(theirs / mine for mine, theirs in zip(seconds["linnet"], seconds[peer], strict=True))


def in_processor_time(turns: dict[str, list[Took]]) -> str:
    """The ratios that a busy machine spoils less than those by the clock."""
    spent = {name: statistics.median(took.processor for took in taken) for name, taken in turns.items()}
    mine = spent.pop("linnet")
    said = ", ".join(f"{name} {theirs / mine:.2f}" for name, theirs in spent.items())
    return f"ratios in processor time ({mine:.2f} s a step of ours): {said}"


def agree(peers: dict[str, Peer]) -> None:
    """Refuse to time systems that do not compute the same, or that are not of one size."""
    ours = peers["linnet"].ready
    assert ours.loss is not None
    for name, peer in peers.items():
        loss, parameters = peer.ready.loss, peer.ready.parameters
        if loss is None:
            continue
        if not abs(loss - ours.loss) <= TOLERANCE:
            said = f"ours gives {ours.loss:.5f} nats and {name} {loss:.5f}"
            raise RunFailed(f"{said} from the same weights: nothing is timed")
        if abs(parameters / ours.parameters - 1) > 0.01:
            raise RunFailed(f"ours has {ours.parameters:,} parameters and {name} {parameters:,}: nothing is timed")


def bench_train(
    shape: Shape,
    *,
    precision: str = "auto",
    compile: str = "off",
    repeats: int = 7,
    threads: int = 0,
    llama: str = "best",
) -> tuple[BenchRecord, BenchRecord]:
    """Speed and peak memory of ours at this precision beside the peers."""
    if llama not in ("best", "none", "sdpa", "eager"):
        raise BadInput(f'llama="{llama}" is none of best, none, sdpa and eager')
    run, batch = shape.run(precision, compile, threads), random_batch(shape)
    field = field_of(run, compiling=compile == "on", llama=llama)
    systems, said = list(field.systems), ""
    if field.llamas:
        best, said = chosen_llama(field.llamas, run, batch)
        systems.append(best)
    with at_work(systems, run, batch) as peers:
        agree(peers)
        first, turns = time_in_turn(peers, repeats)
        memory = {name: peer.peak() for name, peer in peers.items()}
    seconds = {name: [took.seconds for took in taken] for name, taken in turns.items()}
    facts = [said, *(f"{name} {why}" for name, why in field.absent.items()), peaks_in_words(run, shape, seconds)]
    if compile == "on":
        facts.append(f"our first step took {first['linnet'].seconds:.1f} s, compilation included")
    if run.device == "cpu":
        facts.append(in_processor_time(turns))
    speed = speed_record(shape, run, compile, seconds, list(field.absent), facts)
    return speed, memory_record(speed, memory, list(field.absent))


def speed_record(
    shape: Shape, run: Run, compile: str, seconds: dict[str, list[float]], absent: list[str], facts: list[str]
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
        note="; ".join(text for text in (*facts, spread) if text),
    )


def memory_record(speed: BenchRecord, memory: dict[str, float], absent: list[str]) -> BenchRecord:
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
        note="of the whole process, with Python and its libraries" if "cuda" not in speed.machine else "",
    )


def peaks_in_words(run: Run, shape: Shape, seconds: dict[str, list[float]]) -> str:
    """The measured peaks of this machine, and which share of the one that applies our step reaches."""
    torch.set_num_threads(run.threads)
    found = {name: matmul_flops(name, run.device) for name in ("float32", "bfloat16")}
    said = ", ".join(f"{name} {peak / 1e9:,.1f} GFLOP/s" for name, peak in found.items() if peak is not None)
    mine = shape.batch * shape.context / statistics.median(seconds["linnet"])
    peak, flops = found.get(run.precision), 3.0 * costs(cast(ModelConfig, run.model)).flops_per_token
    return f"measured matmul peaks: {said}{share_in_words(mine * flops, peak, run.precision)}"


def share_in_words(flops: float, peak: float | None, precision: str) -> str:
    """How near a step comes to the peak; products this small may run faster than those it is measured with."""
    if peak is None:
        return ""
    if flops > peak:
        return f"; ours is above the {precision} peak, so for this shape that peak is no bound"
    return f"; ours reaches {flops / peak:.0%} of the {precision} peak"
