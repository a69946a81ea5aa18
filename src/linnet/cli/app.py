"""The command line: one module a group of verbs, joined here. No verb has logic of its own.

Verbs import what they need when they are called, so that `linnet --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from linnet import __version__
from linnet.cli import asking, bench, data, exchange, inside, machine, places, runs, tokenizer


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"linnet {__version__}")
        raise typer.Exit


def _linnet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Compact sequence models: train one on the machine you have, use it, and look inside it."""


def build() -> typer.Typer:
    """The whole command line as one object, for `main`, the help pages and the tests."""
    app = typer.Typer(
        name="linnet",
        callback=_linnet,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich alone would take longer than everything else
    )
    for module in (runs, asking, places, inside, exchange, data, tokenizer, machine, bench):
        module.join(app)
    return app


def main() -> None:
    """What `linnet` runs."""
    build()()
