"""Verbs that change values inside a model and look at what becomes of its answer."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.groups import Groups
from linnet.cli.inside import AnalysisOption, answering
from linnet.cli.options import CheckpointOption, DataOption, DebugOption, ForceOption, JsonOption, RunArgument

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


class MetricName(StrEnum):
    logit_difference = "logit_difference"
    log_probability = "log_probability"
    score = "score"


class By(StrEnum):
    zero = "zero"
    mean = "mean"
    resample = "resample"


class What(StrEnum):
    residual = "residual"
    attention = "attention"
    mlp = "mlp"
    head = "head"
    neuron = "neuron"


class Unit(StrEnum):
    head = "head"
    mlp = "mlp"
    part = "part"
    layer = "layer"
    neuron = "neuron"


MetricOption = Annotated[MetricName, typer.Option("--metric", help="What is asked of each answer.")]
ByOption = Annotated[By, typer.Option("--by", help="What stands in for the value of a part.")]


def attribute(
    run: RunArgument,
    clean: PromptArgument = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    file: FileOption = None,
    data: DataOption = None,
    n: CountOption = 64,
    checkpoint: CheckpointOption = None,
    out: AnalysisOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what each part adds to the logits of the answer; the parts add up to the logit."""
    with answering(out, force=force, json=json, debug=debug) as show:
        from linnet import workbench

        show(
            workbench.attribute(
                run,
                prompt=clean,
                answer=answer,
                wrong=wrong,
                file=file,
                data=data or [],
                n=n,
                checkpoint=checkpoint,
            )
        )


def patch(
    run: RunArgument,
    clean: PromptArgument = None,
    corrupt: CorruptArgument = None,
    what: Annotated[What, typer.Option("--what", help="What is put into the corrupt run.")] = What.head,
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
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    file: FileOption = None,
    data: DataOption = None,
    n: CountOption = 64,
    metric: MetricOption = MetricName.logit_difference,
    checkpoint: CheckpointOption = None,
    out: AnalysisOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Put values of the run of one prompt into that of another; 1 is the clean run, 0 the corrupt one."""
    with answering(out, force=force, json=json, debug=debug) as show:
        from linnet import workbench
        from linnet.workbench.cases import CaseOptions

        cases = CaseOptions(
            prompt=clean,
            corrupt=corrupt,
            answer=answer,
            wrong=wrong,
            file=file,
            data=data or [],
            n=n,
            metric=metric.value,
            checkpoint=checkpoint,
        )
        if into:
            show(workbench.path_patch(run, into, direct=direct, **cases))
        else:
            show(workbench.patch(run, what=what.value, by_position=by_position, estimate=estimate, **cases))


def ablate(
    run: RunArgument,
    clean: PromptArgument = None,
    corrupt: CorruptArgument = None,
    what: Annotated[Unit, typer.Option("--what", help="What is taken away, one after the other.")] = Unit.part,
    by: ByOption = By.mean,
    layer: Annotated[int | None, typer.Option("--layer", help="Only neurons of this layer.")] = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    file: FileOption = None,
    data: DataOption = None,
    n: CountOption = 64,
    metric: MetricOption = MetricName.logit_difference,
    checkpoint: CheckpointOption = None,
    out: AnalysisOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Take away each head, feed-forward, layer or neuron; --metric score counts answers that are still right."""
    with answering(out, force=force, json=json, debug=debug) as show:
        from linnet import workbench

        show(
            workbench.ablate(
                run,
                what=what.value,
                by=by.value,
                layer=layer,
                prompt=clean,
                corrupt=corrupt,
                answer=answer,
                wrong=wrong,
                file=file,
                data=data or [],
                n=n,
                metric=metric.value,
                checkpoint=checkpoint,
            )
        )


def edges(
    run: RunArgument,
    clean: PromptArgument = None,
    corrupt: CorruptArgument = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method", metavar="METHOD", help="eap, eap-ig or acdc, beside the exact edges; repeatable."
        ),
    ] = None,
    curves: Annotated[bool, typer.Option("--curves/--no-curves", help="How faithful chosen circuits are.")] = True,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    file: FileOption = None,
    data: DataOption = None,
    n: CountOption = 64,
    metric: MetricOption = MetricName.logit_difference,
    checkpoint: CheckpointOption = None,
    out: AnalysisOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compute every edge exactly, and print each approximation beside its error."""
    with answering(out, force=force, json=json, debug=debug) as show:
        from linnet import workbench

        show(
            workbench.find_edges(
                run,
                methods=tuple(methods or ("eap", "eap-ig")),
                curves=curves,
                prompt=clean,
                corrupt=corrupt,
                answer=answer,
                wrong=wrong,
                file=file,
                data=data or [],
                n=n,
                metric=metric.value,
                checkpoint=checkpoint,
            )
        )


def subsets(
    run: RunArgument,
    clean: PromptArgument = None,
    corrupt: CorruptArgument = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART",
            help="head.0.1, mlp.0, heads, mlps or layer.0; all parts unless given; repeatable.",
        ),
    ] = None,
    by: ByOption = By.mean,
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="Of the effect, that a minimal circuit keeps.")
    ] = 0.95,
    orders: Annotated[
        int | None, typer.Option("--orders", min=4, help="Estimate Shapley values from so many random orders.")
    ] = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    file: FileOption = None,
    data: DataOption = None,
    n: CountOption = 64,
    metric: MetricOption = MetricName.logit_difference,
    checkpoint: CheckpointOption = None,
    out: AnalysisOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the model with every subset of up to 14 parts: minimal circuits, Shapley values, pair interactions."""
    with answering(out, force=force, json=json, debug=debug) as show:
        from linnet import workbench

        show(
            workbench.find_subsets(
                run,
                names=tuple(part or ()),
                by=by.value,
                share=share,
                orders=orders,
                prompt=clean,
                corrupt=corrupt,
                answer=answer,
                wrong=wrong,
                file=file,
                data=data or [],
                n=n,
                metric=metric.value,
                checkpoint=checkpoint,
            )
        )


def join(groups: Groups) -> None:
    for verb in (attribute, patch, ablate, edges, subsets):
        groups.inspect.command(verb.__name__)(verb)
