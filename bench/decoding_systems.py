"""The systems that `linnet bench decode` lets take turns, each in a process of its own, on the same weights."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench.decoding_peers import CTranslate2, Decoder, LlamaCpp, Ours, Prompts, Transformers
from bench.processes import Answer, Apart, peak_megabytes
from bench.training import Shape
from linnet.decoding.compiling import Compiling
from linnet.decoding.products import PackedLinear, Streamed, Weights, named, packed
from linnet.decoding.runner import Runner
from linnet.exchange.expressing import Portable
from linnet.exchange.gguf_writing import Kind
from linnet.exchange.tokens import numbers
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.training.checkpoint import weights_of


@dataclass(frozen=True)
class Scene:
    """What is decoded: prompts of some length, samples of each, tokens of each sample."""

    name: str
    prompts: int
    prompt: int
    samples: int
    tokens: int
    greedy: bool

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def ids(self, vocabulary: int) -> Prompts:
        random = np.random.default_rng(self.prompts)
        return [tuple(row) for row in random.integers(0, vocabulary, (self.prompts, self.prompt)).tolist()]


@dataclass(frozen=True)
class Place:
    """Where a system decodes: everything that its process has to know, and that can be sent to it."""

    shape: Shape
    scene: Scene
    folder: Path  # of exported files; the first that needs one writes it
    compile: bool
    threads: int


@dataclass(frozen=True)
class System:
    """Who decodes, and with which numbers."""

    name: str
    kind: Literal["linnet", "transformers", "llama.cpp", "CTranslate2"]
    numbers: str
    share: bool = True  # of ours: whether the keys of a common prompt are read once


def random_model(shape: Shape) -> Model:
    """Weights thrice as large as fresh ones, so that logits are as far apart as those of a trained model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(shape.model(feedforward={"kind": "swiglu", "width": (shape.width * 8 // 3 + 31) // 32 * 32}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


def portable(model: Model) -> Portable:
    """The model as other programs get it; its tokens are written as their numbers."""
    return Portable(model.config, weights_of(model), numbers("bench", model.config.vocabulary, []).codec)


def ours(model: Model, weights: Weights, scene: Scene, *, compile: bool, share: bool = True) -> Ours:
    """The model, packed for this scene."""
    made = packed(model, weights, single=compile and scene.rows == 1)
    device = model.device.type
    compiling = Compiling.of(model.config, weights, device, scene.rows, scene.rows) if compile else None
    return Ours(Runner(made, compiling), share=share)


def decoder(asked: System, place: Place) -> Decoder:
    model = random_model(place.shape)
    if asked.kind == "linnet":
        return ours(model, named(asked.numbers), place.scene, compile=place.compile, share=asked.share)
    given, hf = portable(model), place.folder / "hf"
    if asked.kind == "transformers":
        return Transformers(given, hf, getattr(torch, asked.numbers), "sdpa", "cpu")
    if asked.kind == "CTranslate2":
        return CTranslate2(given, place.folder, asked.numbers, place.threads)
    kind: Kind = "f16" if asked.numbers == "f16" else "q8_0"
    return LlamaCpp(given, place.folder, kind, place.threads, place.scene.rows)


def products_alone(model: Model, rows: int) -> float:
    """Seconds that the matrix products of one step take by themselves."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear | Streamed)]
    inputs = [torch.randn(rows, layer.inputs) for layer in layers]

    def products() -> list[Tensor]:
        return [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    run = torch.compile(products) if any(isinstance(layer, Streamed) for layer in layers) else products
    with evaluating(model):
        return min(_seconds(run) for _ in range(20))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def at_its_place(asked: System, place: Place) -> Answer:
    """This system in its process: seconds for so many tokens, or of its products alone, or its peak of memory."""
    torch.set_num_threads(place.threads)
    system, scene = decoder(asked, place), place.scene
    prompts = scene.ids(place.shape.vocabulary)

    def answer(question: int | str) -> float:
        if isinstance(question, int):
            return _seconds(lambda: system.decode(prompts, scene.samples, question, scene.greedy))
        if question == "peak":
            return peak_megabytes()
        assert isinstance(system, Ours)
        return products_alone(system.runner.network, scene.rows)

    return answer


class Contestant(Apart):
    """A system at work in its process, seen from outside; its first tokens, which compile, are not counted."""

    def __init__(self, asked: System, place: Place) -> None:
        super().__init__(asked.name, functools.partial(at_its_place, asked, place))
        self.asked = asked
        self.ask(2)

    def seconds(self, tokens: int) -> float:
        return float(self.ask(tokens))


@contextmanager
def at_work(systems: Sequence[System], place: Place) -> Iterator[list[Contestant]]:
    """All of these, started one after the other; none survives the block."""
    working: list[Contestant] = []
    try:
        for asked in systems:
            working.append(Contestant(asked, place))
        yield working
    finally:
        for one in working:
            one.close()
