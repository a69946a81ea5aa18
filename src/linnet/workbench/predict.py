"""What a run predicts for the lines of a file, by the function that its domain brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linnet.domains.contract import Predictions
from linnet.domains.registry import registry, resolve
from linnet.errors import BadInput
from linnet.training.checkpoint import RunFolder
from linnet.workbench.open import read_run, threads_of


def predict(
    path: Path | str, file: Path | str, *, k: int = 10, settings: Sequence[str] = (), **options: Any
) -> Predictions:
    """One record a history of the file, in its order. `options` are those of `load`."""
    if k < 1:
        raise BadInput(f"k is {k}; it must be at least 1")
    file = Path(file)
    if not file.exists():
        raise BadInput(f"there is no file {file}")
    run, domains = read_run(RunFolder.open(Path(path))), registry().domains
    domain = run.data.domain
    if not domains[domain].predict:
        able = ", ".join(name for name, one in domains.items() if one.predict)
        raise BadInput(f"{path} is a run on {domain}, and predict is for runs on {able}; use linnet generate")
    with threads_of(run):
        found: Predictions = resolve(domains[domain].predict)(path, file, k=k, settings=tuple(settings), **options)
    return found
