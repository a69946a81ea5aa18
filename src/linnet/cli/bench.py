"""Verbs that measure: this machine, and ours beside peers, which is in the folder `bench/` of a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import linnet
from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import (
    DataOption,
    DeviceOption,
    PrecisionOption,
    SettingsOption,
)
from linnet.errors import BadInput

LimitOption = Annotated[
    float | None,
    typer.Option("--limit", min=1, help="End within about so many seconds: fewer turns, or fewer peers."),
]


def benchmark(name: str) -> Any:
    """This module of `bench/`, from the checkout of this package or from the current folder."""
    for folder in (Path(linnet.__file__).parents[2], Path.cwd()):
        if (folder / "bench" / f"{name}.py").is_file() and (folder / "src" / "linnet").is_dir():
            sys.path.insert(0, str(folder))
            return importlib.import_module(f"bench.{name}")
    raise BadInput(
        "the benchmarks are not part of the installed package: they are in the folder bench/ of linnet's source. "
        "Get the source (git clone, or the source archive of this version) and run the command in its folder"
    )


@spoken
def bench_train(
    face: Face,
    shape: Annotated[str, typer.Option("--shape", help="Layers x width.")] = "6x512",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile ours.")] = False,
    precision: PrecisionOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of a step.")] = 16,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of a row.")] = 128,
    device: DeviceOption = None,
    limit: LimitOption = None,
    settings: SettingsOption = None,
) -> None:
    """Train beside a plain PyTorch GPT and transformers' Llama.

    All have the same shape and weights, each in a process of its own. They must agree on losses and gradients;
    then they take turns, on a GPU one after the other. Peak memory is printed too. The model's own matrix products
    alone are the bound. --set takes heads, vocabulary, repeats, threads, and llama (best, none, sdpa or eager).
    """
    training = benchmark("training")
    from linnet.workbench.open import options_of

    usual = {"heads": 8, "vocabulary": 16_000, "context": context, "batch": batch}
    chosen = options_of(settings or [], **usual, repeats=7, threads=0, llama="best")
    sizes = training.Shape.parse(shape, **{name: chosen.pop(name) for name in usual})
    chosen |= {"compile": "on" if compiled else "off", "device": device or "auto", "limit": limit}
    face.show(*training.bench_train(sizes, precision=precision or "auto", **chosen))


@spoken
def bench_decode(
    face: Face,
    shape: Annotated[str, typer.Option("--shape", help="Layers x width.")] = "6x512",
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Number formats of ours: float32, float16, bfloat16, int8, int4."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="A scene: stream, prompts or samples.", show_default=False)
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile/--eager", help="Compile our steps.")] = True,
    device: DeviceOption = None,
    limit: LimitOption = None,
    settings: SettingsOption = None,
) -> None:
    """Decode beside transformers, and beside llama.cpp and CTranslate2 where they are installed.

    All have the same weights and take turns, on a GPU one after the other, after a check that they write the same
    tokens. --set takes heads, vocabulary, context, rows, tokens (2 or more; one stream writes twice as many),
    repeats and threads.
    """
    decoding = benchmark("decoding")
    import torch

    from linnet.workbench.open import options_of

    chosen = options_of(
        settings or [], heads=8, vocabulary=16_000, context=512, rows=64, tokens=64, repeats=5, threads=0
    )
    torch.set_num_threads(chosen.pop("threads") or torch.get_num_threads())
    sizes = {key: chosen.pop(key) for key in ("heads", "vocabulary", "context")}
    formats = weights and [name.strip() for name in weights.split(",")]
    chosen |= {
        "weights": formats,
        "compile": compiled,
        "only": only,
        "device": device or "auto",
        "limit": limit,
    }
    for record in decoding.bench_decode(decoding.Shape.parse(shape, **sizes), **chosen):
        face.show(record)


@spoken
def bench_search(
    face: Face,
    shape: Annotated[str, typer.Option("--shape", help="Layers x width.")] = "6x288",
    only: Annotated[str, typer.Option("--only", help="A part: scenes, memory, stages or sizes.")] = "scenes",
    limit: LimitOption = None,
    settings: SettingsOption = None,
) -> None:
    """Search beside the obvious loop, which has no cache and one row, and beside generate of transformers.

    They take turns at a short and a long prompt, after a check that all give the same probabilities. Other parts:
    cost and memory as rollouts grow, what each of a report's changes brings, and models of three sizes. --set
    takes heads, vocabulary, context, rollouts, tokens, wave, repeats and threads.
    """
    search = benchmark("search")
    from linnet.workbench.open import options_of

    usual = {"heads": 6, "vocabulary": 32_000, "context": 512}
    chosen = options_of(settings or [], **usual, rollouts=64, tokens=64, wave=64, repeats=5, threads=0)
    sizes = search.Shape.parse(shape, **{name: chosen.pop(name) for name in usual})
    for record in search.bench_search(sizes, only=only, limit=limit, **chosen):
        face.show(record)


@spoken
def bench_stages(
    face: Face,
    what: Annotated[
        str, typer.Argument(metavar="RUN", help="A run that reads series, or a recipe to train for a moment.")
    ] = "captions",
    data: DataOption = None,
    settings: SettingsOption = None,
) -> None:
    """Measure each change of a report on faster search, alone and together.

    On prompts of the files in --data: 30 rollouts of 250 tokens, 10 of 50, a cache, early stop, batches, and ours
    with nothing reduced. --set takes prompts, steps and threads, and settings of the recipe.
    """
    stages = benchmark("stages")
    from linnet.workbench.open import located

    for record in stages.bench_run(what, located(data or []), settings or []):
        face.show(record)


@spoken
def bench_tokenizer(
    face: Face,
    data: Annotated[list[Path], typer.Option("--data", metavar="PATH", help="Text to learn from and to encode.")],
    settings: SettingsOption = None,
) -> None:
    """Learn and encode beside the bare tokenizers library.

    Both give the same ids, and for bpe and words the same vocabulary; --set takes vocabulary, documents, repeats
    and kind (bpe, unigram, words or characters, which are encoded only).
    """
    tokenizer = benchmark("tokenizer")
    from linnet.workbench.open import located, options_of

    chosen = options_of(settings or [], vocabulary=16_000, documents="line", repeats=5, kind="bpe")
    face.show(*tokenizer.bench_tokenizer(located(data), **chosen))


@spoken
def bench_places(
    face: Face,
    data: DataOption = None,
    settings: SettingsOption = None,
) -> None:
    """Run copying networks beside their loop and one-hot forms.

    First the largest difference from the loops, then speeds; without --data on drawn check-ins. --set takes
    repeats and threads.
    """
    bench = benchmark("places")
    from linnet.workbench.open import located, options_of

    chosen = options_of(settings or [], repeats=5, threads=0)
    threads = chosen.pop("threads")
    with bench.drawn(located(data or [])) as files:
        for record in bench.bench_places(files, [("threads", threads)] if threads else [], **chosen):
            face.show(record)


@spoken
def bench_study(
    face: Face,
    name: Annotated[str, typer.Argument(metavar="NAME", help="brackets, carry or modular.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The folder of its runs and of its page.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of each run.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of each run: only whether it works.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time, each with one thread.")] = 1,
) -> None:
    """Repeat a published finding: train what is missing, analyse it, write a page with pictures.

    A study that was stopped goes on where it was.
    """
    studies = benchmark("studies")
    from linnet.records import NoteRecord

    for path in studies.study(name, out, seeds, quick, jobs):
        face.show(NoteRecord(step=0, text=str(path)))


@spoken
def doctor(face: Face) -> None:
    """Say what is fast and slow here, and why.

    Shows the device, its instruction sets, threads and memory, and measures matrix products.
    """
    from linnet.machine import doctor as examine

    face.show(examine())


def join(groups: Groups) -> None:
    groups.top.command("doctor")(doctor)
    group = typer.Typer(help="Measure ours beside peers.", no_args_is_help=True, rich_markup_mode=None)
    group.command("train")(bench_train)
    group.command("decode")(bench_decode)
    group.command("search")(bench_search)
    group.command("stages")(bench_stages)
    group.command("tokenizer")(bench_tokenizer)
    group.command("places")(bench_places)
    group.command("study")(bench_study)
    groups.top.add_typer(group, name="bench")
