"""`linnet bench search`: our search beside the obvious loop and beside transformers, on the same weights.

Scenes: leaf tokens/s at a short and a long prompt; where the time of ours goes; cost and memory as rollouts grow
(`memory`); what each change of a well-known report on faster search brings alone and together (`stages`); and
models of three sizes in equal seconds (`sizes`). The loop is slow, so one rollout of it is measured a turn and
multiplied: all of its rollouts cost the same. First all systems have to give the same log-probabilities.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.decoding_systems import Transformers, portable_model, random_model
from bench.processes import Apart, Limit, Working, installed, peak_megabytes, take_turns
from bench.search_naive import Naive, logits_of
from bench.training import Shape
from linnet.decoding.products import Weights, packed
from linnet.decoding.runner import Runner
from linnet.errors import BadInput, RunFailed
from linnet.machine import keep_freed_buffers, native_bfloat16, one_line
from linnet.records import BenchRecord
from linnet.search.budgets import Budget
from linnet.search.cached_steps import CachedStep, Texts
from linnet.search.methods import named
from linnet.search.model_steps import ModelReader
from linnet.search.reward import Reward
from linnet.search.steps import Target
from linnet.search.tree import Tree

NATIVE: tuple[Weights, ...] = ("bfloat16",)
CHECKED = 24  # tokens of a text on which all systems have to agree
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.35}  # of a log-probability


@dataclass(frozen=True)
class Work:
    """One search: a prompt of so many tokens, so many rollouts of so many tokens, waves of so many rollouts."""

    prompt: int
    rollouts: int
    tokens: int
    wave: int = 64

    def ids(self, vocabulary: int) -> list[int]:
        ids: list[int] = np.random.default_rng(self.prompt).integers(0, vocabulary, self.prompt).tolist()
        return ids

    @property
    def name(self) -> str:
        return f"prompt {self.prompt}, {self.rollouts} rollouts of {self.tokens}"


@dataclass(frozen=True)
class Setting:
    """What a system has to know, and what can be sent to its process."""

    shape: Shape
    work: Work
    folder: Path
    threads: int


def different_tokens(texts: Sequence[str], ids: Sequence[Sequence[int]], prompt: str) -> list[float]:
    """A reward that costs nothing and differs from text to text."""
    return [len(set(one)) / max(1, len(one)) for one in ids]


def random_runner(shape: Shape, numbers: Weights) -> Runner:
    return Runner(packed(random_model(shape), numbers))


def step_of(runner: Runner, tokens: int, ends: Sequence[int] = ()) -> CachedStep:
    keep_freed_buffers()  # as `linnet search` does
    texts = Texts(lambda ids: "prompt", lambda prompt, ids: "")
    return CachedStep(ModelReader(runner), Target(max_tokens=tokens), ends=ends, texts=texts)


def grown(step: CachedStep, prompt: Sequence[int], work: Work, method: str = "maxent") -> Tree:
    reward = Reward(different_tokens, least=0.0, most=1.0)
    tree = Tree(prompt, step, named(method, lam=4.0), reward, 0)
    return tree.extend(Budget(rollouts=work.rollouts, wave=work.wave))


def ours(numbers: Weights, setting: Setting) -> Working:
    """Our search; its facts are log-probabilities of a fixed text."""
    torch.set_num_threads(setting.threads)
    shape, work = setting.shape, setting.work
    step, prompt = step_of(random_runner(shape, numbers), work.tokens), work.ids(shape.vocabulary)
    rows, found = step.begin(prompt), []
    for token in checked_text(shape.vocabulary):
        found.append(float(rows.full(0)[token]))
        rows = step.extend([int(rows.handles[0])], [token])
    timed(lambda: grown(step, prompt, replace(work, rollouts=work.wave)))
    return Working((numbers, found), lambda: timed(lambda: grown(step, prompt, work)))


def loop(setting: Setting) -> Working:
    """One rollout of the obvious search."""
    torch.set_num_threads(setting.threads)
    shape, work = setting.shape, setting.work
    model = random_model(shape)
    ask, prompt = logits_of(model, model.head), work.ids(shape.vocabulary)
    text, found = checked_text(shape.vocabulary), []
    for at, token in enumerate(text):
        found.append(float(ask([*prompt, *text[:at]]).log_softmax(-1)[token]))
    naive = Naive(ask, None, rollouts=1, max_tokens=work.tokens)

    def turn() -> float:
        score = lambda ids: different_tokens([""], [ids], "")[0]  # noqa: E731
        return timed(lambda: naive.search(prompt, score, np.random.default_rng(0)))

    return Working(("float32", found), turn)


def generation(numbers: str, setting: Setting) -> Working:
    """`generate` of transformers, with as many sequences as there are rollouts."""
    torch.set_num_threads(setting.threads)
    shape, work = setting.shape, setting.work
    folder = setting.folder / "hf"
    theirs = Transformers(portable_model(random_model(shape)), folder, getattr(torch, numbers), "cpu")
    prompt, text = tuple(work.ids(shape.vocabulary)), checked_text(shape.vocabulary)
    with torch.inference_mode():
        logits = theirs.model(torch.tensor([[*prompt, *text]])).logits[0].float().log_softmax(-1)
    found = [float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(text)]
    theirs.decode([prompt], work.rollouts, 2, False)
    return Working(
        (numbers, found), lambda: timed(lambda: theirs.decode([prompt], work.rollouts, work.tokens, False))
    )


def checked_text(vocabulary: int) -> list[int]:
    text: list[int] = np.random.default_rng(7).integers(0, vocabulary, CHECKED).tolist()
    return text


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def agree(facts: Mapping[str, Any]) -> None:
    """All systems give the log-probabilities of the first, as far as their numbers allow."""
    (first, _), *others = facts.items()
    for name, _ in others:
        numbers, found = facts[name]
        off = float(np.abs(np.array(found) - np.array(facts[first][1])).max())
        if off > TOLERANCE[numbers]:
            raise RunFailed(f"{name} differs from {first} by {off:.2g} in a log-probability: nothing is timed")


def bench_scene(
    shape: Shape, work: Work, repeats: int, threads: int, limit: float | None
) -> Iterator[BenchRecord]:
    """Leaf tokens/s of ours, of the loop and of transformers, in turn."""
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(shape, work, Path(name), threads)
        formats: list[Weights] = ["float32", *(NATIVE if native_bfloat16("cpu") else ())]
        systems: dict[str, Callable[[], Working]] = {
            f"linnet {numbers}": functools.partial(ours, numbers, setting) for numbers in formats
        }
        systems["loop"] = functools.partial(loop, setting)
        if installed("transformers"):
            for numbers in formats:
                systems[f"transformers {numbers}"] = functools.partial(generation, numbers, setting)
        found = take_turns(systems, "cpu", turns=repeats, warm_up=0, limit=Limit(limit), check=agree)
    if "loop" in found.turns:
        found.turns["loop"] = [work.rollouts * took for took in found.turns["loop"]]
    speeds = {name: work.rollouts * work.tokens / np.median(turns) for name, turns in found.turns.items()}
    for mine in [name for name in systems if name.startswith("linnet")]:
        others = [name for name in speeds if name != mine]
        pairs = {name: zip(found.turns[mine], found.turns[name], strict=False) for name in others}
        ratios = {name: float(np.median([other / own for own, other in pairs[name]])) for name in others}
        yield BenchRecord(
            name=f"search {shape.depth}x{shape.width}, {work.name}, {mine.removeprefix('linnet ')}",
            ours=float(speeds[mine]),
            peers={name: float(speeds[name]) for name in others},
            ratios={name: ratio for name, ratio in ratios.items()},
            unit="leaf tokens/s",
            n=len(found.turns[mine]),
            machine=one_line(),
            note=(
                f"{threads} threads; one rollout of the loop a turn, times {work.rollouts}; peak MB: "
                + ", ".join(f"{name} {value:,.0f}" for name, value in found.peaks.items())
                + "".join(f"; {name} {why}" for name, why in found.absent.items())
            ),
        )


class Parts:
    """Where the time of a search goes: the model's forward, its memory, what may follow a node, and the tree."""

    def __init__(self, step: CachedStep) -> None:
        self.seconds = dict.fromkeys(("forward", "memory", "rows"), 0.0)
        self._wrap(step, "_read", "forward")
        self._wrap(step, "_rows", "rows")
        for name in ("_ready", "_store"):
            self._wrap(step, name, "memory")

    def _wrap(self, step: CachedStep, name: str, part: str) -> None:
        inner = getattr(step, name)

        def timed_call(*given: Any) -> Any:
            began, before = time.perf_counter(), sum(self.seconds.values())
            try:
                result = inner(*given)
            finally:
                within = sum(self.seconds.values()) - before
                self.seconds[part] += time.perf_counter() - began - within
            if name != "_rows":
                return result
            return replace(result, others=self._timed_draws(result.others))

        setattr(step, name, timed_call)

    def _timed_draws(self, draws: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return draws(*given)
            finally:
                self.seconds["rows"] += time.perf_counter() - began

        return timed_call


def measured(setting: Setting) -> Working:
    """One search with the shares of its parts; the peak of memory belongs to it alone."""
    torch.set_num_threads(setting.threads)
    shape, work = setting.shape, setting.work
    step, prompt = step_of(random_runner(shape, "float32"), work.tokens), work.ids(shape.vocabulary)
    grown(step, prompt, replace(work, rollouts=min(work.wave, work.rollouts)))
    parts = Parts(step)

    def turn() -> dict[str, float]:
        before = dict(parts.seconds)
        began = time.perf_counter()
        tree = grown(step, prompt, work)
        whole = time.perf_counter() - began
        spent = {part: parts.seconds[part] - before[part] for part in before}
        spent["tree"] = whole - sum(spent.values())
        counts = {"forward tokens": float(step.forward_tokens), "nodes": float(tree.nodes.count)}
        return {"seconds": whole, "peak": peak_megabytes(), **counts, **spent}

    return Working(None, turn)


def bench_growth(shape: Shape, work: Work, sizes: Sequence[int], threads: int) -> Iterator[BenchRecord]:
    """Cost and memory of more and more rollouts, each in a process of its own."""
    first = None
    for rollouts in sizes:
        with tempfile.TemporaryDirectory() as name, Apart() as one:
            setting = Setting(shape, replace(work, rollouts=rollouts), Path(name), threads)
            one.build(f"{rollouts} rollouts", functools.partial(measured, setting))
            one.ask("facts")
            found = one.ask("turn")
        each = found["seconds"] / rollouts
        first = each if first is None else first
        shares = {part: found[part] / found["seconds"] for part in ("forward", "rows", "memory", "tree")}
        yield BenchRecord(
            name=f"search {shape.depth}x{shape.width}, {setting.work.name}",
            ours=rollouts * work.tokens / found["seconds"],
            peers={},
            ratios={"cost of a rollout, over that of the first size": each / first},
            unit="leaf tokens/s",
            n=1,
            machine=one_line(),
            note=(
                f"{found['seconds']:.2f} s; peak {found['peak']:,.0f} MB; "
                f"{found['forward tokens']:,.0f} forward tokens; "
                + ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
                + "; rows: the 256 likeliest tokens and the draws from the others, memory: keys and values moved"
            ),
        )


def bench_search(
    shape: Shape,
    *,
    only: str = "scenes",
    rollouts: int = 64,
    tokens: int = 64,
    wave: int = 64,
    repeats: int = 5,
    threads: int = 1,
    limit: float | None = None,
) -> Iterator[BenchRecord]:
    """The records of one part: scenes, memory, stages or sizes."""
    from bench.search_stages import bench_sizes, bench_stages, random_subject

    threads = threads or torch.get_num_threads()
    parts: dict[str, Callable[[], Iterator[BenchRecord]]] = {
        "scenes": lambda: (
            record
            for prompt in (64, 256)
            for record in bench_scene(shape, Work(prompt, rollouts, tokens, wave), repeats, threads, limit)
        ),
        "memory": lambda: bench_growth(shape, Work(64, 0, tokens, wave), (64, 256, 1024, 4096), threads),
        "stages": lambda: bench_stages(f"{shape.depth}x{shape.width}", [random_subject(shape)], threads),
        "sizes": lambda: bench_sizes(threads),
    }
    if only not in parts:
        raise BadInput(f'there is no part "{only}" of the search benchmark; there is {", ".join(parts)}')
    yield from parts[only]()
