"""Verbs that make runs, score them and list them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linnet import workbench
from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.inside import AnalysisOption, answer_to
from linnet.cli.options import (
    DataOption,
    DeviceOption,
    ForceOption,
    OutOption,
    PrecisionOption,
    RunArgument,
    SeedOption,
    SettingsOption,
    WeightsOption,
    domain_settings,
    exclude,
)

StepsOption = Annotated[int | None, typer.Option("--steps", min=0, help="Train this long.", show_default=False)]
EpochsOption = Annotated[
    float | None, typer.Option("--epochs", min=0, help="Train this many rounds of the data.", show_default=False)
]
MORE = {"ignore_unknown_options": True, "allow_extra_args": True}  # options of a domain come with its recipes


@spoken
def train(
    face: Face,
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="The name of a recipe, or a .toml file.")
    ] = None,
    data: DataOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN", help="Begin with the network and weights of a run.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train so many runs, OUT-seedN each, and show all.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show sizes, memory and time of the run, and make none.")
    ] = False,
    force: ForceOption = False,
    help: Annotated[bool, typer.Option("--help", help="Show this, and the settings of RECIPE.")] = False,
) -> None:
    """Train a model.

    For instance: linnet train arithmetic, or linnet train run.toml --set model.depth=8

    Ctrl-C ends the run at a checkpoint; linnet resume goes on from there. linnet recipes lists all recipes.
    --from RUN trains a run, or an import, further on other data: same network and codec, a tenth of the learning
    rates of RECIPE, a folder of its own.
    """
    if help:
        typer.echo(context.get_help(), file=face.out)
    if help and recipe is None:
        return
    if help or recipe is None:
        face.show(*workbench.recipes(recipe))
        return
    exclude(steps=steps, epochs=epochs)
    further = domain_settings(context.args, workbench.options_of_recipe(recipe))
    changes: dict[str, Any] = {"data": data or [], "settings": [*(settings or []), *further], "start": start}
    changes |= {"seed": seed, "device": device, "precision": precision, "steps": steps, "epochs": epochs}
    workbench.prepare(recipe, **changes)  # what is wrong is named before torch is loaded
    if dry_run:
        face.show(workbench.dry_run(recipe, **changes))
        return
    more: dict[str, Any] = {"out": out, "force": force, "progress": face.progress}
    for record in workbench.train_seeds(recipe, seeds, **more, **changes):
        face.show(record)


@spoken
def recipes(
    face: Face,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One recipe, with every setting.")] = None,
) -> None:
    """List the recipes, or every setting of one with its default and meaning."""
    face.show(*workbench.recipes(name))


@spoken
def resume(
    face: Face,
    run: RunArgument,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Go on to so many steps in all, beyond the end.", show_default=False),
    ] = None,
) -> None:
    """Go on with a run that was stopped.

    It ends with the weights that it would have had. A run that is finished is shown, unless --steps asks for more:
    then the learning rate is what the schedule of a run of that length has at each step, so that it rises again
    where it had fallen.
    """
    face.show(workbench.resume(run, steps=steps, progress=face.progress))


@spoken
def evaluate(
    face: Face,
    context: typer.Context,
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
    settings: SettingsOption = None,
) -> None:
    """Score a run on whole files.

    Each score has its 95 % interval and what a person without a model would reach. Files are read as the run read
    its own; for text, --errors and --set field= and documents= change that.
    """
    options = workbench.options_of_run(run) if context.args else ()

    record = workbench.evaluate(
        run,
        data=data or [],
        split=split,
        settings=[*(settings or []), *domain_settings(context.args, options)],
        device=device,
        precision=precision,
        checkpoint=checkpoint,
    )
    for note in record.notes:
        face.remark(note)
    face.show(record)


@spoken
def list_runs(
    face: Face,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Run folders, or folders of run folders [runs]."),
    ] = None,
) -> None:
    """Rank runs, with the settings that differ."""
    face.show(*workbench.runs(paths or [Path("runs")]))


@spoken
def show(face: Face, run: RunArgument, out: AnalysisOption = None, force: ForceOption = False) -> None:
    """Show a run, its learning curve and what its model costs.

    --out writes the curve alone.
    """
    answer = answer_to(face, out, force=force)
    answer(workbench.show(run) if out is None else workbench.learning_curve(run))


def join(groups: Groups) -> None:
    groups.top.command("train", context_settings=MORE, add_help_option=False)(train)
    groups.top.command("recipes")(recipes)
    groups.top.command("resume")(resume)
    groups.top.command("eval", context_settings=MORE)(evaluate)
    groups.top.command("runs")(list_runs)
    groups.top.command("show")(show)
