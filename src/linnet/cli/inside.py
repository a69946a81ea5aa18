"""What the verbs of `linnet inspect` share: each of them computes one record, which is shown or written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.groups import Groups
from linnet.cli.options import CheckpointOption, DebugOption, ForceOption, JsonOption, RunArgument
from linnet.files import refuse_existing

if TYPE_CHECKING:
    from linnet.records import Record

AnalysisOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Write into this file instead of showing: .npz, .json, .svg or .png.",
        show_default=False,
    ),
]
LayerOption = Annotated[int | None, typer.Option("--layer", min=0, help="One layer.", show_default=False)]
HeadOption = Annotated[int | None, typer.Option("--head", min=0, help="One head.", show_default=False)]
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="What the model reads.", show_default=False)]


@contextlib.contextmanager
def answering(out: Path | None, *, force: bool, json: bool, debug: bool) -> Iterator[Callable[[Record], None]]:
    """Where a verb hands its record: to be shown, or written into `out`."""
    with speaking(json=json, debug=debug) as face:
        if out is not None:
            from linnet.figures import refuse_suffix

            refuse_suffix(out)
            refuse_existing(out, force=force)

        def answer(record: Record) -> None:
            if out is None:
                face.show(record)
            else:
                from linnet.figures import save
                from linnet.records import AnalysisRecord

                assert isinstance(record, AnalysisRecord)
                save(record, out)

        yield answer


def attention(
    run: RunArgument,
    text: TextArgument,
    layer: LayerOption = None,
    head: HeadOption = None,
    checkpoint: CheckpointOption = None,
    out: AnalysisOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show where each head looks, or those of one layer, or one of them."""
    with answering(out, force=force, json=json, debug=debug) as answer:
        from linnet import workbench

        answer(workbench.attention(run, text, layer=layer, head=head, checkpoint=checkpoint))


def join(groups: Groups) -> None:
    groups.inspect.command("attention")(attention)
