"""Verbs that look inside a model."""

from __future__ import annotations

from typing import Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.options import DebugOption, JsonOption, RunArgument


def attention(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model reads.", show_default=False)],
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show where each head looks."""
    with speaking(json=json, debug=debug) as face:
        from linnet import workbench

        face.show(workbench.attention(run, text))


def join(app: typer.Typer) -> None:
    group = typer.Typer(help="Look inside a model.", no_args_is_help=True, rich_markup_mode=None)
    group.command("attention")(attention)
    app.add_typer(group, name="inspect")
