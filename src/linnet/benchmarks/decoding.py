"""`linnet bench decode`: tokens/s of our engine and of its peers, in turn, on the same weights.

First ours in float32 has to write the same tokens as transformers, near ties counted. Then all systems take turns
in three scenes: one stream, many prompts, many samples of one long prompt. Each turn also writes a single token,
so that the time of the prompt can be taken off.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linnet.benchmarks.decoding_peers import CTranslate2, Decoder, LlamaCpp, Ours, Prompts, Transformers, has
from linnet.benchmarks.machine import one_line
from linnet.benchmarks.training import Shape
from linnet.decoding import products
from linnet.decoding.compiling import Compiled, compiling
from linnet.decoding.products import PackedLinear, Streamed, Weights, pack
from linnet.decoding.sampling import NEAR
from linnet.errors import BadInput, RunFailed
from linnet.exchange.expressing import Portable
from linnet.exchange.tokens import numbers
from linnet.model.config import AttentionConfig, FeedForwardConfig, ModelConfig
from linnet.model.model import Model, evaluating
from linnet.records import BenchRecord
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


def scenes(rows: int, tokens: int) -> tuple[Scene, ...]:
    return (
        Scene("one stream", 1, 16, 1, 2 * tokens, True),
        Scene(f"{rows} prompts", rows, 64, 1, tokens, True),
        Scene(f"{rows} samples of one prompt", 1, 256, rows, tokens, False),
    )


def bench_decode(
    shape: Shape,
    *,
    weights: Sequence[str] = ("float32", "int8"),
    rows: int = 64,
    tokens: int = 64,
    repeats: int = 5,
    compile: bool = True,
    only: str | None = None,
) -> Iterator[BenchRecord]:
    """A record for each scene and each number format of ours."""
    formats = [products.named(name) for name in weights]
    chosen = [scene for scene in scenes(rows, tokens) if only is None or only in scene.name]
    if not chosen:
        named = ", ".join(repr(scene.name) for scene in scenes(rows, tokens))
        raise BadInput(f"no scene has {only!r} in its name; there are {named}")
    if shape.context < 256 + tokens:
        raise BadInput(f"the scenes need a context of {256 + tokens} tokens, and this shape has {shape.context}")
    model = random_model(shape)
    portable = Portable(model.config, weights_of(model), numbers("bench", shape.vocabulary, []).codec)
    with tempfile.TemporaryDirectory() as folder:
        peers = _peers(portable, Path(folder), rows)
        equal = check_equal(
            Ours(pack(copy.deepcopy(model), "float32")), peers["transformers fp32"], shape.vocabulary
        )
        for scene in chosen:
            ours = {name: ours_for(scene, model, name, compile) for name in formats}
            others = dict(peers)
            if scene.samples > 1:  # what reading the prompt's keys once is worth
                others |= {f"linnet {name} dense": Ours(o.model, o.step, share=False) for name, o in ours.items()}
            yield from compare(scene, ours, others, shape, repeats, equal)


def ours_for(scene: Scene, model: Model, weights: Weights, compile: bool) -> Ours:
    """A copy of the model, packed for this scene."""
    packed = pack(copy.deepcopy(model), weights, single=compile and scene.rows == 1)
    step = Compiled(packed, compiling(packed, weights, scene.rows, scene.rows)) if compile else None
    return Ours(packed, step)


def random_model(shape: Shape) -> Model:
    """Weights thrice as large as fresh ones, so that logits are as far apart as those of a trained model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(
            ModelConfig(
                vocabulary=shape.vocabulary,
                context=shape.context,
                width=shape.width,
                depth=shape.depth,
                attention=AttentionConfig(heads=shape.heads),
                feedforward=FeedForwardConfig(kind="swiglu", width=(shape.width * 8 // 3 + 31) // 32 * 32),
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


def _peers(model: Portable, folder: Path, rows: int) -> dict[str, Decoder]:
    if not has("transformers"):
        raise BadInput("the equality check needs transformers: pip install linnet[hf]")
    peers: dict[str, Decoder] = {
        "transformers fp32": Transformers(model, folder / "hf", torch.float32, "sdpa", "cpu"),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        peers["transformers bf16"] = Transformers(model, folder / "hf", torch.bfloat16, "sdpa", "cpu")
    threads = torch.get_num_threads()
    if has("ctranslate2"):
        peers["CTranslate2 float32"] = CTranslate2(model, folder, "float32", threads)
        peers["CTranslate2 int8"] = CTranslate2(model, folder, "int8_float32", threads)
    if has("llama_cpp"):
        peers["llama.cpp F16"] = LlamaCpp(model, folder, "f16", threads, rows)
        peers["llama.cpp Q8_0"] = LlamaCpp(model, folder, "q8_0", threads, rows)
    return peers


def check_equal(ours: Ours, theirs: Decoder, vocabulary: int, prompts: int = 20, tokens: int = 128) -> str:
    """Greedy tokens of ours and of transformers; a difference is a fault unless its two best tokens were near."""
    asked = Scene("equality", prompts, 16, 1, tokens, True).ids(vocabulary)
    compared = skipped = 0
    for prompt, mine, other in zip(
        asked, ours.decode(asked, 1, tokens, True), theirs.decode(asked, 1, tokens, True), strict=True
    ):
        same = next(
            (place for place, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1]), None
        )
        if same is None:
            compared += tokens
            continue
        with evaluating(ours.model):
            hidden = ours.model(torch.tensor([[*prompt, *mine[:same]]])).hidden[:, -1]
            best = ours.model.head(hidden).topk(2).values[0]
        if float(best[0] - best[1]) >= NEAR:
            raise RunFailed(f"ours and transformers differ at token {same} of a prompt: nothing is timed")
        compared, skipped = compared + same, skipped + 1
    return f"{compared} greedy tokens equal those of transformers, {skipped} prompts cut at a near tie"


def compare(
    scene: Scene,
    ours: dict[Weights, Ours],
    peers: dict[str, Decoder],
    shape: Shape,
    repeats: int,
    equal: str,
) -> Iterator[BenchRecord]:
    """All systems in turn; the first round is not measured, since graphs are compiled in it."""
    systems: dict[str, Decoder] = {**{f"linnet {name}": one for name, one in ours.items()}, **peers}
    asked = scene.ids(shape.vocabulary)
    whole: dict[str, list[float]] = {name: [] for name in systems}
    prompt: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(repeats + 1):
        for name, system in systems.items():
            times = [_seconds(system, asked, scene, tokens) for tokens in (1, scene.tokens)]
            if turn:
                prompt[name].append(times[0])
                whole[name].append(times[1])
    for name in ours:
        yield _record(
            scene, shape, name, f"linnet {name}", whole, prompt, bound(ours[name].model, scene.rows), equal
        )


def _seconds(system: Decoder, asked: Prompts, scene: Scene, tokens: int) -> float:
    began = time.perf_counter()
    system.decode(asked, scene.samples, tokens, scene.greedy)
    return time.perf_counter() - began


def _record(
    scene: Scene,
    shape: Shape,
    weights: Weights,
    mine: str,
    whole: dict[str, list[float]],
    prompt: dict[str, list[float]],
    products_alone: float,
    equal: str,
) -> BenchRecord:
    made, later = scene.rows * scene.tokens, scene.rows * (scene.tokens - 1)
    peers = [name for name in whole if name != mine]
    alone = {
        name: statistics.median(w - p for w, p in zip(whole[name], prompt[name], strict=True)) for name in whole
    }
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(whole[name], whole[mine], strict=True))
        for name in peers
    }
    apart = ", ".join(f"{name} {later / alone[name]:.0f}" for name in whole)
    share = products_alone * (scene.tokens - 1) / alone[mine]
    return BenchRecord(
        name=f"decode {shape.depth}x{shape.width}, {scene.name}, {weights}",
        ours=made / statistics.median(whole[mine]),
        peers={name: made / statistics.median(whole[name]) for name in peers},
        ratios=dict(ratios),
        unit="tokens/s",
        n=len(whole[mine]),
        machine=one_line(),
        note=(
            f"prompt of {scene.prompt}, {scene.tokens} tokens, prompt included; without it: {apart} tokens/s; "
            f"our products alone are {share:.0%} of our decoding; {equal}"
        ),
    )


def bound(model: Model, rows: int) -> float:
    """Seconds that the matrix products of one step take by themselves."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear | Streamed)]
    inputs = [torch.randn(rows, layer.inputs) for layer in layers]

    def products() -> list[Tensor]:
        return [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    run = torch.compile(products) if any(isinstance(layer, Streamed) for layer in layers) else products

    with evaluating(model):
        return min(_timed(run) for _ in range(20))


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
