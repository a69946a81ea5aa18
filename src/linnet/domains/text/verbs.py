"""Verbs about tokenizers by themselves."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.groups import Groups
from linnet.cli.options import (
    DebugOption,
    ErrorsOption,
    ForceOption,
    JsonOption,
    SampleOption,
    SettingsOption,
)

Kind = StrEnum("Kind", ["bpe", "unigram", "words", "characters"])
TextOption = Annotated[
    list[Path], typer.Option("--data", metavar="PATH", help="A file or folder; may be given several times.")
]
CountsOption = Annotated[
    Path | None, typer.Option("--counts", help="Write how often each token occurs.", show_default=False)
]


def train(
    data: TextOption,
    out: Annotated[Path, typer.Option("--out", help="The tokenizer.json to write.")],
    kind: Annotated[Kind | None, typer.Option("--kind", help="What pieces are; bpe unless set.")] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", help="How many tokens; 16,000 unless set.", show_default=False)
    ] = None,
    sample: SampleOption = None,
    errors: ErrorsOption = None,
    counts: CountsOption = None,
    settings: SettingsOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Learn a tokenizer from text, and check it on that text.

    Rules are settings: urls=true, mentions=true, numbers=digits or groups, lowercase=true, min_count=2;
    documents=line, paragraph or file says what a document of a text file is, field=NAME where rows keep it.
    """
    with speaking(json=json, debug=debug) as face:
        from linnet.domains.text.tokenizer_verbs import tokenizer_train

        options = {"kind": kind, "vocabulary": vocabulary, "errors": errors}
        found = tokenizer_train(
            out, data, sample=sample, settings=settings or [], counts=counts, force=force, **options
        )
        face.show(found)


def check(
    tokenizer: Annotated[
        Path, typer.Argument(metavar="TOKENIZER", help="A tokenizer.json, or the folder of a run.")
    ],
    data: TextOption,
    sample: SampleOption = None,
    errors: ErrorsOption = None,
    counts: CountsOption = None,
    settings: SettingsOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a tokenizer does to text: whether it comes back, how short it gets, and what is never used."""
    with speaking(json=json, debug=debug) as face:
        from linnet.domains.text.tokenizer_verbs import tokenizer_check

        found = tokenizer_check(
            tokenizer, data, sample=sample, settings=settings or [], counts=counts, force=force, errors=errors
        )
        face.show(found)


def join(groups: Groups) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Learn a tokenizer, or check one.")
    group.command("train")(train)
    group.command("check")(check)
    groups.top.add_typer(group, name="tokenizer")
