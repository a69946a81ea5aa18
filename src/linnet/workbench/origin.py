"""Runs that begin with the weights of another run, and runs that go on beyond their end."""

from __future__ import annotations

from linnet.codecs import Codec
from linnet.domains.contract import Material
from linnet.errors import BadInput
from linnet.exchange.tokens import is_ids_codec
from linnet.training.checkpoint import Checkpoint, LoopState, RunFolder, weights_of
from linnet.training.run import Run
from linnet.training.settings import changed
from linnet.workbench.open import load, read_codec, read_run


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
