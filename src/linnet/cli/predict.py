"""The verb that predicts what comes next, or which class it is, for each line of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linnet import workbench
from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import (
    CheckpointOption,
    DeviceOption,
    ForceOption,
    PrecisionOption,
    RunArgument,
    SettingsOption,
)
from linnet.files import refuse_existing


@spoken
def predict(
    face: Face,
    run: RunArgument,
    file: Annotated[
        Path, typer.Option("--file", help="A table as training reads it, or JSON lines.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Draw the first forecasts into this .svg or .png file.", show_default=False),
    ] = None,
    force: ForceOption = False,
    k: Annotated[int, typer.Option("-k", help="So many candidates each.")] = 10,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
) -> None:
    """Predict next places of people, the next values of series, or the classes of series.

    Places: the file is a table of visits as training reads it (the history of each user), published samples, or
    lines such as {"id": 1, "visits": [{"place": "gym", "start": "2024-05-31T18:05:00", "duration": 50}, …]}. Give
    all that is known: the user and the places need not be known to the run.

    Series: a table or a .ts file as training reads it, or lines such as {"id": 1, "values": [3.5, null, 4]}.
    """
    if out is not None:
        from linnet.figures import refuse_picture

        refuse_existing(out, force=force)
        refuse_picture(out)
    options = {"device": device, "precision": precision, "checkpoint": checkpoint}
    found = workbench.predict(run, file, k=k, settings=tuple(settings or ()), **options)
    for note in found.notes:
        face.remark(note)
    for record in found:
        face.show(record)
    if out is not None:
        from linnet.figures import save_series
        from linnet.records import ForecastRecord

        save_series([record for record in found if isinstance(record, ForecastRecord)], out)
    count = len(found.records)
    one = 1000 * found.seconds / count
    face.remark(
        f"{count} {'history' if count == 1 else 'histories'}, {one:.2f} ms a prediction "
        f"in batches of {min(found.batch, count)} "
        f"({count / found.seconds:,.0f}/s; opening the run and reading the file not counted)"
    )


def join(groups: Groups) -> None:
    groups.top.command("predict")(predict)
