"""`linnet bench decode`: tokens/s of our engine and of its peers, in turn, on the same weights.

First ours in float32 has to write the same tokens as transformers, near ties counted. Then all systems take turns,
each in a process of its own, in three scenes: one stream, many prompts, many samples of one long prompt. Each turn
also writes a single token, so that the time of the prompt can be taken off.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.decoding_peers import Decoder, Ours, Transformers, has
from bench.decoding_systems import Place, Scene, System, at_work, portable, random_model
from bench.training import Shape
from linnet.decoding import products
from linnet.decoding.products import packed
from linnet.decoding.runner import Runner
from linnet.decoding.sampling import NEAR
from linnet.errors import BadInput, RunFailed
from linnet.machine import one_line
from linnet.model.contract import evaluating
from linnet.records import BenchRecord


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
        known = ", ".join(repr(scene.name) for scene in scenes(rows, tokens))
        raise BadInput(f"no scene has {only!r} in its name; there are {known}")
    if tokens < 2:
        raise BadInput(f"tokens is {tokens}; it must be at least 2, since the first one is the prompt's")
    if shape.context < 256 + tokens:
        raise BadInput(f"the scenes need a context of {256 + tokens} tokens, and this shape has {shape.context}")
    if not has("transformers"):
        raise BadInput("the equality check needs transformers: pip install linnet[hf]")
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), random_model(shape)
        theirs = Transformers(portable(model), folder / "hf", torch.float32, "sdpa", "cpu")
        equal = check_equal(Ours(Runner(packed(model, "float32"))), theirs, shape.vocabulary)
        del model, theirs
        for scene in chosen:
            place = Place(shape, scene, folder, compile, torch.get_num_threads())
            yield from compare([*ours(formats, scene), *peers()], place, repeats, equal, absent())


def ours(formats: Sequence[str], scene: Scene) -> list[System]:
    systems = [System(f"linnet {name}", "linnet", name) for name in formats]
    if scene.samples > 1:  # what reading the prompt's keys once is worth
        systems += [System(f"linnet {name} dense", "linnet", name, share=False) for name in formats]
    return systems


def peers() -> list[System]:
    """Who else is installed here."""
    found = [System("transformers float32", "transformers", "float32")]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found.append(System("transformers bfloat16", "transformers", "bfloat16"))
    if has("ctranslate2"):
        found.append(System("CTranslate2 float32", "CTranslate2", "float32"))
        found.append(System("CTranslate2 int8", "CTranslate2", "int8_float32"))
    if has("llama_cpp"):
        found += [System("llama.cpp F16", "llama.cpp", "f16"), System("llama.cpp Q8_0", "llama.cpp", "q8_0")]
    return found


def absent() -> dict[str, str]:
    """Who cannot take part here, with the reason."""
    missing = {"CTranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}
    packages = {"llama_cpp": "llama-cpp-python"}
    found = {
        name: f"not installed: pip install {packages.get(library, library)}"
        for name, library in missing.items()
        if not has(library)
    }
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found["transformers bfloat16"] = "skipped: there are no bfloat16 instructions here"
    return found


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
        with evaluating(ours.runner.network):
            hidden = ours.runner.network(torch.tensor([[*prompt, *mine[:same]]])).hidden[:, -1]
            best = ours.runner.network.head(hidden).topk(2).values[0]
        if float(best[0] - best[1]) >= NEAR:
            raise RunFailed(f"ours and transformers differ at token {same} of a prompt: nothing is timed")
        compared, skipped = compared + same, skipped + 1
    return f"{compared} greedy tokens equal those of transformers, {skipped} prompts cut at a near tie"


@dataclass(frozen=True)
class Times:
    """Seconds of every turn, and what else a system said of itself."""

    whole: dict[str, list[float]]
    prompt: dict[str, list[float]]
    products: dict[str, float]  # of ours: the products of one step by themselves
    memory: dict[str, float]

    def alone(self, name: str) -> float:
        """Decoding without the prompt."""
        return statistics.median(w - p for w, p in zip(self.whole[name], self.prompt[name], strict=True))


def compare(
    systems: Sequence[System], place: Place, repeats: int, equal: str, without: Mapping[str, str]
) -> Iterator[BenchRecord]:
    """All systems in turn; the first round is not measured, since graphs are compiled in it."""
    with at_work(systems, place) as working:
        turns: dict[str, list[tuple[float, float]]] = {one.name: [] for one in working}
        for _ in range(repeats + 1):
            for one in working:
                turns[one.name].append((one.seconds(1), one.seconds(place.scene.tokens)))
        mine = [one for one in working if one.asked.kind == "linnet" and one.asked.share]
        times = Times(
            {name: [whole for _, whole in taken[1:]] for name, taken in turns.items()},
            {name: [prompt for prompt, _ in taken[1:]] for name, taken in turns.items()},
            {one.name: float(one.ask("products")) for one in mine},
            {one.name: float(one.ask("peak")) for one in working},
        )
    for one in mine:
        yield _record(one.name, place, times, equal, without)


def _record(mine: str, place: Place, times: Times, equal: str, without: Mapping[str, str]) -> BenchRecord:
    scene, shape = place.scene, place.shape
    made, later = scene.rows * scene.tokens, scene.rows * (scene.tokens - 1)
    others = [name for name in times.whole if name != mine]
    ratios = {
        name: statistics.median(
            theirs / ours for theirs, ours in zip(times.whole[name], times.whole[mine], strict=True)
        )
        for name in others
    }
    nobody: dict[str, float | None] = dict.fromkeys(without)
    missing = "".join(f"; {name} {why}" for name, why in without.items())
    apart = ", ".join(f"{name} {later / times.alone(name):.0f}" for name in times.whole)
    memory = ", ".join(f"{name} {value:,.0f}" for name, value in times.memory.items())
    share = times.products[mine] * (scene.tokens - 1) / times.alone(mine)
    return BenchRecord(
        name=f"decode {shape.depth}x{shape.width}, {scene.name}, {mine.removeprefix('linnet ')}",
        ours=made / statistics.median(times.whole[mine]),
        peers={name: made / statistics.median(times.whole[name]) for name in others} | nobody,
        ratios={**ratios, **nobody},
        unit="tokens/s",
        n=len(times.whole[mine]),
        machine=one_line(),
        note=(
            f"prompt of {scene.prompt}, {scene.tokens} tokens, prompt included; without it: {apart} tokens/s; "
            f"our products alone are {share:.0%} of our decoding; "
            f"peak memory of each process in MB: {memory}; {equal}{missing}"
        ),
    )
