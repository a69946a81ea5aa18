"""Verbs that measure ours beside peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.options import DebugOption, JsonOption, PrecisionOption, SettingsOption
from linnet.cli.places import bench_places


def bench_train(
    shape: Annotated[str, typer.Option("--shape", help="Layers x width.")] = "6x512",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile ours.")] = False,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train beside a plain PyTorch GPT.

    Both have the same shape and weights and take turns; --set takes heads, vocabulary, context, batch and repeats.
    """
    with speaking(json=json, debug=debug) as face:
        from linnet.benchmarks.training import Shape, bench_train
        from linnet.workbench.using import settings_of

        chosen = settings_of(settings or [], heads=8, vocabulary=16_000, context=128, batch=16, repeats=7)
        repeats = chosen.pop("repeats")
        sizes = Shape.parse(shape, **chosen)
        how = "on" if compiled else "off"
        face.show(bench_train(sizes, precision=precision or "auto", compile=how, repeats=repeats))


def bench_tokenizer(
    data: Annotated[list[Path], typer.Option("--data", metavar="PATH", help="Text to learn from and to encode.")],
    settings: SettingsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Learn and encode beside the bare tokenizers library.

    Both give the same vocabulary and the same ids; --set takes vocabulary, documents and repeats.
    """
    with speaking(json=json, debug=debug) as face:
        from linnet.benchmarks.tokenizer import bench_tokenizer
        from linnet.workbench.opening import located
        from linnet.workbench.using import settings_of

        chosen = settings_of(settings or [], vocabulary=16_000, documents="line", repeats=5)
        face.show(*bench_tokenizer(located(data), **chosen))


def join(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure ours beside peers.", no_args_is_help=True, rich_markup_mode=None)
    group.command("train")(bench_train)
    group.command("tokenizer")(bench_tokenizer)
    group.command("places")(bench_places)
    app.add_typer(group, name="bench")
