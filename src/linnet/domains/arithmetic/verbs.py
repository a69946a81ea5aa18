"""Verbs that make and check arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import ForceOption
from linnet.errors import BadInput

Task = Literal["add", "subtract", "multiply", "expression", "base", "polynomial"]
Range = tuple[int, int]


@spoken
def make_arithmetic(
    face: Face,
    out: Annotated[Path, typer.Option("--out", help="The folder for train, dev and test.", show_default=False)],
    task: Annotated[Task, typer.Option("--task", help="The kind of problem.")] = "add",
    instances: Annotated[int, typer.Option("--instances", help="Rows of the three files together.")] = 20_000,
    with_steps: Annotated[bool, typer.Option("--with-steps", help="Write the steps to each answer.")] = False,
    digits: Annotated[Range, typer.Option("--digits", help="Fewest and most digits of an operand.")] = (1, 3),
    operands: Annotated[
        Range | None, typer.Option("--operands", help="Fewest and most operands: 2 2, in expressions 2 4.")
    ] = None,
    depth: Annotated[Range, typer.Option("--depth", help="Fewest and most brackets around each other.")] = (0, 2),
    signs: Annotated[bool, typer.Option("--signs", help="Negative operands, too.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="The seed of what is drawn.")] = 42,
    force: ForceOption = False,
) -> None:
    """Draw problems into train, dev and test.

    The three files never share a problem, and files made on other machines or with other seeds do not either.
    """
    from linnet.domains.arithmetic.data import ArithmeticData
    from linnet.domains.arithmetic.making import make

    problems = ArithmeticData(task=task, digits=digits, operands=operands, depth=depth, signs=signs)
    face.show(make(out, problems.space, instances, seed=seed, with_steps=with_steps, force=force))


@spoken
def check_arithmetic(
    face: Face,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files or folders.", show_default=False)],
    task: Annotated[
        Task | None, typer.Option("--task", help="The kind of problem, where rows do not name it.")
    ] = None,
) -> None:
    """Count lengths and labels, and find wrong rows.

    Answers and steps are checked, and so is that no problem of the test rows is among the training rows. The
    exit code is 2 where rows are wrong or shared, and 0 where there is nothing worse than a repeated row.
    """
    from linnet.domains.arithmetic.checking import check

    record = check(paths, task)
    face.show(record)
    if record.refused:
        raise typer.Exit(BadInput.exit_code)


def join(groups: Groups) -> None:
    groups.make.command("arithmetic")(make_arithmetic)
    groups.check.command("arithmetic")(check_arithmetic)
