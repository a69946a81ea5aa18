"""Verbs for runs on places, and the places' share of the groups `data` and `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.inside import Answer, answering
from linnet.cli.options import (
    CheckpointOption,
    ColumnsOption,
    DataOption,
    ForceOption,
    RunArgument,
)
from linnet.errors import BadInput

if TYPE_CHECKING:
    from linnet.domains.places.data import PlacesData


TableOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change how it is read, such as recipe.by=time; repeatable."),
]
ZoneOption = Annotated[
    str | None,
    typer.Option("--tz", metavar="ZONE", help="The zone of times that name none [UTC].", show_default=False),
]
LocalOption = Annotated[
    str | None,
    typer.Option("--local", metavar="ZONE", help="The zone whose hours count.", show_default=False),
]


@spoken
def forget(
    face: Face,
    run: RunArgument,
    user: Annotated[str, typer.Option("--user", help="Whom to forget.", show_default=False)],
) -> None:
    """Remove a user from a run.

    Gone are the name, the counts, the embedding, and places that nobody else visited. A run that was not finished
    is trained from its beginning when it is resumed, without this user.
    """
    from linnet.domains.places.use import forget

    face.show(forget(run, user))


@spoken
def misses(
    face: Face,
    run: RunArgument,
    data: DataOption = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Only samples of this part.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many.")] = 20,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Draw them into this .html file, too.", show_default=False)
    ] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """List the most surprising next places.

    The surest wrong answers come first. A map needs the extra linnet-sequences[map] and visits with coordinates.
    """
    from linnet.domains.places.use import misses

    found = misses(run, data or [], split=split, n=n, map_file=map_file, checkpoint=checkpoint, remark=face.remark)
    face.show(*found)


@answering
def kernels(
    answer: Answer,
    run: RunArgument,
    file: Annotated[
        Path, typer.Option("--file", help="Histories, as `linnet predict` reads them.", show_default=False)
    ],
    user: Annotated[
        str | None, typer.Option("--user", help="Whose history; the first one's.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="So many candidates.")] = 10,
    member: Annotated[int, typer.Option("--member", min=0, help="Of an ensemble.")] = 0,
    checkpoint: CheckpointOption = None,
) -> None:
    """Show which kernels of the scorer speak for the likeliest next places."""
    from linnet.domains.places.use import kernels

    answer(kernels(run, file, user=user, k=k, member=member, checkpoint=checkpoint))


@spoken
def make_places(
    face: Face,
    out: Annotated[Path, typer.Option("--out", help="The file of check-ins.", show_default=False)],
    users: Annotated[int, typer.Option("--users", min=1, help="People.")] = 300,
    visits: Annotated[int, typer.Option("--visits", min=1, help="Check-ins of each.")] = 160,
    seed: Annotated[int, typer.Option("--seed", help="The seed of what is drawn.")] = 0,
    force: ForceOption = False,
) -> None:
    """Draw check-ins from a known process.

    The best accuracy that anybody could reach on them is shown beside the counts.
    """
    from linnet.domains.places.generated import Process, make

    face.show(make(out, Process(users=users, visits=visits, seed=seed), force=force))


@spoken
def make_samples(
    face: Face,
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", help="The .jsonl or .jsonl.gz file.")] = Path("samples.jsonl.gz"),
    columns: ColumnsOption = None,
    tz: ZoneOption = None,
    local: LocalOption = None,
    settings: TableOption = None,
    force: ForceOption = False,
) -> None:
    """Write the samples of visits in the published form.

    Histories, targets and parts are those that linnet train places makes of the same files.
    """
    from linnet.workbench.open import located

    chosen = visit_table(located(data or []), settings or [], columns or "", tz or "", local or "")
    face.show(chosen.write_samples(out, force=force))


@spoken
def make_visits(
    face: Face,
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", help="The .csv, .csv.gz or .parquet file.")] = Path("visits.csv"),
    columns: ColumnsOption = None,
    tz: ZoneOption = None,
    local: LocalOption = None,
    settings: TableOption = None,
    force: ForceOption = False,
) -> None:
    """Write visits with the numbers of their places.

    Fixes become stays, and coordinates become places, once for all files; train, eval and predict on this table.
    """
    from linnet.workbench.open import located

    chosen = visit_table(located(data or []), settings or [], columns or "", tz or "", local or "")
    face.show(chosen.write_visits(out, force=force))


@spoken
def check_places(
    face: Face,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files or folders.", show_default=False)],
    columns: ColumnsOption = None,
    tz: ZoneOption = None,
    local: LocalOption = None,
    settings: TableOption = None,
) -> None:
    """Find wrong rows of visits, and leaks.

    What can be repaired is repaired by a rule that is named with its rows. The exit code is 2 where training would
    refuse the table, and 0 where it would not.
    """
    from linnet.domains.places.data import check

    chosen = visit_table(paths, settings or [], columns or "", tz or "", local or "")
    record = check(paths, chosen.reading, chosen.recipe, chosen.protocol)
    face.show(record)
    if record.refused:
        raise typer.Exit(BadInput.exit_code)


def visit_table(paths: Sequence[Path], settings: Sequence[str], columns: str, tz: str, local: str) -> PlacesData:
    """Settings as `data.recipe.by=time`, or without the `data.`; --columns, --tz and --local go on top."""
    from linnet.domains.places import recipes
    from linnet.domains.places.data import PlacesData
    from linnet.training.settings import changed, parse_setting

    given = [parse_setting(setting) for setting in settings]
    keyed = [(key if key.startswith("data.") else f"data.{key}", value) for key, value in given]
    run = changed(recipes.places(), keyed)
    assert isinstance(run.data, PlacesData)
    named = {"columns": columns, "tz": tz, "local": local}
    chosen = {name: value for name, value in named.items() if value}
    return run.data.model_copy(update={"paths": tuple(map(str, paths)), **chosen})


def join(groups: Groups) -> None:
    groups.top.command("forget")(forget)
    groups.inspect.command("misses")(misses)
    groups.inspect.command("kernels")(kernels)
    groups.make.command("places")(make_places)
    groups.make.command("samples")(make_samples)
    groups.make.command("visits")(make_visits)
    groups.check.command("places")(check_places)
