"""The options that verbs share, each described once.

Only what typer needs is imported here: `linnet --help` has to answer before torch could be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from linnet.domains.registry import Option
from linnet.errors import BadInput, nearest

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Weights = Literal["auto", "float32", "bfloat16", "bf16", "float16", "int8", "int4"]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]

DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", metavar="PATH", help="A file or folder; may be given several times, and .gz is read as it is."
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Where to write.", show_default=False)]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="The seed of everything random.", show_default=False)
]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Where to compute.", show_default=False)]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="The numbers of matrix products.", show_default=False)
]
WeightsOption = Annotated[
    Weights | None,
    typer.Option("--precision", help="The numbers of the weights; results equal training's in float32."),
]
CheckpointOption = Annotated[
    int | None, typer.Option("--checkpoint", help="The step of the checkpoint to use.", show_default=False)
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, such as model.depth=8; may be repeated."),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Stop a sample here.", show_default=False)
]
PromptsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="What to go on from; - reads one a line from standard input; without any the model begins by itself.",
        show_default=False,
    ),
]
SamplesOption = Annotated[int, typer.Option("-n", min=1, help="Samples of each prompt.")]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=1, help="Sample from the k likeliest tokens.", show_default=False)
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p", min=0.0, max=1.0, help="Sample from the likeliest tokens of this mass.", show_default=False
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p", min=0.0, max=1.0, help="Sample from tokens with this share of the best.", show_default=False
    ),
]
PenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens that were there already become rarer.")
]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help='One prompt a line, or one JSON object with a "prompt"; - is standard input.',
        show_default=False,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", metavar="ROLE=COLUMN,…", help="Columns of a table of visits.", show_default=False),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace what linnet wrote at --out, and nothing else.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON lines, one record each, and nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def domain_settings(given: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The settings that the options of a domain stand for, as `--flag value` or `--flag=value`."""
    known, found, words = {option.flag: option for option in options}, [], iter(given)
    for word in words:
        flag, equals, rest = word.partition("=")
        if flag not in known:
            what = "option" if flag.startswith("-") else "argument"
            raise BadInput(f'there is no {what} "{flag}" here{nearest(flag, known) if known else ""}')
        value = rest if equals else next(words, None)
        if value is None:
            raise BadInput(f"{flag} needs a value")
        text = str(Path(value).absolute()) if known[flag].path else value
        found.append(f"{known[flag].key}={text if text.isdigit() else json.dumps(text)}")
    return found


def exclude(**given: object) -> None:
    """Refuse more than one of these options."""
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise BadInput(f"{' and '.join(named)} exclude each other; give one of them")
