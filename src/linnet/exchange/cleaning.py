"""A run folder that can be given away: the best weights, the settings without this machine's paths, the scores.

It generates, scores and opens as the run does. It has no optimiser state, so it cannot be trained further.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from torch import Tensor

from linnet.files import write_atomically
from linnet.records import RunRecord
from linnet.training.checkpoint import Checkpoint, LoopState, RunFolder
from linnet.training.run import Run
from linnet.training.settings import to_toml

ELSEWHERE = "elsewhere"  # stands for the folders of a person's machine; nothing is looked for there


def write_copy(
    into: Path, folder: RunFolder, run: Run, weights: Mapping[str, Tensor], step: int, record: RunRecord
) -> None:
    """Write a cleaned copy of a run into an empty folder; `weights` are the ones that it is used with."""
    # Averaged weights become the weights of the copy, which has no others.
    run = run.model_copy(update={"optim": run.optim.model_copy(update={"ema": 0.0})})
    settings = tomllib.loads(to_toml(run))
    copy = RunFolder(into)
    write_atomically(copy.settings, tomli_w.dumps(bare(settings)).encode())
    write_atomically(copy.codec, folder.codec.read_bytes())
    write_atomically(copy.record, record.model_dump_json(indent=1).encode())
    loop, _ = folder.loop(step)
    kept = LoopState(step=step, tokens=loop.tokens, seconds=loop.seconds, best_loss=loop.best_loss, best_step=step)
    copy.save(Checkpoint(weights, None, {}, kept))
    if folder.metrics.is_file():
        write_atomically(copy.metrics, _numbers(folder.metrics.read_text(encoding="utf-8")).encode())
    if folder.report.is_file():
        report = _cleaned_report(folder.report.read_text(encoding="utf-8"), settings)
        write_atomically(copy.report, report.encode())


def bare(value: Any) -> Any:
    """Settings in which only the last name of each whole path is left."""
    match value:
        case dict():
            return {key: bare(inner) for key, inner in value.items()}
        case list():
            return [bare(inner) for inner in value]
        case str() if os.path.isabs(value):
            return f"{ELSEWHERE}/{Path(value).name}"
    return value


def paths_in(value: Any) -> list[str]:
    """Every whole path among settings, the longest first."""
    match value:
        case dict():
            found = [path for inner in value.values() for path in paths_in(inner)]
        case list():
            found = [path for inner in value for path in paths_in(inner)]
        case str() if os.path.isabs(value):
            found = [value]
        case _:
            found = []
    return sorted(found, key=len, reverse=True)


def _numbers(metrics: str) -> str:
    """The log without its notes, which may name files."""
    lines = [line for line in metrics.splitlines() if line.strip()]
    return "".join(line + "\n" for line in lines if json.loads(line).get("kind") != "note")


def _cleaned_report(report: str, settings: Mapping[str, Any]) -> str:
    kept = "\n".join(line for line in report.splitlines() if not line.startswith("Note:")) + "\n"
    for path in paths_in(dict(settings)):
        kept = kept.replace(path, bare(path))
    return kept
