"""`linnet caption RUN --file series.csv`: a caption of each series, and whether each of its facts holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import RunArgument


@spoken
def caption(
    face: Face,
    run: RunArgument,
    file: Annotated[Path, typer.Option("--file", help="A file or folder of series.", show_default=False)],
    rules: Annotated[bool, typer.Option("--rules", help="Write by rules instead of the model.")] = False,
) -> None:
    """Write a caption of each series, and mark which of its facts are true."""
    from linnet.domains.series.captions.use import captioned

    for record in captioned(run, [file], rules=rules):
        face.show(record)


def join(groups: Groups) -> None:
    groups.top.command("caption")(caption)
