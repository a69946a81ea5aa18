"""What makes a search faster, one change at a time: fewer rollouts, fewer tokens, a cache, early stop, batches.

The work is that of a report which named a speed-up of 5 to 10: 30 rollouts of 250 tokens became 10 of 50. Slow
arms are measured at three lengths of the text; a parabola through these gives the time of each token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from bench.decoding_systems import random_model
from bench.search import Work, grown, step_of
from bench.search_naive import logits_of
from bench.training import Shape
from linnet.decoding.runner import Runner
from linnet.machine import one_line
from linnet.model.contract import evaluating
from linnet.records import BenchRecord

PROMPT, ROLLOUTS, TOKENS = 64, 30, 250
FEWER_ROLLOUTS, FEWER_TOKENS = 10, 50
NAIVE_TOKENS = 170  # that are measured at each of three lengths: more than 500 together
ENDING = 0.01  # the probability of an end token after each token, where texts end early
SECONDS = 5.0  # of each search where models of three sizes are compared

Take = Callable[[int], float]  # seconds of a step at this length of the text


def of_shape(shape: Shape) -> tuple[torch.nn.Module, list[int]]:
    model = random_model(shape)
    return model, Work(PROMPT, ROLLOUTS, TOKENS).ids(shape.vocabulary)


def naive_seconds(shape: Shape) -> Take:
    """Of one token: the whole text through the model, one row."""
    model, prompt = of_shape(shape)
    ask = logits_of(model, model.head)  # type: ignore[arg-type]
    return lambda length: per_call(lambda: ask([*prompt, *([7] * (length - PROMPT))]), NAIVE_TOKENS)


def batched_seconds(shape: Shape, rows: int) -> Take:
    """Of one token of all rollouts: all whole texts in one batch, without a cache."""
    model, prompt = of_shape(shape)

    def take(length: int) -> float:
        ids = torch.tensor([[*prompt, *([7] * (length - PROMPT))]] * rows)
        with evaluating(model):
            return per_call(lambda: model.head(model(ids).hidden[:, -1]), 1)  # type: ignore[operator]

    return take


def cached_seconds(shape: Shape) -> Take:
    """Of one token: one row with its keys and values."""
    model, prompt = of_shape(shape)
    runner = Runner(model)  # type: ignore[arg-type]

    def take(length: int) -> float:
        with evaluating(model):
            _, state = runner.prefill([[*prompt, *([7] * (length - PROMPT))]])
            states = [state.reserve(NAIVE_TOKENS + 1)]

            def step() -> None:
                logits, after = runner.step(states.pop(), torch.tensor([7]))
                logits.float().softmax(-1).cumsum(-1)
                states.append(after)

            return per_call(step, NAIVE_TOKENS)

    return take


def per_call(work: Callable[[], object], calls: int) -> float:
    work()
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


def integral(take: Take, tokens: int, ending: float = 0.0) -> float:
    """Seconds of one rollout of so many tokens; where texts may end, a token counts by how many texts reach it."""
    lengths = (PROMPT, PROMPT + tokens // 2, PROMPT + tokens)
    curve = np.polyfit(lengths, [take(length) for length in lengths], 2)
    reached = (1 - ending) ** np.arange(tokens)
    return float((np.polyval(curve, PROMPT + np.arange(tokens)) * reached).sum())


def search_seconds(shape: Shape, rollouts: int, tokens: int, ends: Sequence[int] = ()) -> float:
    """Ours, all of it."""
    step = step_of(shape, "float32", tokens, ends)
    work = Work(PROMPT, rollouts, tokens, rollouts)
    grown(step, Work(PROMPT, rollouts, 8, rollouts), shape.vocabulary)
    began = time.perf_counter()
    grown(step, work, shape.vocabulary)
    return time.perf_counter() - began


def ending_tokens(shape: Shape) -> list[int]:
    """Tokens that end a text with about the probability `ENDING` in a model of random weights."""
    return list(range(int(ENDING * shape.vocabulary)))


def bench_stages(shape: Shape, threads: int) -> Iterator[BenchRecord]:
    """A record for each change, over the naive search of 30 rollouts of 250 tokens."""
    torch.set_num_threads(threads)
    naive, cached, batched = naive_seconds(shape), cached_seconds(shape), batched_seconds(shape, ROLLOUTS)
    whole, short = integral(naive, TOKENS), integral(naive, FEWER_TOKENS)
    ends = ending_tokens(shape)
    arms = {
        "naive, 30 x 250": ROLLOUTS * whole,
        "fewer rollouts alone, 10 x 250": FEWER_ROLLOUTS * whole,
        "fewer tokens alone, 30 x 50": ROLLOUTS * short,
        "both, 10 x 50: what the report calls its speed-up": FEWER_ROLLOUTS * short,
        "a cache alone, 30 x 250": ROLLOUTS * integral(cached, TOKENS),
        "early stop alone, 30 x 250, 1 % a token": ROLLOUTS * integral(naive, TOKENS, ENDING),
        "one batch alone, 30 x 250": integral(batched, TOKENS),
        "ours, cache and batch, 30 x 250": search_seconds(shape, ROLLOUTS, TOKENS),
        "ours and early stop, 30 x 250": search_seconds(shape, ROLLOUTS, TOKENS, ends),
        "ours, 10 x 50": search_seconds(shape, FEWER_ROLLOUTS, FEWER_TOKENS),
        "ours and early stop, 10 x 50": search_seconds(shape, FEWER_ROLLOUTS, FEWER_TOKENS, ends),
    }
    first = next(iter(arms.values()))
    for name, seconds in arms.items():
        yield BenchRecord(
            name=f"stages {shape.depth}x{shape.width}: {name}",
            ours=seconds,
            peers={"naive, 30 x 250": first},
            ratios={"naive, 30 x 250": first / seconds},
            unit="s",
            n=1,
            machine=one_line(),
            note=(
                "the ratio says how many times as fast; arms without our search are the sum over tokens of a "
                "parabola through the seconds of a token at three lengths"
            ),
        )


def bench_sizes(threads: int) -> Iterator[BenchRecord]:
    """Rollouts of 50 tokens in equal seconds, of models of three sizes."""
    torch.set_num_threads(threads)
    for depth, width, heads, vocabulary in ((4, 192, 6, 4096), (6, 288, 6, 32_000), (8, 512, 8, 32_000)):
        shape = Shape(depth, width, heads=heads, vocabulary=vocabulary, context=512)
        step = step_of(shape, "float32", FEWER_TOKENS)
        grown(step, Work(PROMPT, 64, 8), vocabulary)
        began, rollouts = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < SECONDS:
            grown(step, Work(PROMPT, 64, FEWER_TOKENS), vocabulary)
            rollouts += 64
        naive = integral(naive_seconds(shape), FEWER_TOKENS)
        ours = rollouts / spent * SECONDS
        yield BenchRecord(
            name=f"sizes {depth}x{width}, vocabulary {vocabulary:,}: rollouts of 50 tokens in {SECONDS:g} s",
            ours=ours,
            peers={"loop": SECONDS / naive},
            ratios={"loop": ours * naive / SECONDS},
            unit="rollouts",
            n=rollouts,
            machine=one_line(),
            note="whole searches of 64 rollouts; the loop by its seconds of a token at three lengths",
        )
