"""The command line: one module a group of verbs, joined here; domains bring their own. No verb has
logic of its own.

Verbs import what they need when they are called, so that `linnet --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from linnet import __version__
from linnet.cli import bench, causal, exchange, generate, inside, predict, reading, runs, search
from linnet.cli.groups import Groups
from linnet.domains.registry import registry, resolve


class PlainWords(TyperGroup):
    """Says of an argument that cannot be used what it is and what it has to be, in our own words."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as wrong:
            from pydantic import ValidationError

            from linnet.untrusted import mistake_text

            if isinstance(wrong.__cause__, ValidationError):
                mistake = wrong.__cause__.errors()[0]
                wrong.message = mistake_text(mistake, "" if mistake["type"] == "value_error" else "it")
            raise


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
        cls=PlainWords,
        callback=_linnet,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich alone would take longer than everything else
    )
    groups = Groups.of(app)
    for module in (runs, generate, predict, search, inside, causal, reading, exchange, bench):
        module.join(groups)
    for registration in registry().domains.values():
        if registration.verbs:
            resolve(registration.verbs)(groups)
    groups.close()
    return app


def main() -> None:
    """What `linnet` runs."""
    build()()
