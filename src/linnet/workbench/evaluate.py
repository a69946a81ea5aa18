"""What a run says of files: scores (also of rows that a domain draws), and a prediction for each line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linnet.domains.contract import Predictions
from linnet.domains.registry import registry, resolve
from linnet.errors import BadInput
from linnet.records import ScoresRecord
from linnet.training.checkpoint import RunFolder
from linnet.training.run import Run
from linnet.workbench.open import load, load_packed, located, options_of, read_run, threads_of

DRAWN = 10_000  # problems of a domain that draws its own


def evaluate(
    path: Path | str,
    *,
    data: Sequence[Path | str] | Path | str = (),
    split: str | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
    precision: str | None = None,
    checkpoint: int | None = None,
) -> ScoresRecord:
    """Score a run on whole files, or on held-out rows of a domain that draws its own."""
    # Rounded weights are scored as generation multiplies them; the other precisions are those of training.
    opener = load_packed if precision in ("int8", "int4", "bf16") else load
    opened = opener(path, checkpoint=checkpoint, device=device, precision=precision)
    known = opened.run.data.evaluation_options
    chosen = options_of(settings, batch=256, n=DRAWN, **known)
    domain, options = opened.run.data.for_evaluation({key: chosen[key] for key in known})
    if data:
        part = domain.read(opened.codec, located(data), split)
    else:
        part = domain.held_out(opened.codec, split, chosen["n"], opened.run.seed)
    named = (
        ", ".join(map(str, [data] if isinstance(data, Path | str) else data))
        or f"{len(part.questions) or len(part.rows):,} drawn rows ({split or 'test'})"
    )
    if len(part.rows) == 0 and not part.questions:
        where = f"rows with split {split!r}" if split else "rows"
        raise BadInput(f"there are no {where} in {named}")
    with threads_of(opened.run):
        found = domain.score(
            opened.network, opened.codec, part, batch=chosen["batch"], region=opened.region, **options
        )
    notes = (*part.notes, *found.notes, *averaged_weights(opened.run))
    return ScoresRecord(run=str(path), data=named, scores=found.scores, systems=found.systems, notes=notes)


def averaged_weights(run: Run) -> tuple[str, ...]:
    """Whose scores these are, where training keeps two sets of weights."""
    if not run.optim.ema:
        return ()
    return (f"the scores are those of the averaged weights (optim.ema={run.optim.ema:g})",)


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
