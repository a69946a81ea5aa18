"""What a run would be, without its folder: sizes, memory, and time from a few steps on the real data."""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import torch

from linnet.data import Plan
from linnet.domains.contract import Material
from linnet.records import DryRunRecord
from linnet.training.distributed import Processes
from linnet.training.guards import out_of_memory_in_words
from linnet.training.learner import Learner
from linnet.training.loop import validation_steps
from linnet.training.resolve import complete, parameters, settle
from linnet.training.run import Run
from linnet.workbench.origin import beginning, codec_of_start
from linnet.workbench.prepare import prepare

STEPS, SECONDS = 6, 10.0  # at most so many are tried, and for so long; the first one warms up and is not counted
FORWARD = 1 / 3  # of the time of a training step a token


def dry_run(recipe: str, **options: Any) -> DryRunRecord:
    """Read the data, make the network and take a few steps; nothing is kept. `options` are those of `prepare`."""
    run = settle(prepare(recipe, **options))
    material = run.data.load(run.seed, codec_of_start(run))
    run = complete(run, material)
    beginning(run, material)
    torch.set_num_threads(run.threads)
    rows = material.train.rows
    plan = run.data.plan(rows, run)
    step = seconds_of_a_step(run, material, plan)
    steps, costs = run.training.steps or 0, run.model.costs(rows=run.rows_at_once, ema=bool(run.optim.ema))
    validations = -(-steps // validation_steps(run, plan, steps))
    share = material.validation.rows.targets / max(1, rows.targets)
    validating = validations * share * plan.steps_per_epoch * step * FORWARD
    sets = 3 + bool(run.optim.ema)  # weights, two means, averaged weights
    return DryRunRecord(
        recipe=run.recipe,
        device=run.device,
        precision=run.precision,
        threads=run.threads,
        compiled=run.training.compiled,
        parameters=parameters(run),
        rows=len(rows),
        tokens=rows.steps,
        validation_rows=len(material.validation.rows),
        batch=run.training.batch,
        steps=steps,
        rounds=steps / plan.steps_per_epoch,
        validations=validations,
        seconds_per_step=step,
        seconds=steps * step + validating,
        training_bytes=0 if costs is None else costs.training_bytes,
        memory_bytes=peak_memory(run),
        checkpoint_bytes=4 * parameters(run) * sets,
        notes=(*material.notes, *run.data.remarks(run, material)),
    )


def seconds_of_a_step(run: Run, material: Material, plan: Plan) -> float:
    """The median time of a step, eager where the run would be compiled."""
    training = run.training.model_copy(update={"compile": "off"})
    device = torch.device(run.device)
    with out_of_memory_in_words(run):
        learner = Learner(run.model_copy(update={"training": training}), material.codec, device, Processes())
        times: list[float] = []
        while len(times) < 2 or (len(times) < STEPS and sum(times) < SECONDS):
            began = time.perf_counter()
            moved = learner.step(plan.batch(len(times)), len(times), run.training.steps or 1)
            float(moved.loss)  # waits for the device
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def peak_memory(run: Run) -> int:
    if run.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
