"""What a run leaves open is settled once, from the machine and the data, and stored: resuming obeys it."""

from __future__ import annotations

from typing import Literal

import torch

from linnet.domains.contract import Material
from linnet.errors import BadInput
from linnet.machine import automatic_precision, native_bfloat16
from linnet.training.compiling import choice
from linnet.training.run import Run

LOOK_EVERY = 10  # steps that a GPU runs ahead of the log
ROUNDS_OF_TRAINED_WEIGHTS = 3.0  # of the data, where a run begins with them and names no length


def settle(run: Run) -> Run:
    """Choose device, precision and threads for `auto`."""
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; use --device cpu or auto")
    precision = run.precision
    if precision == "auto":
        precision = automatic_precision(device, run.model.channels)
    if precision == "float16" and device == "cpu":
        raise BadInput("float16 needs a CUDA device; on the processor use bfloat16 or float32")
    threads = run.threads or torch.get_num_threads()
    optim = run.optim
    if optim.kind == "muon" and optim.muon_precision == "auto":
        fast: Literal["float32", "bfloat16"] = "bfloat16" if native_bfloat16(device) else "float32"
        optim = optim.model_copy(update={"muon_precision": fast})
    training = run.training
    if not training.log_every:
        looking = LOOK_EVERY if device == "cuda" else 1
        training = training.model_copy(update={"log_every": looking})
    settled = {"device": device, "precision": precision, "threads": threads, "optim": optim, "training": training}
    return run.model_copy(update=settled)


def complete(run: Run, material: Material) -> Run:
    """Fill in the sizes that follow from the data, the number of steps, and whether compiling repays."""
    rows = material.train.rows
    if run.start is None:
        run = run.model_copy(update={"model": run.data.sized(run.model, material)})
    steps = run.training.steps
    if steps is None:
        rounds = run.training.epochs or (
            run.data.rounds(parameters(run), rows.steps) if run.start is None else ROUNDS_OF_TRAINED_WEIGHTS
        )
        steps = max(1, round(rounds * run.data.plan(rows, run).steps_per_epoch))
    training = run.training.model_copy(update={"steps": steps, "epochs": None})
    run = run.model_copy(update={"training": training})
    if training.compile == "auto":
        run = run.model_copy(update={"training": training.model_copy(update={"compile": choice(run, rows)})})
    most = run.training.most_parameters
    if most is not None and (count := parameters(run)) > most:
        raise BadInput(f"the network has {count:,} parameters, and most_parameters allows {most:,}")
    return run


def parameters(run: Run) -> int:
    """Trainable numbers of a run whose sizes are known; 0 before."""
    costs = run.model.costs()
    return 0 if costs is None else costs.parameters
