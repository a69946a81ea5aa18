"""What a run is before it begins: a recipe or a file, changed by settings. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.training.checkpoint import RunFolder
from linnet.training.run import Run
from linnet.training.settings import changed, flatten, parse_setting, upgraded
from linnet.untrusted import read_toml
from linnet.workbench.open import located, read_run

RATE = 0.1  # of the recipe's peak rates, which are made for fresh weights


def prepare(
    recipe: str,
    *,
    data: Sequence[Path | str] | Path | str = (),
    settings: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    start: Path | str | None = None,
) -> Run:
    """The run that a recipe or a .toml file means, with all changes; `start` is a run to begin with."""
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs exclude each other; give one of them")
    changes: list[tuple[str, Any]] = [parse_setting(setting) for setting in settings]
    if "start" in dict(changes):
        raise BadInput("--set start: --from RUN begins with a run, and takes its network and its codec, too")
    if recipe.endswith(".toml"):
        tree = read_toml(Path(recipe))
        name = tree.pop("recipe", None)
        if not isinstance(name, str):
            raise BadInput(f'{recipe} needs a line such as recipe = "arithmetic" to start from')
        old = tree.get("format") == 1
        tree = upgraded(tree, recipe)
        tree.pop("format", None)
        size, stored = tree.pop("size", None), tree.pop("start", None)
        start = Path(str(stored)) if start is None and stored is not None else start
        run = changed(unchanged(name, size, start), flatten(tree).items(), recipe, keep_unused=old)
    else:
        sizes = dict(changes)
        changes = [pair for pair in changes if pair[0] != "size"]
        run = unchanged(recipe, sizes.get("size"), start)
    if files := located(data):
        changes.append(("data.paths", [str(file) for file in files]))
    options = {"seed": seed, "device": device, "precision": precision, "steps": steps, "epochs": epochs}
    changes += [(key, value) for key, value in options.items() if value is not None]
    run = changed(run, changes)
    refuse_other_network(run)
    return run


def unchanged(name: str, size: object, start: Path | str | None) -> Run:
    """The run of a recipe before its settings are changed: with a network of its own, or with that of a run."""
    if start is not None and size is not None:
        raise BadInput(f"size={size}: the network is that of {start}, which has its size already")
    run = made(name, size)
    return run if start is None else begun_from(run, start)


def made(name: str, size: object = None) -> Run:
    """The run of this recipe; some derive everything else from one size."""
    _, recipe = registry().recipe(name)
    if size is None:
        return recipe()
    if recipe.size is None:
        sized = ", ".join(name for name, (_, one) in registry().recipes.items() if one.size is not None)
        raise BadInput(f'recipe "{name}" has no size; {sized} have one')
    if not isinstance(size, int):
        raise BadInput(f"size is a whole number, not {size!r}")
    return recipe(size)


def begun_from(run: Run, start: Path | str) -> Run:
    """The run with the network of another one, whose weights it will begin with, and a tenth of its own rates."""
    start = Path(start)
    origin = read_run(RunFolder.open(start))
    if origin.data.domain != run.data.domain:
        fitting = ", ".join(
            name for name, (domain, _) in registry().recipes.items() if domain == origin.data.domain
        )
        raise BadInput(
            f"{start} is a run on {origin.data.domain}, and the recipe {run.recipe} is one of {run.data.domain}; "
            f"recipes that fit: {fitting}"
        )
    rates = {name: float(f"{getattr(run.optim, name) * RATE:.6g}") for name in ("lr", "muon_lr")}
    optim = run.optim.model_copy(update=rates)
    return run.model_copy(update={"start": start.resolve(), "model": origin.model, "optim": optim})


def refuse_other_network(run: Run) -> None:
    """Weights fit one network; what training alone uses may change."""
    if run.start is None:
        return
    origin = read_run(RunFolder.open(run.start))
    was, now = (flatten(one.model.model_dump(mode="json")) for one in (origin, run))
    free = type(origin.model).changeable
    for key in was | now:
        if was.get(key) != now.get(key) and key.split(".")[0] not in free:
            raise BadInput(
                f"model.{key} is {was.get(key)} in {run.start}, whose weights this run begins with, and cannot "
                f"become {now.get(key)}; of the network it may change {', '.join(free)}"
            )
