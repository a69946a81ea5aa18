"""Verbs that make runs, score them and list them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linnet.cli.face import speaking
from linnet.cli.options import (
    ColumnsOption,
    DataOption,
    DebugOption,
    DeviceOption,
    EpochsOption,
    ErrorsOption,
    ForceOption,
    JsonOption,
    LocalOption,
    OutOption,
    PrecisionOption,
    RunArgument,
    SampleOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    TokenizerOption,
    WeightsOption,
    ZoneOption,
    exclude,
    places_settings,
    text_settings,
)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The name of a recipe, or a .toml file.")],
    data: DataOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train so many runs, OUT-seedN each, and show all.")
    ] = 1,
    sample: SampleOption = None,
    tokenizer: TokenizerOption = None,
    errors: ErrorsOption = None,
    columns: ColumnsOption = None,
    tz: ZoneOption = None,
    local: LocalOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a model.

    For instance: linnet train arithmetic, or linnet train run.toml --set model.depth=8

    Ctrl-C ends the run at a checkpoint; linnet resume goes on from there.
    """
    with speaking(json=json, debug=debug) as face:
        exclude(steps=steps, epochs=epochs)
        from linnet import workbench

        given = [
            *(settings or []),
            *text_settings(sample, tokenizer, errors),
            *places_settings(columns, tz, local),
        ]
        for record in workbench.train_seeds(
            recipe,
            seeds,
            out=out,
            data=data or [],
            settings=given,
            seed=seed,
            device=device,
            precision=precision,
            steps=steps,
            epochs=epochs,
            force=force,
            progress=face.progress,
        ):
            face.show(record)


def resume(run: RunArgument, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Go on with a run that was stopped.

    It ends with the weights that it would have had. A run that is finished is shown.
    """
    with speaking(json=json, debug=debug) as face:
        from linnet import workbench

        face.show(workbench.resume(run, progress=face.progress))


def evaluate(
    run: RunArgument,
    data: DataOption = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Only rows with this word in their split column.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option("--checkpoint", help="The step of the checkpoint to score.", show_default=False)
    ] = None,
    device: DeviceOption = None,
    precision: WeightsOption = None,
    errors: ErrorsOption = None,
    settings: SettingsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Score a run on whole files.

    Each score has its 95 % interval and what a person without a model would reach. Text is read as the run read
    its own; --set errors=, field= and documents= change that.
    """
    with speaking(json=json, debug=debug) as face:
        from linnet import workbench

        record = workbench.evaluate(
            run,
            data=data or [],
            split=split,
            settings=[*(settings or []), *([] if errors is None else [f"errors={errors}"])],
            device=device,
            precision=precision,
            checkpoint=checkpoint,
        )
        for note in record.notes:
            face.remark(note)
        face.show(record)


def list_runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Run folders, or folders of run folders [runs]."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Rank runs, with the settings that differ."""
    with speaking(json=json, debug=debug) as face:
        from linnet import workbench

        face.show(*workbench.runs(paths or [Path("runs")]))


def show(run: RunArgument, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show a run and what its model costs."""
    with speaking(json=json, debug=debug) as face:
        from linnet import workbench

        face.show(workbench.show(run))


def join(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("resume")(resume)
    app.command("eval")(evaluate)
    app.command("runs")(list_runs)
    app.command("show")(show)
