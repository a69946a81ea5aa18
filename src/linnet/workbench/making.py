"""Runs from a recipe, or from where they stopped, to their final record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from linnet import files, recipes
from linnet.domains import Material
from linnet.domains.text import TextData
from linnet.errors import BadInput
from linnet.files import write_atomically
from linnet.model.costs import costs
from linnet.records import NoteRecord, RunRecord
from linnet.training.allocator import keep_freed_memory
from linnet.training.checkpoint import RUN, Checkpoint, LoopState, RunFolder
from linnet.training.distributed import Processes
from linnet.training.loop import plan_of
from linnet.training.loop import train as train_loop
from linnet.training.networks import parameters
from linnet.training.progress import Course
from linnet.training.resolve import compiling_in_words, complete, refuse_idle, settle
from linnet.training.run import Run, changed, check_format, flatten, parse_setting, read_toml, to_toml
from linnet.training.sinks import JsonLines, Sink, open_trackers
from linnet.workbench.opening import load, located, read_codec, read_record, read_run
from linnet.workbench.report import write_report
from linnet.workbench.scoring import averaged_weights, cut_rows, no_block, scored

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
    """The run that a recipe or a .toml file means, with everything that was asked to be different."""
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs exclude each other; give one of them")
    asked: list[tuple[str, Any]] = [parse_setting(setting) for setting in settings]
    if recipe.endswith(".toml"):
        tree = read_toml(Path(recipe))
        name = tree.pop("recipe", None)
        if not isinstance(name, str):
            raise BadInput(f'{recipe} needs a line such as recipe = "arithmetic" to start from')
        check_format(tree, recipe)
        tree.pop("format", None)
        size = tree.pop("size", None)
        run = changed(recipes.named(name, size), flatten(tree).items(), recipe)
    else:
        asked, sizes = [pair for pair in asked if pair[0] != "size"], dict(asked)
        run = recipes.named(recipe, sizes.get("size"))
    if files := located(data):
        asked.append(("data.paths", [str(file) for file in files]))
    options = {"seed": seed, "device": device, "precision": precision, "steps": steps, "epochs": epochs}
    asked += [(key, value) for key, value in options.items() if value is not None]
    return changed(run, asked)


def train(
    recipe: str,
    *,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **asked: Any,
) -> RunRecord:
    """Train a recipe into a new run folder. `asked` is what `prepare` takes."""
    run = settle(prepare(recipe, **asked))
    refuse_idle(run)
    processes = Processes.join(run.device)
    path = Path(out) if out is not None else free_folder(run, processes)
    if processes.first:
        files.refuse_existing(path, force=force, layout=RUN)
    replacing = processes.first and (path / "run.toml").is_file()
    if replacing:
        files.refuse_within(path, [Path(name) for name in run.data.paths])
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
    known = read_codec(folder) if folder.codec.is_file() else None
    material = run.data.load(run.seed, known) if isinstance(run.data, TextData) else run.data.load(run.seed)
    return go_on(folder, complete(run, material), material, processes, progress)


def go_on(
    folder: RunFolder, run: Run, material: Material, processes: Processes, progress: Progress | None
) -> RunRecord:
    """From the newest whole checkpoint, or from the start, to the final record."""
    torch.set_num_threads(run.threads)
    keep_freed_memory()
    notes: list[str] = []
    start = folder.newest(notes.append)
    notes += (said := remarks(run, material))
    if start is None and material.train.visits is None:
        notes.append(compiling_in_words(run, material.train.sequences))
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
    record = finish(folder, run, material, loop, said) if processes.first else unscored(folder, run, loop)
    processes.wait()
    processes.leave()
    return record


def open_sinks(folder: RunFolder, run: Run, start: Checkpoint | None, progress: Progress | None) -> list[Sink]:
    """The trackers that the run asks for, and the progress line where somebody looks."""
    done = start.loop.step if start else 0
    sinks = open_trackers(run.training.sinks, folder.path, run.recipe, run.model_dump(mode="json"), done)
    if progress is not None:
        course = Course(
            steps=run.training.steps or 0,
            first=done,
            rows=run.training.batch,
            flops_per_token=0 if run.next_place else 3 * costs(run.model).flops_per_token,
            device=run.device,
            precision=run.precision,
        )
        sinks.append(progress(course))
    return sinks


def remarks(run: Run, material: Material) -> list[str]:
    """What a person should know before training starts: it is logged, shown, and stands in the report."""
    said = list(material.notes)
    for name, part in (("training", material.train), ("validation", material.validation)):
        said += cut_rows(part, material.codec, run.model.context, name)
    said += no_block(run.data, material.validation, material.codec, "validation part")
    said += how_long(run, material)
    return said + averaged_weights(run)


def how_long(run: Run, material: Material) -> list[str]:
    """What the steps come to, for text: how often it is read may have been chosen from its length."""
    if not isinstance(run.data, TextData):
        return []
    rows, steps = material.train.sequences, run.training.steps or 0
    often = f"{steps / plan_of(run, rows).steps_per_epoch:.3g}"
    times = "once" if often == "1" else f"{often} times"
    return [f"{steps:,} steps read the {len(rows.ids):,} tokens of the training part {times}"]


def check_data(run: Run, material: Material, start: Checkpoint | None, folder: RunFolder) -> None:
    """A resumed run must find the rows that it started with."""
    if start is not None and start.loop.data != material.train.rows.fingerprint():
        named = f" ({', '.join(map(str, run.data.paths))})" if run.data.paths else ""
        raise BadInput(
            f"the training data of {folder.path}{named} changed since the run started; resume needs the same"
        )


def finish(
    folder: RunFolder, run: Run, material: Material, loop: LoopState, notes: Sequence[str] = ()
) -> RunRecord:
    """Score the best weights on the validation part, and write the record and the report."""
    opened = load(folder.path, device=run.device)
    scores, systems = scored(
        opened.network,
        material.codec,
        run.data,
        material.validation,
        rows=run.training.eval_batch,
        region=opened.region,
    )
    found = {"scores": tuple(scores), "systems": tuple(systems), "notes": tuple(averaged_weights(run))}
    record = unscored(folder, run, loop).model_copy(update=found)
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
