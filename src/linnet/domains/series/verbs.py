"""The share of series in the group `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import ColumnsOption
from linnet.errors import BadInput


@spoken
def check_series(
    face: Face,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files or folders.", show_default=False)],
    columns: ColumnsOption = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Rows of a long table: COLUMN=VALUE,…", show_default=False)
    ] = None,
    frequency: Annotated[
        str | None, typer.Option("--frequency", help="hourly, daily, weekly, …", show_default=False)
    ] = None,
) -> None:
    """Find what is wrong with tables of series.

    Says how often values come, the season and the longest cycle, and what is repaired by which rule. The exit code
    is 2 where training would refuse a file, and 0 where it would not.
    """
    from linnet.domains.series.checking import check
    from linnet.domains.series.sources import Reading, parse_roles, parse_where
    from linnet.workbench.open import located

    reading = Reading(parse_roles(columns or ""), parse_where(where or ""))
    record = check(located(paths), reading, frequency=frequency or "")
    face.show(record)
    if record.refused:
        raise typer.Exit(BadInput.exit_code)


def join(groups: Groups) -> None:
    groups.check.command("series")(check_series)
