"""What taps cost when nobody asks for them: training steps of the model and of a copy without taps, in turn.

    python bench/tap_cost.py [--repeats 40] [--depth 4] [--width 256]

Both start from the same weights and read the same rows, so their losses must stay equal to the last bit. That the
captured graphs are equal is a test (tests/test_taps.py); this shows that the clock agrees.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from linnet.benchmarks.machine import one_line
from linnet.benchmarks.tapless import tapless_model
from linnet.model.config import AttentionConfig, ModelConfig
from linnet.model.model import Model


def step(model: Model, ids: Tensor) -> float:
    hidden = model(ids[:, :-1]).hidden
    loss = model.head.loss(hidden, ids[:, 1:], torch.ones(ids[:, 1:].shape)) / ids[:, 1:].numel()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def seconds(work: Callable[[], float]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    asked = parser.parse_args()
    heads = AttentionConfig(heads=asked.width // 32)
    config = ModelConfig(vocabulary=1000, context=64, width=asked.width, depth=asked.depth, attention=heads)
    ids = torch.randint(0, config.vocabulary, (16, 65), generator=torch.Generator().manual_seed(0))
    with tapless_model() as (bare_class, cuts):
        tapped, bare = Model(config), bare_class(config)
        bare.load_state_dict(tapped.state_dict())
        assert step(tapped, ids) == step(bare, ids), "the two do not compute the same"
        ratios = []
        for turn in range(asked.repeats):
            order = [functools.partial(step, tapped, ids), functools.partial(step, bare, ids)]
            times = [seconds(work) for work in (order if turn % 2 == 0 else reversed(order))]
            ratios.append(times[0] / times[1] if turn % 2 == 0 else times[1] / times[0])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{one_line()}: {cuts} taps a source, {asked.repeats} turns")
    print(f"seconds with taps / without: median {middle:.4f}, quartiles {low:.4f} .. {high:.4f}")


if __name__ == "__main__":
    main()
