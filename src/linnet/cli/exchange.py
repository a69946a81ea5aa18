"""Verbs for models that leave in other people's formats, or come from there."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from linnet import workbench
from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import ForceOption, OutOption, RunArgument, SettingsOption


class Type(StrEnum):  # typer takes no list of literals
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


@spoken
def export_model(
    face: Face,
    run: RunArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder, or one .gguf file.", show_default=False)
    ],
    to: Annotated[
        Literal["hf", "gguf", "run"] | None,
        typer.Option(
            "--to",
            help="For transformers, for llama.cpp, or a copy to give away; hf, unless DIR ends with .gguf.",
            show_default=False,
        ),
    ] = None,
    types: Annotated[
        list[Type] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="f32 (unless another is named), f16, bf16 or, for gguf, q8_0; repeat it for several files.",
        ),
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option("--checkpoint", help="The step of the checkpoint to write.", show_default=False)
    ] = None,
    settings: SettingsOption = None,
    force: ForceOption = False,
) -> None:
    """Write a model for other programs.

    For instance: linnet export RUN DIR --to gguf --type f16 --type q8_0

    hf is a Llama (or Qwen2, Qwen3, Gemma), which transformers loads without further code. gguf is for llama.cpp.
    run is a copy to give away: the best weights, no optimiser state, no paths of this machine. A copy of a run on
    places can leave out places that few people visited: --set rare=drop (or coarsen), --set fewer_than=3.
    """
    face.show(
        workbench.export_run(
            run,
            folder,
            to=to,
            types=[kind.value for kind in types or []],
            checkpoint=checkpoint,
            settings=settings or [],
            force=force,
        )
    )


@spoken
def import_model(
    face: Face,
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A Hugging Face folder, or one .gguf file.", show_default=False),
    ],
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Make a run of somebody else's model, at --out or in runs/.

    Reads GPT-2, GPT-NeoX (Pythia), Llama (SmolLM is one), Mistral, Qwen2, Qwen3 and Gemma from safetensors, and
    Llama, Mistral, Qwen2 and Qwen3 from GGUF.
    Pickled weights are refused, since reading them can run any code.
    """
    face.show(workbench.import_run(source, out, force=force))


def join(groups: Groups) -> None:
    groups.top.command("export")(export_model)
    groups.top.command("import")(import_model)
