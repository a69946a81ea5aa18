"""Verbs that ask a model for something."""

from __future__ import annotations

import json as standard_json
import zlib
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.options import (
    DebugOption,
    DeviceOption,
    FileOption,
    JsonOption,
    MaxTokensOption,
    PrecisionOption,
    RunArgument,
    SeedOption,
    SettingsOption,
    TemperatureOption,
)
from linnet.errors import BadInput


def generate(
    run: RunArgument,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to go on from.")] = None,
    file: FileOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Samples of each prompt.")] = 1,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Sample from the k likeliest tokens.", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", min=0.0, max=1.0, help="Sample from the likeliest tokens of this mass.", show_default=False
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", min=0.0, max=1.0, help="Sample from tokens with this share of the best.", show_default=False
        ),
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Go on from prompts.

    For instance: linnet generate RUN "12+34=" -n 4
    """
    with speaking(json=json, debug=debug) as face:
        asked = [*(prompts or []), *(prompts_of(file) if file else [])]
        if not asked:
            raise BadInput("there is nothing to go on from: give prompts, or a --file of them")
        from linnet import workbench

        records = workbench.generate(
            run,
            asked,
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            settings=settings or [],
            device=device,
            precision=precision,
        )
        for record in records:
            face.show(record)


def prompts_of(path: Path) -> list[str]:
    """The prompts of a file: each line is one as it stands, or a JSON object that has a `prompt`."""
    import gzip

    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").split("\n")
    except UnicodeDecodeError as wrong:
        raise BadInput(f"{path}: byte {wrong.start} is not UTF-8 text") from wrong
    except (gzip.BadGzipFile, EOFError, zlib.error) as wrong:
        raise BadInput(f"{path}: not a whole gzip file: {wrong}") from wrong
    found = []
    for place, line in enumerate(lines, 1):
        text = line.rstrip("\r")
        if text.startswith("{"):
            found.append(_prompt_of(text, f"{path}, line {place}"))
        elif text:
            found.append(text)
    return found


def _prompt_of(text: str, where: str) -> str:
    try:
        prompt = standard_json.loads(text).get("prompt")
    except standard_json.JSONDecodeError as wrong:
        raise BadInput(f"{where}: this starts like a JSON object and is none: {wrong}") from wrong
    if not isinstance(prompt, str):
        raise BadInput(f'{where}: a JSON object needs a "prompt" that is text')
    return prompt


def join(app: typer.Typer) -> None:
    app.command("generate")(generate)
