"""What the verbs of `linnet inspect` share: each of them computes one record, which is shown or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from linnet import workbench
from linnet.cli.face import Face, described, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import CheckpointOption, ForceOption, RunArgument
from linnet.files import refuse_existing

Answer = Callable[[Any], None]  # takes the record of a verb
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


def answering(verb: Callable[..., None]) -> Callable[..., None]:
    """The command of a verb that hands over one record: it is shown, or written into the file of --out."""

    def command(face: Face, out: AnalysisOption = None, force: ForceOption = False, **given: Any) -> None:
        verb(answer_to(face, out, force=force), **given)

    return spoken(described(command, verb))


def answer_to(face: Face, out: Path | None, *, force: bool) -> Answer:
    if out is None:
        return face.show
    from linnet.figures import refuse_suffix, save

    refuse_suffix(out)
    refuse_existing(out, force=force)
    return lambda record: save(record, out)


@answering
def attention(
    answer: Answer,
    run: RunArgument,
    text: TextArgument,
    layer: LayerOption = None,
    head: HeadOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Show where each head looks, or those of one layer, or one of them."""
    answer(workbench.attention(run, text, layer=layer, head=head, checkpoint=checkpoint))


def join(groups: Groups) -> None:
    groups.inspect.command("attention")(attention)
