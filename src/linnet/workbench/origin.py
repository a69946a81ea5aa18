"""Runs that begin with the weights of another run, and runs that go on beyond their end."""

from __future__ import annotations

from pathlib import Path

from linnet.codecs import Codec
from linnet.domains.contract import Material
from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.exchange.tokens import is_ids_codec
from linnet.training.checkpoint import Checkpoint, LoopState, RunFolder, weights_of
from linnet.training.run import Run
from linnet.training.settings import changed, flatten
from linnet.workbench.open import load, read_codec, read_run

RATE = 0.1  # of the recipe's peak rates, which are made for fresh weights


def begun_from(run: Run, start: Path) -> Run:
    """The run with the network of another one, whose weights it will begin with, and a tenth of its own rates."""
    origin = read_run(RunFolder.open(start))
    if origin.data.domain != run.data.domain:
        fitting = ", ".join(
            name for name, (domain, _) in registry().recipes.items() if domain == origin.data.domain
        )
        raise BadInput(
            f"{start} is a run on {origin.data.domain}, and the recipe {run.recipe} is one of {run.data.domain}; "
            f"recipes that fit: {fitting}"
        )
    rates = {name: getattr(run.optim, name) * RATE for name in ("lr", "muon_lr")}
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


def codec_of_start(run: Run) -> Codec | None:
    """The codec that comes with the weights; None for a run with fresh ones."""
    if run.start is None:
        return None
    folder = RunFolder.open(run.start)
    codec = read_codec(folder, read_run(folder))
    if is_ids_codec(codec):
        raise BadInput(f"{run.start} came without a tokenizer, so no text can be written in its tokens")
    return codec


def beginning(run: Run, material: Material) -> Checkpoint | None:
    """The state before the first step of a run that begins with the weights of another; None for fresh ones."""
    if run.start is None:
        return None
    codec = codec_of_start(run)
    assert codec is not None
    theirs, own = codec.to_json(), material.codec.to_json()
    if differing := [key for key in theirs | own if theirs.get(key) != own.get(key)]:
        raise BadInput(
            f"the data are written in another way than {run.start} reads them ({', '.join(differing)} differ), so "
            "its weights mean nothing for them; give the [data] settings of that run"
        )
    opened = load(run.start, device="cpu")
    return Checkpoint(weights_of(opened.network), None, {}, LoopState(data=material.train.rows.fingerprint()))


def lengthened(run: Run, folder: RunFolder, start: Checkpoint | None, steps: int) -> Run:
    """The run with so many steps in all. Rates are those that the schedule of a run of this length has there."""
    if start is None or not start.loop.data:
        raise BadInput(
            f"{folder.path} has no state of training to go on from; linnet train RECIPE --from {folder.path} "
            "trains its weights further"
        )
    if steps < start.loop.step or (steps == start.loop.step != run.training.steps):
        raise BadInput(
            f"{folder.path} has done {start.loop.step} steps; --steps is the length of the whole run, so it "
            "has to be more"
        )
    start.loop.worse = 0  # a run that stopped early goes on until it stops again
    return changed(run, [("training.steps", steps)])
