"""Verbs that change values inside a model and look at what becomes of its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from linnet import workbench
from linnet.cli.face import described
from linnet.cli.groups import Groups
from linnet.cli.inside import Answer, answering
from linnet.cli.options import CheckpointOption, DataOption, RunArgument
from linnet.errors import BadInput

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CLEAN",
        help="The prompt; without any, problems that the run has not trained on.",
        show_default=False,
    ),
]
CorruptArgument = Annotated[
    str | None,
    typer.Argument(metavar="CORRUPT", help="The prompt that it is compared with.", show_default=False),
]
AnswerOption = Annotated[
    str | None,
    typer.Option("--answer", help="The right answer; the model's own unless given.", show_default=False),
]
WrongOption = Annotated[
    str | None,
    typer.Option("--wrong", help="The answer that it is compared with.", show_default=False),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", help='Cases, one a line: {"clean": ..., "corrupt": ..., "answer": ..., "wrong": ...}.'),
]
CountOption = Annotated[int, typer.Option("-n", min=2, help="How many problems of the run or of --data.")]


MetricOption = Annotated[
    Literal["logit_difference", "log_probability", "score"],
    typer.Option("--metric", help="What is asked of each answer."),
]
ByOption = Annotated[
    Literal["zero", "mean", "resample"], typer.Option("--by", help="What stands in for the value of a part.")
]
What = Literal["residual", "attention", "mlp", "head", "neuron"]
Unit = Literal["head", "mlp", "part", "layer", "neuron"]


def about_cases(verb: Callable[..., None]) -> Callable[..., None]:
    """The command of a verb about cases: its last arguments say which, and are options of the command."""

    def command(
        show: Answer,
        prompt: PromptArgument = None,
        corrupt: CorruptArgument = None,
        answer: AnswerOption = None,
        wrong: WrongOption = None,
        file: FileOption = None,
        data: DataOption = None,
        n: CountOption = 64,
        metric: MetricOption = "logit_difference",
        checkpoint: CheckpointOption = None,
        **given: Any,
    ) -> None:
        given |= {"prompt": prompt, "corrupt": corrupt, "answer": answer, "wrong": wrong, "file": file}
        verb(show, data=data or [], n=n, metric=metric, checkpoint=checkpoint, **given)

    return answering(described(command, verb))


@answering
def attribute(
    show: Answer,
    run: RunArgument,
    clean: PromptArgument = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    file: FileOption = None,
    data: DataOption = None,
    n: CountOption = 64,
    checkpoint: CheckpointOption = None,
) -> None:
    """Show what each part adds to the logits of the answer; the parts add up to the logit."""
    cases: dict[str, Any] = {"answer": answer, "wrong": wrong, "file": file, "data": data or [], "n": n}
    show(workbench.attribute(run, prompt=clean, checkpoint=checkpoint, **cases))


@about_cases
def patch(
    show: Answer,
    run: RunArgument,
    what: Annotated[What, typer.Option("--what", help="What is put into the corrupt run.")] = "head",
    by_position: Annotated[bool, typer.Option("--by-position", help="Each position by itself.")] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Attribution patching (one gradient for all) beside it, with its error."),
    ] = False,
    into: Annotated[
        list[str] | None,
        typer.Option(
            "--into",
            metavar="READER",
            help="Instead: corrupt parts by their paths into this reader alone, such as v.1.0; repeatable.",
        ),
    ] = None,
    direct: Annotated[bool, typer.Option("--direct", help="With --into: no path through a feed-forward.")] = False,
    **cases: Any,
) -> None:
    """Put values of the run of one prompt into that of another; 1 is the clean run, 0 the corrupt one."""
    if direct and not into:
        raise BadInput("--direct is about the paths into a reader; name one with --into, such as v.1.0")
    if into and (by_position or estimate or what != "head"):
        raise BadInput("--into puts every part into its readers; leave out --what, --by-position and --estimate")
    if into:
        show(workbench.path_patch(run, into, direct=direct, **cases))
    else:
        show(workbench.patch(run, what=what, by_position=by_position, estimate=estimate, **cases))


@about_cases
def ablate(
    show: Answer,
    run: RunArgument,
    what: Annotated[Unit, typer.Option("--what", help="What is taken away, one after the other.")] = "part",
    by: ByOption = "mean",
    layer: Annotated[int | None, typer.Option("--layer", help="Only parts of this layer.")] = None,
    **cases: Any,
) -> None:
    """Take away each head, feed-forward, layer or neuron; --metric score counts answers that are still right."""
    show(workbench.ablate(run, what=what, by=by, layer=layer, **cases))


@about_cases
def edges(
    show: Answer,
    run: RunArgument,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method", metavar="METHOD", help="eap, eap-ig or acdc, beside the exact edges; repeatable."
        ),
    ] = None,
    curves: Annotated[bool, typer.Option("--curves/--no-curves", help="How faithful chosen circuits are.")] = True,
    **cases: Any,
) -> None:
    """Compute every edge exactly, and print each approximation beside its error."""
    show(workbench.find_edges(run, methods=tuple(methods or ("eap", "eap-ig")), curves=curves, **cases))


@about_cases
def subsets(
    show: Answer,
    run: RunArgument,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART",
            help="head.0.1, mlp.0, heads, mlps or layer.0; all parts unless given; repeatable.",
        ),
    ] = None,
    by: ByOption = "mean",
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="Of the effect, that a minimal circuit keeps.")
    ] = 0.95,
    orders: Annotated[
        int | None, typer.Option("--orders", min=4, help="Estimate Shapley values from so many random orders.")
    ] = None,
    **cases: Any,
) -> None:
    """Run the model with every subset of up to 14 parts: minimal circuits, Shapley values, pair interactions."""
    show(workbench.find_subsets(run, names=tuple(part or ()), by=by, share=share, orders=orders, **cases))


def join(groups: Groups) -> None:
    for verb in (attribute, patch, ablate, edges, subsets):
        groups.inspect.command(verb.__name__)(verb)
