"""Verbs of `linnet inspect` that read what a model holds: heads, lens, probe, interchange, embeddings, step."""

from __future__ import annotations

from typing import Annotated

import typer

from linnet import workbench
from linnet.cli.groups import Groups
from linnet.cli.inside import Answer, HeadOption, LayerOption, TextArgument, answering
from linnet.cli.options import CheckpointOption, DataOption, RunArgument

RowsOption = Annotated[int, typer.Option("--rows", min=1, help="Rows that are looked at.")]
SeedingOption = Annotated[int, typer.Option("--seed", min=0, help="The seed of everything random.")]
TapOption = Annotated[
    list[str] | None,
    typer.Option("--tap", metavar="TAP", help="Where to look; may be repeated. Without any: the residual stream."),
]
MaybeTextArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT", help="What the model reads; without any, repeated random tokens.", show_default=False
    ),
]


@answering
def heads(
    answer: Answer,
    run: RunArgument,
    text: MaybeTextArgument = None,
    data: DataOption = None,
    rows: RowsOption = 64,
    half: Annotated[
        int | None,
        typer.Option("--half", min=1, help="Random tokens before their repetition.", show_default=False),
    ] = None,
    seed: SeedingOption = 0,
    checkpoint: CheckpointOption = None,
) -> None:
    """Score each head: entropy, previous token, first token, diagonal, induction, duplicate.

    On random tokens that are repeated once, unless a text or --data is given.
    """
    answer(workbench.heads(run, text, data=data or (), rows=rows, half=half, seed=seed, checkpoint=checkpoint))


@answering
def lens(
    answer: Answer,
    run: RunArgument,
    text: TextArgument,
    tuned: Annotated[bool, typer.Option("--tuned", help="Train a translator of each layer first.")] = False,
    data: DataOption = None,
    rows: RowsOption = 500,
    top: Annotated[int, typer.Option("--top", min=1, help="Likeliest tokens to name.")] = 1,
    seed: SeedingOption = 0,
    checkpoint: CheckpointOption = None,
) -> None:
    """Show what the model would predict after each layer.

    The tuned lens learns from half of the rows (of --data, or of the validation part) and is scored on the rest.
    """
    answer(
        workbench.lens(
            run, text, tuned=tuned, top=top, data=data or (), rows=rows, seed=seed, checkpoint=checkpoint
        )
    )


@answering
def probe(
    answer: Answer,
    run: RunArgument,
    label: Annotated[
        str,
        typer.Argument(
            metavar="LABEL",
            help="carry, digit, operation, depth or another label of the run's domain, or module:function.",
            show_default=False,
        ),
    ],
    tap: TapOption = None,
    head: HeadOption = None,
    data: DataOption = None,
    rows: RowsOption = 500,
    seed: SeedingOption = 0,
    checkpoint: CheckpointOption = None,
) -> None:
    """Train linear and sparse probes of a label, beside a control task and baselines without a model.

    A function gets the names of a row's tokens and gives a label, or None, for each of them.
    """
    answer(
        workbench.probe(
            run, label, taps=tap or (), head=head, data=data or (), rows=rows, seed=seed, checkpoint=checkpoint
        )
    )


@answering
def interchange(
    answer: Answer,
    run: RunArgument,
    variable: Annotated[
        str,
        typer.Argument(
            metavar="VARIABLE",
            help="carry.1 or another variable of the run's domain, or module:function.",
            show_default=False,
        ),
    ],
    tap: TapOption = None,
    step: Annotated[
        int | None,
        typer.Option("--step", min=0, help="The step whose prediction is read.", show_default=False),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option("--at", min=0, help="The step at which values are exchanged [the same].", show_default=False),
    ] = None,
    dims: Annotated[
        list[int] | None,
        typer.Option("--dims", metavar="N", min=1, help="Dimensions of a subspace; may be repeated [1, 2, 4]."),
    ] = None,
    data: DataOption = None,
    rows: RowsOption = 1000,
    seed: SeedingOption = 0,
    checkpoint: CheckpointOption = None,
) -> None:
    """Exchange a variable between prompts, and see whether the model answers as a hypothesis says.

    The hypothesis is a function from the names of a prompt's tokens to the value of the variable and to a function
    from values to the next token.
    """
    sizes = tuple(dims or (1, 2, 4))
    answer(
        workbench.interchange(
            run,
            variable,
            taps=tap or (),
            step=step,
            at=at,
            dimensions=sizes,
            data=data or (),
            rows=rows,
            seed=seed,
            checkpoint=checkpoint,
        )
    )


@answering
def embeddings(
    answer: Answer,
    run: RunArgument,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", metavar="TOKEN", help="Name the neighbours of this token; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option("--components", min=1, help="Main directions.")] = 8,
    checkpoint: CheckpointOption = None,
) -> None:
    """Show main directions of the token vectors, neighbours, and frequencies of numbers."""
    answer(workbench.embeddings(run, token or (), count=count, checkpoint=checkpoint))


@answering
def step(
    answer: Answer,
    run: RunArgument,
    text: TextArgument,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Stop here.")] = 16,
    top: Annotated[int, typer.Option("--top", min=1, help="Alternatives of each step.")] = 5,
    layer: LayerOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Go on one token at a time, with alternatives and with where each head looked."""
    answer(workbench.step(run, text, max_tokens=max_tokens, top=top, layer=layer, checkpoint=checkpoint))


@answering
def development(
    answer: Answer,
    run: RunArgument,
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="heads, loss, probe, embeddings, or module:function.")
    ] = "heads",
    label: Annotated[str | None, typer.Option("--label", help="What a probe reads.", show_default=False)] = None,
    layer: LayerOption = None,
    head: HeadOption = None,
    data: DataOption = None,
    rows: RowsOption = 64,
    seed: SeedingOption = 0,
) -> None:
    """Follow something over the snapshots of a run (training.snapshots), and find when it sets in."""
    answer(
        workbench.development(
            run, what, label=label, layer=layer, head=head, data=data or (), rows=rows, seed=seed
        )
    )


def join(groups: Groups) -> None:
    for verb in (heads, lens, probe, interchange, embeddings, step, development):
        groups.inspect.command(verb.__name__)(verb)
