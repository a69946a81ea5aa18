"""Snapshots are spread as promised, hold what the run is used with, and change nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linnet import workbench
from linnet.errors import BadInput
from linnet.training.checkpoint import RunFolder
from linnet.training.learner import fresh_network
from linnet.training.snapshots import snapshot_steps
from linnet.workbench.open import read_codec, read_run
from tiny_runs import Killed, Watching, bits, train_tiny

LOG = "training.snapshots=6"


@given(st.integers(1, 3000), st.integers(2, 80))
def test_steps_rise_and_end_with_the_last(steps: int, count: int) -> None:
    found = sorted(snapshot_steps(steps, count))
    assert len(found) == min(count, steps) and found[0] == 1 and found[-1] == steps
    assert len(snapshot_steps(steps, "log")) == min(50, steps) and not snapshot_steps(steps, "none")


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / "snapshots").iterdir()}


def test_a_stopped_run_keeps_the_same_snapshots(tmp_path: Path) -> None:
    train_tiny(tmp_path / "whole", LOG, "ema=0.9")
    with pytest.raises(Killed):
        train_tiny(tmp_path / "killed", LOG, "ema=0.9", progress=Watching(kill_at=14))
    workbench.resume(tmp_path / "killed")
    train_tiny(tmp_path / "without", "ema=0.9")
    assert content(tmp_path / "whole") == content(tmp_path / "killed")
    assert bits(tmp_path / "whole") == bits(tmp_path / "without")
    folder = RunFolder(tmp_path / "whole")
    assert folder.snapshots.steps == sorted(snapshot_steps(18, 6))
    averaged = folder.tensors(18, "ema.safetensors")
    last = folder.snapshots.read(18)
    assert all(torch.equal(last[name], averaged[name]) for name in averaged)
    with pytest.raises(BadInput, match="there is no snapshot of step 5"):
        folder.snapshots.read(5)


def test_fresh_weights_are_those_that_training_starts_from(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", LOG, "lr=1e-12", "weight_decay=0", steps=2)
    folder = RunFolder(tmp_path / "run")
    run = read_run(folder)
    fresh = dict(fresh_network(run, read_codec(folder, run)).named_parameters())
    for name, tensor in folder.snapshots.read(1).items():
        torch.testing.assert_close(tensor, fresh[name].detach(), rtol=0, atol=1e-9)
