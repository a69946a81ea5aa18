"""The command line: one module a group of verbs, joined here; domains bring their own. No verb has
logic of its own.

Verbs import what they need when they are called, so that `linnet --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from linnet import __version__
from linnet.cli import bench, exchange, generate, inside, machine, runs
from linnet.cli.groups import Groups
from linnet.domains.registry import registry, resolve


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
    groups = Groups.of(app)
    for module in (runs, generate, inside, exchange, machine, bench):
        module.join(groups)
    for registration in registry().domains.values():
        if registration.verbs:
            resolve(registration.verbs)(groups)
    groups.close()
    return app


def main() -> None:
    """What `linnet` runs."""
    build()()
