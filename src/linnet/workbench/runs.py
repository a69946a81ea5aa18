"""What runs there are, and what one of them holds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from linnet.errors import BadInput
from linnet.model.costs import Costs
from linnet.records import AnalysisRecord, ListedRunRecord, Score, ShowRecord
from linnet.training.checkpoint import RunFolder
from linnet.training.run import Run
from linnet.training.settings import flatten, without_unused
from linnet.workbench.curves import curve_of
from linnet.workbench.open import read_record, read_run

RISING = ("exact", "acc@", "mrr", "ndcg", "f1", "accuracy", "legacy.", "strict.", "facts_true")


def rises(name: str) -> bool:
    """Whether more of this score is better; likelihoods and errors are better when low."""
    return name.startswith(RISING)


def state_of(folder: RunFolder) -> Literal["empty", "unfinished", "finished"]:
    if folder.record.is_file():
        return "finished"
    return "unfinished" if folder.steps() else "empty"


def scores_of(folder: RunFolder) -> tuple[Score, ...]:
    record = read_record(folder)
    return () if record is None else record.scores


def known(scores: tuple[Score, ...]) -> tuple[Score, ...]:
    """The scores from the first one on that is a number, by which runs are ranked.

    Tokens are not the same in all runs, so that nats of characters come before theirs.
    """
    found = tuple(itertools.dropwhile(lambda score: math.isnan(score.value), scores))
    of_tokens = found[:1] and found[0].name == "nats_per_token"
    return tuple(sorted(found, key=lambda score: score.name != "nats_per_char")) if of_tokens else found


def costs_of(run: Run) -> Costs:
    """All zero before the data have told the sizes."""
    return run.model.costs(rows=run.rows_at_once, ema=bool(run.optim.ema)) or Costs(0, 0, 0, 0)


def show(path: Path | str) -> ShowRecord:
    """What a run folder holds and what its model costs."""
    folder = RunFolder.open(Path(path))
    run = read_run(folder)
    cost = costs_of(run)
    done = folder.steps()
    return ShowRecord(
        path=str(path),
        recipe=run.recipe,
        state=state_of(folder),
        step=done[-1] if done else 0,
        steps=run.training.steps or 0,
        parameters=cost.parameters,
        flops_per_token=cost.flops_per_token,
        kv_bytes_per_token=cost.kv_bytes_per_token,
        training_bytes=cost.training_bytes,
        checkpoints=tuple(done),
        best=folder.best(),
        settings=without_unused(run),
        scores=scores_of(folder),
        curve=curve_of(folder),
    )


def learning_curve(path: Path | str) -> AnalysisRecord:
    """The loss of training and of validation over the steps of a run."""
    curve = curve_of(RunFolder.open(Path(path)))
    if curve is None:
        raise BadInput(f"{path} has no curve: not one step is logged")
    return curve


def folders(paths: Sequence[Path | str]) -> Iterator[RunFolder]:
    """The runs that these paths are, or hold one level down."""
    for path in map(Path, paths):
        if not path.is_dir():
            raise BadInput(f"there is no folder {path}; name one with runs in it, or make one with linnet train")
        inside = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
        for folder in inside:
            if (folder / "run.toml").is_file():
                yield RunFolder(folder)


def runs(paths: Sequence[Path | str]) -> list[ListedRunRecord]:
    """The runs by recipe, score and data, ranked within each group, with the settings that differ in a recipe."""
    rows = [(folder, read_run(folder), known(scores_of(folder))) for folder in folders(paths)]

    def group(run: Run, scores: tuple[Score, ...]) -> tuple[str, bool, str, str]:
        paths = flatten(without_unused(run)).get("data.paths")
        return run.recipe, not scores, scores[0].name if scores else "", repr(paths)

    def order(row: tuple[RunFolder, Run, tuple[Score, ...]]) -> tuple[tuple[str, bool, str, str], float, str]:
        folder, run, scores = row
        value = (-scores[0].value if rises(scores[0].name) else scores[0].value) if scores else 0.0
        return group(run, scores), value, str(folder.path)

    flat: dict[str, list[dict[str, Any]]] = {}
    for _, run, _ in rows:
        flat.setdefault(run.recipe, []).append(flatten(without_unused(run)))
    differing = {recipe: differing_keys(settings) for recipe, settings in flat.items()}
    listed = []
    ranks: Counter[tuple[str, bool, str, str]] = Counter()
    for folder, run, scores in sorted(rows, key=order):
        ranks[group(run, scores)] += 1
        settings = flatten(without_unused(run))
        done = folder.steps()
        listed.append(
            ListedRunRecord(
                rank=ranks[group(run, scores)] if scores else None,
                path=str(folder.path),
                recipe=run.recipe,
                state=state_of(folder),
                step=done[-1] if done else 0,
                score=scores[0].name if scores else "",
                value=scores[0].value if scores else None,
                settings={key: settings.get(key) for key in differing[run.recipe]},
            )
        )
    return listed


def differing_keys(flat: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs; what only names a run is left out."""
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in ("format", "recipe"))
    return [key for key in keys if len({repr(settings.get(key)) for settings in flat}) > 1]
