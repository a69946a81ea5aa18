"""A run folder that can be given away: the best weights, the settings without this machine's paths, the scores.

It generates, scores and opens as the run does. It has no optimiser state, so it cannot be trained further.
"""

from __future__ import annotations

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
from linnet.untrusted import leaves, parse_object, read_text

ELSEWHERE = "elsewhere"  # stands for the folders of a person's machine; nothing is looked for there


def write_copy(
    into: Path, folder: RunFolder, run: Run, weights: Mapping[str, Tensor], step: int, record: RunRecord
) -> None:
    """Write a copy of a run into an empty folder; `weights` are the ones that it is used with."""
    # Averaged weights become the weights of the copy, which has no others.
    run = run.model_copy(update={"optim": run.optim.model_copy(update={"ema": 0.0})})
    settings = tomllib.loads(to_toml(run))
    copy = RunFolder(into)
    write_atomically(copy.settings, tomli_w.dumps(without_paths(settings)).encode())
    write_atomically(copy.codec, folder.codec.read_bytes())
    write_atomically(copy.record, record.model_dump_json(indent=1).encode())
    loop, _ = folder.loop(step)
    kept = LoopState(step=step, tokens=loop.tokens, seconds=loop.seconds, best_loss=loop.best_loss, best_step=step)
    copy.save(Checkpoint(weights, None, {}, kept))
    if folder.generation.is_file():
        write_atomically(copy.generation, folder.generation.read_bytes())
    if folder.metrics.is_file():
        write_atomically(copy.metrics, _without_notes(folder.metrics).encode())
    if folder.report.is_file():
        write_atomically(copy.report, _shortened_report(read_text(folder.report), settings).encode())


def without_paths(value: Any) -> Any:
    """Settings in which only the last name of each whole path is left."""
    match value:
        case dict():
            return {key: without_paths(inner) for key, inner in value.items()}
        case list():
            return [without_paths(inner) for inner in value]
        case str() if os.path.isabs(value):
            return f"{ELSEWHERE}/{Path(value).name}"
    return value


def paths_of(settings: dict[str, Any]) -> list[str]:
    """Every whole path among settings, the longest first."""
    found = [value for value in leaves(settings) if isinstance(value, str) and os.path.isabs(value)]
    return sorted(found, key=len, reverse=True)


def _without_notes(metrics: Path) -> str:
    """The log without its notes, which may name files."""
    numbered = enumerate(read_text(metrics).splitlines(), start=1)
    records = [
        (line, parse_object(line, f"{metrics}, line {number}")) for number, line in numbered if line.strip()
    ]
    return "".join(f"{line}\n" for line, record in records if record.get("kind") != "note")


def _shortened_report(report: str, settings: dict[str, Any]) -> str:
    kept = "\n".join(line for line in report.splitlines() if not line.startswith("Note:")) + "\n"
    for path in paths_of(settings):
        kept = kept.replace(path, without_paths(path))
    return kept
