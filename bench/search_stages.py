"""What makes a search faster, one change at a time: fewer rollouts, fewer tokens, a cache, early stop, batches.

The work is that of a report which named a speed-up of 5 to 10: 30 rollouts of 250 tokens became 10 of 50. Slow
arms are measured at three lengths of the text; a parabola through these gives the time of each token. Times are
those of the processor, so that other work beside it changes little. A subject is one prompt of one model: `linnet
bench search --only stages` has one of random weights, `linnet bench stages` prompts of a trained run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.decoding_systems import random_model
from bench.search import Work, grown, random_runner, step_of
from bench.search_naive import logits_of
from bench.training import Shape
from linnet.decoding.products import packed
from linnet.decoding.runner import Columns, Runner
from linnet.machine import one_line
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.records import BenchRecord

PROMPT, ROLLOUTS, TOKENS = 64, 30, 250
FEWER_ROLLOUTS, FEWER_TOKENS = 10, 50
CALLS = 170  # that are measured at each of three lengths: more than 500 together
ENDING = 0.01  # the probability of an end token after each token, where texts of random weights end early
SECONDS = 5.0  # of each search where models of three sizes are compared
NAIVE = f"naive, {ROLLOUTS} x {TOKENS}"

Take = Callable[[int], float]  # seconds of a step at this length of the text


@dataclass(frozen=True)
class Subject:
    """One prompt of a model, the tokens that end its texts, and the share [TOKENS] of texts that get so far."""

    model: Model
    prompt: Sequence[int]
    ends: Sequence[int]
    reached: np.ndarray
    columns: Columns | None = None

    def text(self, length: int) -> list[int]:
        """The prompt and as many tokens as make this length."""
        return [*self.prompt, *([7] * (length - len(self.prompt)))]


@dataclass(frozen=True)
class Curve:
    """Seconds of a token by the length of the text before it: a parabola."""

    coefficients: np.ndarray
    prompt: int

    @classmethod
    def of(cls, take: Take, prompt: int, tokens: int = TOKENS) -> Curve:
        lengths = (prompt, prompt + tokens // 2, prompt + tokens)
        return cls(np.polyfit(lengths, [take(length) for length in lengths], 2), prompt)

    def rollout(self, tokens: int, reached: np.ndarray | None = None) -> float:
        """Seconds of one rollout; where texts may end, a token counts by the share of texts that reach it."""
        each = np.polyval(self.coefficients, self.prompt + np.arange(tokens))
        return float((each if reached is None else each * reached[:tokens]).sum())


def random_subject(shape: Shape) -> Subject:
    """Random weights; one token in a hundred ends a text."""
    ends = range(int(ENDING * shape.vocabulary))
    prompt = Work(PROMPT, ROLLOUTS, TOKENS).ids(shape.vocabulary)
    return Subject(random_model(shape), prompt, ends, (1 - ENDING) ** np.arange(TOKENS))


def naive_seconds(subject: Subject, rows: int = 1) -> Take:
    """Of one token of each row: the whole text through the model."""
    ask = logits_of(subject.model, subject.model.head, subject.columns, rows)
    return lambda length: per_call(lambda: ask(subject.text(length)), max(1, CALLS // rows**2))


def cached_seconds(subject: Subject) -> Take:
    """Of one token: one row with its keys and values."""
    runner = Runner(subject.model, columns=subject.columns)

    def take(length: int) -> float:
        known = subject.text(length)
        with evaluating(subject.model):
            _, state = runner.prefill([known])
            states = [state.reserve(CALLS + 1)]

            def step() -> None:
                logits, after = runner.step(states.pop(), torch.tensor([7]), before=[known])
                logits.float().softmax(-1).cumsum(-1)
                states.append(after)

            return per_call(step, CALLS)

    return take


def per_call(work: Callable[[], object], calls: int) -> float:
    work()
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) / calls


def search_seconds(subject: Subject, rollouts: int, tokens: int, ends: Sequence[int] = ()) -> float:
    """Ours, all of it."""
    step = step_of(Runner(packed(subject.model, "float32"), columns=subject.columns), tokens, ends)
    work = Work(len(subject.prompt), rollouts, tokens, rollouts)
    grown(step, subject.prompt, Work(work.prompt, rollouts, 8, rollouts))
    began = time.process_time()
    grown(step, subject.prompt, work)
    return time.process_time() - began


def arms(subject: Subject) -> dict[str, float]:
    """Seconds of a search: each change alone, the report's together, and ours; the first is the naive search."""
    naive, cached, batched = (
        Curve.of(take, len(subject.prompt))
        for take in (naive_seconds(subject), cached_seconds(subject), naive_seconds(subject, ROLLOUTS))
    )
    reached, whole, fewer = subject.reached, (ROLLOUTS, TOKENS), (FEWER_ROLLOUTS, FEWER_TOKENS)
    return {
        NAIVE: ROLLOUTS * naive.rollout(TOKENS),
        "fewer rollouts alone, 10 x 250": FEWER_ROLLOUTS * naive.rollout(TOKENS),
        "fewer tokens alone, 30 x 50": ROLLOUTS * naive.rollout(FEWER_TOKENS),
        "a cache alone, 30 x 250": ROLLOUTS * cached.rollout(TOKENS),
        "early stop alone, 30 x 250": ROLLOUTS * naive.rollout(TOKENS, reached),
        "one batch alone, 30 x 250": batched.rollout(TOKENS),
        "fewer of both, 10 x 50": FEWER_ROLLOUTS * naive.rollout(FEWER_TOKENS),
        "all of the report, 10 x 50": FEWER_ROLLOUTS * cached.rollout(FEWER_TOKENS, reached),
        "ours, 10 x 50": search_seconds(subject, *fewer),
        "ours and early stop, 10 x 50": search_seconds(subject, *fewer, subject.ends),
        "nothing reduced: cache and early stop, 30 x 250": ROLLOUTS * cached.rollout(TOKENS, reached),
        "nothing reduced: ours, 30 x 250": search_seconds(subject, *whole),
        "nothing reduced: ours and early stop, 30 x 250": search_seconds(subject, *whole, subject.ends),
    }


def bench_stages(name: str, subjects: Sequence[Subject], threads: int) -> Iterator[BenchRecord]:
    """One table: seconds of each arm, the mean over subjects; the last arm is ours with nothing reduced."""
    torch.set_num_threads(threads)
    found = [arms(subject) for subject in subjects]
    seconds = {arm: float(np.mean([one[arm] for one in found])) for arm in found[0]}
    ratios = {arm: seconds[NAIVE] / value for arm, value in seconds.items()}
    mine = list(seconds)[-1]
    spread = [one[NAIVE] / one[mine] for one in found]
    yield BenchRecord(
        name=f"stages of a search, {name}",
        ours=seconds[mine],
        peers=dict(seconds),
        ratios={"linnet": ratios[mine], **ratios},
        compared="times as fast as naive",
        unit="seconds of processor a sample",
        n=len(subjects),
        machine=one_line(),
        note=(
            f"linnet is the last row, for single prompts {min(spread):.0f} to {max(spread):.0f} times as fast. "
            "Arms without our search are sums over tokens of a parabola through the seconds of a token at three "
            f"lengths. A text has {np.mean([one.reached.sum() for one in subjects]):.0f} of {TOKENS} tokens on "
            "average where it stops early. The reward costs nothing"
        ),
    )


def bench_sizes(threads: int) -> Iterator[BenchRecord]:
    """Rollouts of 50 tokens in equal seconds, of models of three sizes."""
    torch.set_num_threads(threads)
    for depth, width, heads, vocabulary in ((4, 192, 6, 4096), (6, 288, 6, 32_000), (8, 512, 8, 32_000)):
        shape = Shape(depth, width, heads=heads, vocabulary=vocabulary, context=512)
        subject, work = random_subject(shape), Work(PROMPT, 64, FEWER_TOKENS)
        step = step_of(random_runner(shape, "float32"), FEWER_TOKENS)
        grown(step, subject.prompt, Work(PROMPT, 64, 8))
        began, rollouts = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < SECONDS:
            grown(step, subject.prompt, work)
            rollouts += work.rollouts
        naive = Curve.of(naive_seconds(subject), PROMPT, FEWER_TOKENS).rollout(FEWER_TOKENS)
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
