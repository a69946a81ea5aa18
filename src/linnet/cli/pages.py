"""docs/help.md, written from the command line itself: python -m linnet.cli.pages > docs/help.md

Verbs, options and their words are read where typer reads them, the signatures, so that the page does not
depend on how a version of typer lays out its help.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from linnet.cli.app import build

HEADING = """# Every verb and option

This page is written from the command line itself (`make docs`), and a test keeps it so. `linnet VERB --help`
says the same.
"""


def page(app: typer.Typer) -> str:
    """The whole page."""
    return "\n".join([HEADING, *(section(name, verb) for name, verb in verbs(app, "linnet"))])


def verbs(app: typer.Typer, path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command with its full name, groups opened."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{path} {command.name}", command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from verbs(group.typer_instance, f"{path} {group.name}")


def section(name: str, verb: Callable[..., Any]) -> str:
    arguments, options = [], []
    hints = typing.get_type_hints(verb, include_extras=True)
    for parameter in inspect.signature(verb).parameters.values():
        if hints[parameter.name] is typer.Context:
            continue
        kind, described = typing.get_args(hints[parameter.name])[:2]
        if isinstance(described, ArgumentInfo):
            arguments.append((described.metavar or parameter.name.upper(), described, parameter.default))
        else:
            options.append(option_row(parameter, kind, described))
    usage = " ".join([name, "[OPTIONS]", *(argument_usage(shown, default) for shown, _, default in arguments)])
    lines = [f"## {name}", "", f"`{usage}`", "", inspect.cleandoc(verb.__doc__ or ""), ""]
    if arguments:
        lines += [*(f"- `{shown}`: {described.help}" for shown, described, _ in arguments), ""]
    lines += ["| option | value | |", "|---|---|---|", *options, ""]
    return "\n".join(lines)


def argument_usage(shown: str, default: object) -> str:
    return shown if default is inspect.Parameter.empty else f"[{shown} ...]"


def option_row(parameter: inspect.Parameter, kind: object, described: OptionInfo) -> str:
    # In an Annotated option the first name stands where the default would be.
    names = ", ".join(
        f"`{name}`" for name in (described.default, *(described.param_decls or ())) if isinstance(name, str)
    )
    known = parameter.default
    if known is inspect.Parameter.empty:
        default = " (needed)"
    elif known in (None, False):
        default = ""
    else:
        default = f" (default: {' '.join(map(str, known)) if isinstance(known, tuple) else known})"
    help_text = (described.help or "").replace("|", "\\|")
    return f"| {names} | {value_of(kind, described)} | {help_text}{default} |"


def value_of(kind: object, described: OptionInfo) -> str:
    """What follows the option: nothing for a switch, the choices, or the kind of value."""
    if described.metavar:
        return described.metavar
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return "two integers"
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(typing.get_args(kind))
    return {bool: "", int: "integer", float: "number", str: "text", Path: "path"}[typing.cast(type, kind)]


if __name__ == "__main__":
    sys.stdout.write(page(build()))
