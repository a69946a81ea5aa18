"""Runs from a recipe, or from where they stopped, to their final record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from linnet import files
from linnet.domains.contract import Material
from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.files import write_atomically
from linnet.records import NoteRecord, OverSeeds, RunRecord, SeedsRecord
from linnet.training.allocator import keep_freed_memory
from linnet.training.checkpoint import RUN, Checkpoint, LoopState, RunFolder
from linnet.training.distributed import Processes
from linnet.training.loop import train as train_loop
from linnet.training.progress import Course
from linnet.training.resolve import compiling_in_words, complete, parameters, settle
from linnet.training.run import Run
from linnet.training.settings import changed, flatten, parse_setting, to_toml, upgraded
from linnet.training.sinks import JsonLines, Sink, open_trackers
from linnet.untrusted import read_toml
from linnet.workbench.evaluate import averaged_weights
from linnet.workbench.open import load, located, read_codec, read_record, read_run
from linnet.workbench.report import write_report

Progress = Callable[[Course], Sink]


def prepare(
    recipe: str,
    *,
    data: Sequence[Path] = (),
    settings: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
) -> Run:
    """The run that a recipe or a .toml file means, with all changes."""
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs exclude each other; give one of them")
    changes: list[tuple[str, Any]] = [parse_setting(setting) for setting in settings]
    if recipe.endswith(".toml"):
        tree = read_toml(Path(recipe))
        name = tree.pop("recipe", None)
        if not isinstance(name, str):
            raise BadInput(f'{recipe} needs a line such as recipe = "arithmetic" to start from')
        old = tree.get("format") == 1
        tree = upgraded(tree, recipe)
        tree.pop("format", None)
        size = tree.pop("size", None)
        run = changed(made(name, size), flatten(tree).items(), recipe, keep_unused=old)
    else:
        sizes = dict(changes)
        changes = [pair for pair in changes if pair[0] != "size"]
        run = made(recipe, sizes.get("size"))
    if files := located(data):
        changes.append(("data.paths", [str(file) for file in files]))
    options = {"seed": seed, "device": device, "precision": precision, "steps": steps, "epochs": epochs}
    changes += [(key, value) for key, value in options.items() if value is not None]
    return changed(run, changes)


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


def train(
    recipe: str,
    *,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> RunRecord:
    """Train a recipe into a new run folder. `options` are those of `prepare`."""
    run = settle(prepare(recipe, **options))
    processes = Processes.join(run.device)
    path = Path(out) if out is not None else free_folder(run, processes)
    if processes.first:
        files.refuse_existing(path, force=force, layout=RUN)
    replacing = processes.first and (path / "run.toml").is_file()
    if replacing:
        files.refuse_within(path, [Path(file) for file in run.data.files])
    with claimed(path, run) if processes.first and not replacing else nullcontext():
        material = run.data.load(run.seed)
        run = complete(run, material)
    if replacing:
        with files.new_folder(path, RUN, force=True):
            pass
    processes.wait()
    return go_on(RunFolder(path), run, material, processes, progress)


@contextmanager
def claimed(path: Path, run: Run) -> Iterator[None]:
    """A new run stands on the disk before its data are read, so that it can be resumed if it is killed there.

    Data that cannot be used leave nothing behind.
    """
    folder = RunFolder.create(path)
    write_atomically(folder.settings, to_toml(run).encode())
    try:
        yield
    except Exception:
        files.remove(path)
        raise


def free_folder(run: Run, processes: Processes) -> Path:
    """runs/RECIPE-001, or the next number that is free."""
    number = 1
    while (Path("runs") / f"{run.recipe}-{number:03d}").exists():
        number += 1
    number = int(processes.agree(number, torch.device(run.device)))
    return Path("runs") / f"{run.recipe}-{number:03d}"


def resume(path: Path | str, *, progress: Progress | None = None) -> RunRecord:
    """Go on with a run; one that is finished is only shown."""
    folder = RunFolder.open(Path(path))
    run = read_run(folder)
    if (record := read_record(folder)) is not None:
        return record
    run = settle(run)
    processes = Processes.join(run.device)
    material = run.data.load(run.seed, read_codec(folder, run) if folder.codec.is_file() else None)
    return go_on(folder, complete(run, material), material, processes, progress)


def go_on(
    folder: RunFolder, run: Run, material: Material, processes: Processes, progress: Progress | None
) -> RunRecord:
    """From the newest whole checkpoint, or from the start, to the final record."""
    torch.set_num_threads(run.threads)
    keep_freed_memory()
    notes: list[str] = []
    start = folder.newest(notes.append)
    shown = [*material.notes, *run.data.remarks(run, material), *averaged_weights(run)]
    notes += shown
    if start is None:
        notes.append(compiling_in_words(run, material.train.rows))
    check_data(run, material, start, folder)
    with ExitStack() as stack:
        metrics, sinks = None, []
        if processes.first:
            write_atomically(folder.settings, to_toml(run).encode())
            write_atomically(folder.codec, json.dumps(material.codec.to_json(), ensure_ascii=False).encode())
            metrics = stack.enter_context(
                closing(JsonLines(folder.metrics, start.loop.metrics_bytes if start else 0))
            )
            sinks = open_sinks(folder, run, start, progress)
            for sink in sinks:
                stack.enter_context(closing(sink))
            for text in notes:
                for sink in (metrics, *sinks):
                    sink.write(NoteRecord(step=start.loop.step if start else 0, text=text))
        loop = train_loop(run, material, folder, processes, start=start, metrics=metrics, sinks=sinks)
    record = finish(folder, run, material, loop, shown) if processes.first else unscored(folder, run, loop)
    processes.wait()
    processes.leave()
    return record


def open_sinks(folder: RunFolder, run: Run, start: Checkpoint | None, progress: Progress | None) -> list[Sink]:
    """The trackers that the run asks for, and the progress line where somebody looks."""
    done = start.loop.step if start else 0
    sinks = open_trackers(run.training.sinks, folder.path, run.recipe, run.model_dump(mode="json"), done)
    if progress is not None:
        costs = run.model.costs()
        course = Course(
            steps=run.training.steps or 0,
            first=done,
            rows=run.training.batch,
            flops_per_token=0 if costs is None else 3 * costs.flops_per_token,
            device=run.device,
            precision=run.precision,
        )
        sinks.append(progress(course))
    return sinks


def check_data(run: Run, material: Material, start: Checkpoint | None, folder: RunFolder) -> None:
    """A resumed run must find the rows that it started with."""
    if start is not None and start.loop.data != material.train.rows.fingerprint():
        named = f" ({', '.join(map(str, run.data.files))})" if run.data.files else ""
        raise BadInput(
            f"the training data of {folder.path}{named} changed since the run started; resume needs the same"
        )


def finish(
    folder: RunFolder, run: Run, material: Material, loop: LoopState, notes: Sequence[str] = ()
) -> RunRecord:
    """Score the best weights on the validation part, and write the record and the report."""
    opened = load(folder.path, device=run.device)
    found = run.data.score(
        opened.network, material.codec, material.validation, batch=run.training.eval_batch, region=opened.region
    )
    record = unscored(folder, run, loop).model_copy(
        update={"scores": found.scores, "systems": found.systems, "notes": averaged_weights(run)}
    )
    write_report(folder, run, record, notes)
    write_atomically(folder.record, record.model_dump_json(indent=1).encode())
    return record


def unscored(folder: RunFolder, run: Run, loop: LoopState) -> RunRecord:
    return RunRecord(
        path=str(folder.path),
        recipe=run.recipe,
        parameters=parameters(run),
        steps=loop.step,
        tokens=loop.tokens,
        seconds=loop.seconds,
        tokens_per_second=loop.tokens / max(loop.seconds, 1e-9),
        device=run.device,
        scores=(),
    )


def train_seeds(
    recipe: str,
    count: int,
    *,
    out: Path | None = None,
    seed: int | None = None,
    force: bool = False,
    **options: Any,
) -> Iterator[RunRecord | SeedsRecord]:
    """The same run from `count` seeds, in folders OUT-seedN, and each score over all; one seed is one run."""
    if count == 1:
        yield train(recipe, out=out, seed=seed, force=force, **options)
        return
    first = made(recipe).seed if seed is None and not recipe.endswith(".toml") else seed or 0
    seeds = range(first, first + count)
    stem = Path("runs") / Path(recipe).stem if out is None else out
    folders = [stem.with_name(f"{stem.name}-seed{one}") for one in seeds]
    for folder in folders:
        files.refuse_existing(folder, force=force, layout=RUN)
    found = []
    for one, folder in zip(seeds, folders, strict=True):
        found.append(train(recipe, out=folder, seed=one, force=force, **options))
        yield found[-1]
    yield over_seeds(found, tuple(seeds))


def over_seeds(found: list[RunRecord], seeds: tuple[int, ...]) -> SeedsRecord:
    """Mean and range of every score that all runs have."""
    tables = [{score.name: score for score in record.scores} for record in found]
    scores = []
    for name, score in tables[0].items():
        if all(name in table for table in tables):
            values = [table[name].value for table in tables]
            mean = sum(values) / len(values)
            scores.append(OverSeeds(name=name, mean=mean, least=min(values), most=max(values),
                                    baseline=score.baseline))  # fmt: skip
    return SeedsRecord(
        recipe=found[0].recipe, seeds=seeds, runs=tuple(record.path for record in found), scores=tuple(scores)
    )
