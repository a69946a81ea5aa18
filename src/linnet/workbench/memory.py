"""A run without a folder: from material at hand to a trained network, for estimators, folds and resamples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from linnet.domains.contract import Material
from linnet.model.contract import Network
from linnet.training.checkpoint import RunFolder, load_weights
from linnet.training.distributed import Processes
from linnet.training.log import Log
from linnet.training.loop import train
from linnet.training.resolve import complete
from linnet.training.run import Run


def train_in_memory(run: Run, material: Material) -> tuple[Run, Network]:
    """Train a settled run on this material; returns the resolved run and the network of the best checkpoint.

    The same loop as that of `train`; its checkpoints lie in a folder that is removed at the end, and nothing is
    scored.
    """
    with TemporaryDirectory() as name, threads(run.threads):
        run = complete(run, material)
        folder, log = RunFolder(Path(name)), Log(run, torch.device(run.device), lambda: [])
        train(run, material, folder, Processes(), log)
        step = folder.best()
        assert step is not None, "a finished run has a checkpoint"
        network = run.data.network(run.model, material.codec)
        weights = "ema.safetensors" if run.optim.ema else "weights.safetensors"
        load_weights(network, folder.tensors(step, weights), name)
    return run, network.to(run.device).eval()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch inside, and as before outside; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
