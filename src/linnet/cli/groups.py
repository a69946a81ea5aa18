"""The groups of verbs that the core and the domains join."""

from __future__ import annotations

from dataclasses import dataclass

import typer


def group(words: str) -> typer.Typer:
    return typer.Typer(help=words, no_args_is_help=True, rich_markup_mode=None)


@dataclass(frozen=True)
class Groups:
    """`top` has the verbs themselves; the others what stands behind `data make`, `data check` and `inspect`."""

    top: typer.Typer
    make: typer.Typer
    check: typer.Typer
    inspect: typer.Typer

    @classmethod
    def of(cls, app: typer.Typer) -> Groups:
        return cls(app, group("Make data."), group("Check data."), group("Look inside a model."))

    def close(self) -> None:
        """Join the groups to the command line, when all verbs are in them."""
        data = group("Make data, and check data.")
        data.add_typer(self.make, name="make")
        data.add_typer(self.check, name="check")
        self.top.add_typer(self.inspect, name="inspect")
        self.top.add_typer(data, name="data")
