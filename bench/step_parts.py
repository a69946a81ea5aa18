"""Where a compiled training step goes: products, what the compiler fused between them, the optimiser, the rest.

    python -m bench.step_parts [--batch 16] [--context 128] [--dropout 0] [--precision bfloat16] [--top 8]

Milliseconds of a step in the mean of a few, with the kernels that take longest. The profiler itself costs some
per cent of a step. Stop other work first.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping

import torch
import torch._inductor.config as inductor
from torch.profiler import ProfilerActivity, profile

from bench.training import Shape, random_batch
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.machine import keep_freed_memory, one_line
from linnet.training.distributed import Processes
from linnet.training.learner import Learner

STEPS = 3
FUSED = "graph_"  # how kernels of the compiler are called in a profile
PARTS = {
    "aten::mm": "products",
    "aten::addmm": "products",
    "aten::bmm": "products of attention",
    "aten::_fused_adamw_": "optimiser",
    "aten::linalg_vector_norm": "norm of gradients and clipping",
    "aten::mul_": "norm of gradients and clipping",
}


def learner(options: argparse.Namespace) -> Learner:
    run = Shape(batch=options.batch, context=options.context).run(options.precision, "on")
    model = run.model.model_copy(update={"dropout": options.dropout})
    return Learner(
        run.model_copy(update={"model": model}), ArithmeticData().codec(), torch.device("cpu"), Processes()
    )


def milliseconds(ours: Learner, options: argparse.Namespace) -> dict[str, float]:
    """Of a step, by the names of a profile."""
    batch = random_batch(Shape(batch=options.batch, context=options.context))
    for _ in range(3):
        ours.step(batch, 0, 1)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(STEPS):
            ours.step(batch, 0, 1)
    return {event.key: event.self_cpu_time_total / 1e3 / STEPS for event in watched.key_averages()}


def longest(spent: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(spent.items(), key=lambda pair: -pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--top", type=int, default=8)
    options = parser.parse_args()
    keep_freed_memory()
    inductor.cpp.enable_kernel_profile = True
    found = milliseconds(learner(options), options)
    parts: defaultdict[str, float] = defaultdict(float)
    for name, took in found.items():
        fused = "fused by the compiler" if name.startswith(FUSED) else "the rest"
        parts[PARTS.get(name, fused)] += took
    print(one_line())
    print(f"{sum(parts.values()):8.1f} ms  a step")
    for part, took in longest(parts):
        print(f"{took:8.1f}     {part}")
    print("the longest kernels of the compiler, a step:")
    kernels = {name: took for name, took in found.items() if name.startswith(FUSED)}
    for name, took in longest(kernels)[: options.top]:
        print(f"{took:8.1f}     {name}")


if __name__ == "__main__":
    main()
