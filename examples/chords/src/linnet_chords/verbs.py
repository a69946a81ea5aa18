"""`linnet key RUN CHORDS`: the key of a progression, and how a run goes on from it."""

from __future__ import annotations

from typing import Annotated

import typer

from linnet import workbench
from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import RunArgument


@spoken
def key(
    face: Face,
    run: RunArgument,
    chords: Annotated[str, typer.Argument(metavar="CHORDS", help="A progression, such as C Am F G.")],
) -> None:
    """Name the key of a progression, and the likeliest next chords."""
    from linnet.records import NoteRecord
    from linnet_chords.codec import CHORDS
    from linnet_chords.data import key_of

    (next_chords,) = workbench.generate(run, [chords], temperature=0.0, max_tokens=4)
    tonic = CHORDS[key_of(chords.split())]
    face.show(NoteRecord(step=0, text=f"{chords} is in {tonic} major; it goes on with{next_chords.text}"))


def join(groups: Groups) -> None:
    groups.top.command("key")(key)
