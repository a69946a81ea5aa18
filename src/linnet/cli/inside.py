"""Verbs that look inside a model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.groups import Groups
from linnet.cli.options import CheckpointOption, DebugOption, ForceOption, JsonOption, RunArgument
from linnet.files import refuse_existing, write_atomically

if TYPE_CHECKING:
    from linnet.records import AttentionRecord

ArraysOption = Annotated[
    Path | None,
    typer.Option("--out", help="Write arrays into this .npz file instead of showing them.", show_default=False),
]


def attention(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model reads.", show_default=False)],
    checkpoint: CheckpointOption = None,
    out: ArraysOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show where each head looks."""
    with speaking(json=json, debug=debug) as face:
        if out is not None:
            refuse_existing(out, force=force)
        from linnet import workbench

        record = workbench.attention(run, text, checkpoint=checkpoint)
        if out is None:
            face.show(record)
        else:
            write_arrays(record, out)


def write_arrays(record: AttentionRecord, out: Path) -> None:
    """The record as NumPy arrays: `values`, and the names of its `axes` and `tokens`."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, values=np.array(record.values, np.float32), axes=record.axes, tokens=record.tokens)
    write_atomically(out, content.getvalue())


def join(groups: Groups) -> None:
    groups.inspect.command("attention")(attention)
