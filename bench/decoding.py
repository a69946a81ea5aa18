"""`linnet bench decode`: tokens/s of our engine and of its peers on the same weights.

First ours in float32 has to write the same tokens as transformers, near ties counted. Then all systems take turns
(`bench.processes`) in three scenes: one stream, many prompts, many samples of one long prompt. Each turn also
writes a single token, so that the time of the prompt can be taken off.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.decoding_systems import (
    Decoder,
    Ours,
    Scene,
    Setting,
    System,
    Took,
    Transformers,
    build,
    portable_model,
    random_model,
)
from bench.processes import Apart, Limit, Outcome, Working, installed, take_turns
from bench.training import Shape
from linnet.decoding import products
from linnet.decoding.products import packed
from linnet.decoding.runner import Runner
from linnet.decoding.sampling import NEAR
from linnet.errors import BadInput, RunFailed
from linnet.machine import native_bfloat16, one_line
from linnet.model.contract import evaluating
from linnet.records import BenchRecord

FORMATS = {"cpu": ("float32", "float16", "int8"), "cuda": ("float32", "bfloat16")}


def scenes(rows: int, tokens: int) -> tuple[Scene, ...]:
    return (
        Scene("one stream", 1, 16, 1, 2 * tokens, True),
        Scene(f"{rows} prompts", rows, 64, 1, tokens, True),
        Scene(f"{rows} samples of one prompt", 1, 256, rows, tokens, False),
    )


def bench_decode(
    shape: Shape,
    *,
    weights: Sequence[str] | None = None,
    rows: int = 64,
    tokens: int = 64,
    repeats: int = 5,
    compile: bool = True,
    only: str | None = None,
    device: str = "auto",
    limit: float | None = None,
) -> Iterator[BenchRecord]:
    """A record for each scene and each number format of ours."""
    device = shape.run("float32", "off", device=device).device  # refuses shapes and devices that are not there
    formats = [products.named(name) for name in weights or FORMATS[device]]
    chosen = [scene for scene in scenes(rows, tokens) if only is None or only in scene.name]
    if not chosen:
        known = ", ".join(repr(scene.name) for scene in scenes(rows, tokens))
        raise BadInput(f"no scene has {only!r} in its name; there are {known}")
    if tokens < 2:
        raise BadInput(f"tokens is {tokens}; it must be at least 2, since the first one is the prompt's")
    if shape.context < 256 + tokens:
        raise BadInput(f"the scenes need a context of {256 + tokens} tokens, and this shape has {shape.context}")
    if not installed("transformers"):
        raise BadInput("the equality check needs transformers: pip install 'linnet-sequences[hf]'")
    clock = Limit(limit)
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(shape, chosen[0], Path(name), compile, torch.get_num_threads(), device)
        with Apart().build("the equality check", functools.partial(equality, setting)) as one:
            equal = one.ask("facts", clock.left())
        for number, scene in enumerate(chosen):
            setting = replace(setting, scene=scene)
            systems = [*ours(formats, scene), *peers(device)]
            left = clock.left()
            part = Limit(None if left is None else left / (len(chosen) - number))
            found = take_turns(
                {system.name: functools.partial(build, system, setting) for system in systems},
                device,
                turns=repeats,
                warm_up=0,
                limit=part,
            )
            notes = [equal, *(f"{name} {why}" for name, why in (absent(device) | found.absent).items())]
            for system in ours(formats, scene):
                if system.share and system.name in found.turns:
                    yield _record(system.name, setting, found, notes, absent(device))


def ours(formats: Sequence[str], scene: Scene) -> list[System]:
    systems = [System(f"linnet {name}", "linnet", name) for name in formats]
    if scene.samples > 1:  # what reading the prompt's keys once is worth
        systems += [System(f"linnet {name} dense", "linnet", name, share=False) for name in formats]
    return systems


def peers(device: str) -> list[System]:
    """Who else is installed here."""
    found = [System("transformers float32", "transformers", "float32")]
    if native_bfloat16(device):
        found.append(System("transformers bfloat16", "transformers", "bfloat16"))
    if device != "cpu":
        static = System("transformers bfloat16 static", "transformers", "bfloat16", cache="static")
        return [*found, static] if native_bfloat16(device) else found
    if installed("ctranslate2"):
        found.append(System("CTranslate2 float32", "CTranslate2", "float32"))
        found.append(System("CTranslate2 int8", "CTranslate2", "int8_float32"))
    if installed("llama_cpp"):
        found += [System("llama.cpp F16", "llama.cpp", "f16"), System("llama.cpp Q8_0", "llama.cpp", "q8_0")]
    return found


def absent(device: str) -> dict[str, str]:
    """Who cannot take part here, with the reason."""
    missing = {"CTranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}
    if device != "cpu":
        return dict.fromkeys(missing, "skipped: measured on the processor only")
    packages = {"llama_cpp": "llama-cpp-python"}
    found = {
        name: f"not installed: pip install {packages.get(library, library)}"
        for name, library in missing.items()
        if not installed(library)
    }
    if not native_bfloat16(device):
        found["transformers bfloat16"] = "skipped: there are no bfloat16 instructions here"
    return found


def equality(setting: Setting, prompts: int = 20, tokens: int = 128) -> Working:
    """The check as a system of its own, so that the process that waits for it holds no model."""
    torch.set_num_threads(setting.threads)
    model = random_model(setting.shape)
    theirs = Transformers(portable_model(model), setting.folder / "hf", torch.float32, setting.device)
    mine = Ours(Runner(packed(model.to(setting.device), "float32")))
    return Working(check_equal(mine, theirs, setting.shape.vocabulary, prompts, tokens), lambda: None)


def check_equal(ours: Ours, theirs: Decoder, vocabulary: int, prompts: int = 20, tokens: int = 128) -> str:
    """Greedy tokens of ours and of transformers; a difference is a fault unless its two best tokens were near."""
    given = Scene("equality", prompts, 16, 1, tokens, True).ids(vocabulary)
    compared = skipped = 0
    for prompt, mine, other in zip(
        given, ours.decode(given, 1, tokens, True), theirs.decode(given, 1, tokens, True), strict=True
    ):
        pairs = enumerate(zip(mine, other, strict=True))
        same = next((index for index, (one, two) in pairs if one != two), None)
        if same is None:
            compared += tokens
            continue
        network = ours.runner.network
        with evaluating(network):
            hidden = network(torch.tensor([[*prompt, *mine[:same]]], device=network.device)).hidden[:, -1]
            best = network.head(hidden).topk(2).values[0]
        if float(best[0] - best[1]) >= NEAR:
            raise RunFailed(f"ours and transformers differ at token {same} of a prompt: nothing is timed")
        compared, skipped = compared + same, skipped + 1
    return f"{compared} greedy tokens equal those of transformers, {skipped} prompts cut at a near tie"


def _record(
    mine: str, setting: Setting, found: Outcome, notes: Sequence[str], missing: Mapping[str, str]
) -> BenchRecord:
    scene, shape = setting.scene, setting.shape
    made, later = scene.rows * scene.tokens, scene.rows * (scene.tokens - 1)
    turns: Mapping[str, list[Took]] = found.turns
    others = [name for name in turns if name != mine]
    nobody: dict[str, float | None] = dict.fromkeys([*missing, *found.absent])

    def speed(name: str) -> float:
        return made / statistics.median(took.whole for took in turns[name])

    def without_prompt(name: str) -> str:
        seconds = statistics.median(took.whole - took.first for took in turns[name])
        return f"{later / seconds:.0f}" if seconds > 0 else "- (its turns differ by more)"

    ratios = {
        name: statistics.median(two.whole / one.whole for one, two in zip(turns[mine], turns[name], strict=False))
        for name in others
    }
    apart = ", ".join(f"{name} {without_prompt(name)}" for name in turns)
    memory = ", ".join(f"{name} {value:,.0f}" for name, value in found.peaks.items())
    return BenchRecord(
        name=f"decode {shape.depth}x{shape.width}, {scene.name}, {mine.removeprefix('linnet ')}",
        ours=speed(mine),
        peers={name: speed(name) for name in others} | nobody,
        ratios={**ratios, **nobody},
        unit="tokens/s",
        n=len(turns[mine]),
        machine=one_line(),
        note=(
            f"prompt of {scene.prompt}, {scene.tokens} tokens, prompt included; without it: {apart} tokens/s; "
            f"peak memory of each process in MB: {memory}; {'; '.join(notes)}"
        ),
    )
