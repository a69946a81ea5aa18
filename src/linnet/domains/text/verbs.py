"""Verbs of text: conversations with a run, and tokenizers by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from linnet.cli.face import Face, spoken
from linnet.cli.generate import Page, answer_lines
from linnet.cli.groups import Groups
from linnet.cli.options import (
    CheckpointOption,
    DeviceOption,
    ForceOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    RunArgument,
    SeedOption,
    SettingsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from linnet.domains.text.conversation import Conversation
    from linnet.workbench import Options

Kind = Literal["bpe", "unigram", "words", "characters"]
SampleOption = Annotated[int | None, typer.Option("--sample", min=1, help="Use so many documents of the text.")]
ErrorsOption = Annotated[
    Literal["strict", "replace"] | None, typer.Option("--errors", help="What to do with bytes that are not UTF-8.")
]
TextOption = Annotated[
    list[Path], typer.Option("--data", metavar="PATH", help="A file or folder; may be given several times.")
]
CountsOption = Annotated[Path | None, typer.Option("--counts", help="Write how often each token occurs.")]


@spoken
def train(
    face: Face,
    data: TextOption,
    out: Annotated[Path, typer.Option("--out", help="The tokenizer.json to write.")],
    kind: Annotated[Kind | None, typer.Option("--kind", help="What pieces are; bpe unless set.")] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", help="How many tokens; 16,000 unless set.")
    ] = None,
    sample: SampleOption = None,
    errors: ErrorsOption = None,
    counts: CountsOption = None,
    settings: SettingsOption = None,
    force: ForceOption = False,
) -> None:
    """Learn a tokenizer from text, and check it on that text.

    Rules are settings: urls=true, mentions=true, numbers=digits or groups, lowercase=true, min_count=2;
    documents=line, paragraph or file says what a document of a text file is, field=NAME where rows keep it.
    """
    from linnet.domains.text.tokenizer_verbs import tokenizer_train

    options = {"kind": kind, "vocabulary": vocabulary, "errors": errors}
    found = tokenizer_train(
        out, data, sample=sample, settings=settings or [], counts=counts, force=force, **options
    )
    face.show(found)


@spoken
def check(
    face: Face,
    tokenizer: Annotated[
        Path, typer.Argument(metavar="TOKENIZER", help="A tokenizer.json, or the folder of a run.")
    ],
    data: TextOption,
    sample: SampleOption = None,
    errors: ErrorsOption = None,
    counts: CountsOption = None,
    settings: SettingsOption = None,
    force: ForceOption = False,
) -> None:
    """Say what a tokenizer does to text: whether it comes back, how short it gets, and what is never used."""
    from linnet.domains.text.tokenizer_verbs import tokenizer_check

    found = tokenizer_check(
        tokenizer, data, sample=sample, settings=settings or [], counts=counts, force=force, errors=errors
    )
    face.show(found)


@spoken
def chat(
    face: Face,
    run: RunArgument,
    template: Annotated[
        str | None, typer.Option("--template", help="How messages are written; that of the run unless set.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message, which comes first.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    penalty: PenaltyOption = 1.0,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    precision: WeightsOption = None,
) -> None:
    """Talk with a run that was trained on conversations.

    Each line of standard input is a message; answers are on standard output. /new begins a new conversation,
    and the end of the input (Ctrl-D) ends the last one.
    """
    from linnet.domains.text.conversation import Conversation

    options: Options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": penalty,
        "seed": seed,
        "precision": precision,
        "remark": face.remark,
    }
    given = {"template": template, "system": system, "device": device}
    talk(face, Conversation.open(run, options, checkpoint=checkpoint, **given))


def talk(face: Face, conversation: Conversation) -> None:
    """Answer each line of standard input; /new begins a new conversation."""

    def answer(message: str) -> None:
        if message.strip() == "/new":
            conversation.exchanges.clear()
            return
        records = conversation.answer(message)
        if face.json:
            face.show(*(record for record in records if record.kind == "generation"))
        else:
            Page(face, prompts=False, facts=False).write(records, live=True)

    answer_lines(face, answer)


def join(groups: Groups) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Learn a tokenizer, or check one.")
    group.command("train")(train)
    group.command("check")(check)
    groups.top.add_typer(group, name="tokenizer")
    groups.top.command("chat")(chat)
