"""Runs that take a fraction of a second, for the tests of training: two-digit sums, one narrow layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.mutations import rehash
from linnet import workbench
from linnet.data import Batch
from linnet.records import Record, RunRecord
from linnet.training.checkpoint import RunFolder
from linnet.training.progress import Course
from linnet.training.resolve import complete, settle
from linnet.training.run import Run
from linnet.workbench.train import prepare

# 100 rows in batches of 16: seven steps an epoch, the last of them with four rows.
TINY = (
    "model.width=16",
    "model.depth=1",
    "model.attention.heads=2",
    "data.instances=100",
    "batch=16",
    "eval_every=4",
)
MUON = ("optim.kind=muon", "ema=0.9", "dropout=0.2", "accumulation=3", "schedule=wsd")


class Killed(BaseException):
    """Ends a run where it stands, as a signal that cannot be caught would."""


class Watching:
    """A sink that sees every record, and may end the run when a step is logged."""

    def __init__(self, kill_at: int | None = None, error: BaseException | None = None) -> None:
        self.records: list[Record] = []
        self._kill_at, self._error = kill_at, error or Killed()

    def __call__(self, course: Course) -> Watching:
        return self

    def write(self, record: Record) -> None:
        self.records.append(record)
        if record.kind == "step" and record.step == self._kill_at:  # type: ignore[attr-defined]
            raise self._error

    def close(self) -> None:
        self._kill_at = None


def train_tiny(
    out: Path, *settings: str, steps: int | None = 18, progress: Watching | None = None, **asked: Any
) -> RunRecord:
    return workbench.train(
        "tiny-arithmetic", out=out, settings=[*TINY, *settings], steps=steps, progress=progress, **asked
    )


def tiny_run(*settings: str, steps: int | None = 18, seed: int = 1) -> tuple[Run, list[Batch]]:
    """A complete run that is not started, and its first ten batches."""
    run = settle(prepare("tiny-arithmetic", settings=[*TINY, *settings], steps=steps, seed=seed))
    material = run.data.load(run.seed)
    run = complete(run, material)
    plan = run.data.plan(material.train.rows, run)
    return run, [plan.batch(step) for step in range(10)]


def bits(path: Path) -> dict[str, bytes]:
    """The weights, the averaged weights and the optimiser state of the newest checkpoint of a run."""
    folder = RunFolder.open(path)
    newest = folder.at(folder.steps()[-1])
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")} | {
        "step": str(folder.steps()[-1]).encode()
    }


def damage(path: Path) -> None:
    """Weights that are no numbers in every checkpoint, with hashes that fit."""
    for checkpoint in (path / "checkpoints").iterdir():
        for file in checkpoint.glob("[we]*.safetensors"):
            save_file({name: torch.full_like(one, torch.nan) for name, one in load_file(file).items()}, file)
        rehash(checkpoint)


def logged(path: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The records of one kind in the metrics of a run."""
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def agree(stopped: Path, undisturbed: Path) -> None:
    """The same bits, the same record, and every step logged once with the same numbers."""
    assert bits(stopped) == bits(undisturbed)
    assert RunFolder(stopped).steps() == RunFolder(undisturbed).steps()
    steps = [(r["step"], r["loss"], r["lr"], r["grad_norm"], r["tokens"]) for r in logged(stopped)]
    assert steps == [(r["step"], r["loss"], r["lr"], r["grad_norm"], r["tokens"]) for r in logged(undisturbed)]
    assert [step for step, *_ in steps] == list(range(1, len(steps) + 1))
    assert logged(stopped, "validation") == logged(undisturbed, "validation")
    records = [json.loads((path / "record.json").read_text()) for path in (stopped, undisturbed)]
    timed = ("path", "seconds", "tokens_per_second")
    assert len({json.dumps({k: v for k, v in r.items() if k not in timed}) for r in records}) == 1
