"""Runs from a recipe, or from where they stopped, to their final record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from linnet import files
from linnet.domains.contract import Material
from linnet.errors import BadInput
from linnet.files import write_atomically
from linnet.machine import keep_freed_memory, threads
from linnet.model.contract import Network
from linnet.records import OverSeeds, RunRecord, SeedsRecord
from linnet.training.checkpoint import RUN, Checkpoint, LoopState, RunFolder, load_weights
from linnet.training.compiling import compiling_in_words
from linnet.training.distributed import Processes
from linnet.training.log import Log
from linnet.training.loop import train as train_loop
from linnet.training.progress import Course
from linnet.training.resolve import complete, parameters, settle
from linnet.training.run import Run
from linnet.training.settings import to_toml
from linnet.training.sinks import JsonLines, Sink, check_trackers, open_trackers
from linnet.workbench.evaluate import averaged_weights
from linnet.workbench.open import load, read_codec, read_record, read_run
from linnet.workbench.origin import beginning, codec_of_start, lengthened
from linnet.workbench.prepare import made, prepare
from linnet.workbench.report import write_report

Progress = Callable[[Course], Sink]


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
    check_trackers(run.training.sinks)
    processes = Processes.join(run.device)
    path = Path(out) if out is not None else free_folder(run, processes)
    if processes.first:
        files.refuse_existing(path, force=force, layout=RUN)
        files.refuse_within(path, (*run.data.files, *filter(None, [run.start])))
    with claimed(path, run) if processes.first else nullcontext() as claim:
        material = run.data.load(run.seed, codec_of_start(run))
        run, start = complete(run, material), beginning(run, material)
        return go_on(RunFolder(path), run, material, processes, progress, start, claim=claim)


@dataclass
class Claim:
    """The name of a new run before its first step is done. What `replaces` another run changes nothing until then;
    where none was, there is a folder with the settings, so that a run that is killed early can be resumed."""

    replaces: bool
    locks: ExitStack
    begun: bool = False


@contextmanager
def claimed(path: Path, run: Run) -> Iterator[Claim]:
    """A run that fails before its first step is done leaves nothing behind."""
    with ExitStack() as locks:
        claim = Claim((path / "run.toml").is_file(), locks)
        if not claim.replaces:
            with files.new_folder(path) as new:
                new.write("run.toml", to_toml(run).encode())
            locks.enter_context(files.locked(path))
        try:
            yield claim
        except Exception:
            if not claim.replaces and not claim.begun:
                files.remove(path)
            raise


def free_folder(run: Run, processes: Processes) -> Path:
    """runs/RECIPE-001, or the next number that is free."""
    number = 1
    while (Path("runs") / f"{run.recipe}-{number:03d}").exists():
        number += 1
    number = int(processes.agree(number, torch.device(run.device)))
    return Path("runs") / f"{run.recipe}-{number:03d}"


def resume(path: Path | str, *, steps: int | None = None, progress: Progress | None = None) -> RunRecord:
    """Go on with a run, to its end or to `steps` in all; one that is finished is only shown."""
    folder = RunFolder.open(Path(path))
    run = read_run(folder)
    if (record := read_record(folder)) is not None and steps in (None, record.steps):
        return record
    run = settle(run)
    check_trackers(run.training.sinks)
    processes = Processes.join(run.device)
    with files.locked(folder.path) if processes.first else nullcontext():
        notes: list[str] = []
        start = folder.newest(notes.append)
        if steps is not None:
            run = lengthened(run, folder, start, steps)
        if start is not None and not start.loop.data:
            notes.append(f"checkpoint {folder.at(start.loop.step)} cannot be trained on, so training begins anew")
            start = None
        material = run.data.load(
            run.seed, read_codec(folder, run) if folder.codec.is_file() else codec_of_start(run)
        )
        check_data(run, material, start, folder)
        run = complete(run, material)
        return go_on(folder, run, material, processes, progress, start or beginning(run, material), notes)


def go_on(
    folder: RunFolder,
    run: Run,
    material: Material,
    processes: Processes,
    progress: Progress | None,
    start: Checkpoint | None = None,
    notes: Sequence[str] = (),
    claim: Claim | None = None,
) -> RunRecord:
    """From a checkpoint, or from the start, to the final record."""
    torch.set_num_threads(run.threads)
    keep_freed_memory()
    done = start.loop.step if start else 0
    remarks = [*material.notes, *run.data.remarks(run, material), *averaged_weights(run)]
    with ExitStack() as stack:

        def begin() -> list[Sink]:
            return open_sinks(folder, run, material, start, stack, claim) if processes.first else []

        shown = None
        if progress is not None and processes.first:
            shown = stack.enter_context(closing(progress(course_of(run, done))))
        log = Log(run, torch.device(run.device), begin, shown)
        for text in (*notes, *remarks, *([] if done else [compiling_in_words(run, material.train.rows)])):
            log.note(done, text)
        loop = train_loop(run, material, folder, processes, log, start)
    record = finish(folder, run, material, loop, remarks) if processes.first else unscored(folder, run, loop)
    processes.wait()
    processes.leave()
    return record


def open_sinks(
    folder: RunFolder,
    run: Run,
    material: Material,
    start: Checkpoint | None,
    stack: ExitStack,
    claim: Claim | None,
) -> list[Sink]:
    """Write what the run was resolved to, and open its metrics and trackers; a run that was replaced goes away."""
    codec = json.dumps(material.codec.to_json(), ensure_ascii=False)
    parts = {"run.toml": to_toml(run).encode(), "codec.json": codec.encode()}
    if run.start is not None and (ends := RunFolder(run.start).generation).is_file():
        parts["generation.json"] = ends.read_bytes()
    offset, step = (start.loop.metrics_bytes, start.loop.step) if start else (0, 0)
    with ExitStack() as replacing:
        if claim is not None and claim.replaces:
            new = replacing.enter_context(files.new_folder(folder.path, RUN, force=True))
            for name, content in parts.items():
                new.write(name, content)
            new.install()
        else:
            if step == 0:
                folder.remove_final()
            for name, content in parts.items():
                write_atomically(folder.path / name, content)
            files.remove(folder.record)
        metrics = JsonLines(folder.metrics, offset)
        stack.enter_context(closing(metrics))
        settings = run.model_dump(mode="json")
        trackers = open_trackers(run.training.sinks, folder.path, run.recipe, settings, step)
        for tracker in trackers:
            stack.enter_context(closing(tracker))
    if claim is not None:
        claim.begun = True
        if claim.replaces:
            claim.locks.enter_context(files.locked(folder.path))
    return [metrics, *trackers]


def course_of(run: Run, done: int) -> Course:
    costs = run.model.costs()
    return Course(
        steps=run.training.steps or 0,
        first=done,
        rows=run.training.batch,
        flops_per_token=0 if costs is None else 3 * costs.flops_per_token,
        device=run.device,
        precision=run.precision,
    )


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
    notes = list(notes)
    best = folder.best_whole(run.weights, notes.append)
    opened = load(folder.path, checkpoint=best, device=run.device)
    found = run.data.score(
        opened.network, material.codec, material.validation, batch=run.training.eval_batch, region=opened.region
    )
    record = unscored(folder, run, loop).model_copy(
        update={"scores": found.scores, "systems": found.systems, "notes": (*found.notes, *averaged_weights(run))}
    )
    write_report(folder, run, record, (*found.notes, *notes), found.examples)
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


def train_in_memory(run: Run, material: Material) -> tuple[Run, Network]:
    """Train a settled run on this material; returns the resolved run and the network of the best checkpoint.

    The same loop as that of `train`; its checkpoints lie in a folder that is removed at the end, and nothing is
    scored.
    """
    with TemporaryDirectory() as name, threads(run.threads):
        run = complete(run, material)
        folder, log = RunFolder(Path(name)), Log(run, torch.device(run.device), lambda: [])
        train_loop(run, material, folder, Processes(), log)
        step = folder.best()
        assert step is not None, "a finished run has a checkpoint"
        network = run.data.network(run.model, material.codec)
        load_weights(network, folder.tensors(step, run.weights), name)
    return run, network.to(run.device).eval()
