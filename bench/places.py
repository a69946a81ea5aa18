"""`linnet bench places`: the copying network beside its loop and one-hot forms, and predictions per second.

First the largest difference of each vectorised sum and filter from its loop form, in float64 on real rows; nothing
is timed when one is above the tolerance. Then steps of the same network with each form, in turn, and predictions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench import copying_loops as loops
from linnet.data import Batch
from linnet.domains.contract import Material
from linnet.domains.places import copying
from linnet.domains.places.answers import VisitPlan, pad
from linnet.domains.places.copying import CopyModel, Sums
from linnet.domains.places.data import PlacesData, visit_rows
from linnet.domains.places.features import VisitRows
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.settings import ScorerConfig
from linnet.domains.places.use import Follower
from linnet.errors import RunFailed
from linnet.machine import one_line
from linnet.records import BenchRecord
from linnet.training.distributed import Processes
from linnet.training.learner import Learner
from linnet.training.resolve import complete, parameters, settle
from linnet.training.run import Run
from linnet.training.settings import changed
from linnet.workbench.train import made

TOLERANCE = 1e-7
DRAWN = Process(users=30, visits=100, venues=900)  # fits the published tables, and takes about two minutes


@contextmanager
def drawn(data: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """These files, or drawn check-ins where there are none."""
    if data:
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check-ins.csv"
        write_check_ins(path, generate(DRAWN))
        yield [path]


def prepared(
    data: Sequence[Path], settings: Sequence[tuple[str, object]], recipe: str = "places-gru"
) -> tuple[Run, Material]:
    """A resolved run of a copying network on these files, as large as they need it, and what it reads."""
    options = [("data.paths", [str(path.resolve()) for path in data]), *settings]
    run = settle(changed(made(recipe), options))
    run = run.model_copy(update={"training": run.training.model_copy(update={"most_parameters": None})})
    torch.set_num_threads(run.threads)
    material = run.data.load(run.seed)
    return complete(run, material), material


def bench_places(
    data: Sequence[Path], settings: Sequence[tuple[str, object]] = (), *, repeats: int = 5
) -> Iterator[BenchRecord]:
    """Differences, speeds of the three forms, and predictions a second."""
    run, material = prepared(data, settings)
    rows, validation = visit_rows(material.train), visit_rows(material.validation)
    batch = VisitPlan(rows, 64, run.seed).batch(0)
    yield differences(batch, Learner(run, rows.codec, torch.device("cpu"), Processes()).network, len(rows))
    yield forms(run, rows, repeats)
    copying = Learner(run, rows.codec, torch.device("cpu"), Processes()).network
    assert isinstance(copying, CopyModel)
    yield predictions(run.recipe, copying, validation, 512)
    known = replace(validation, past=True, suggestions=PlacesData().suggestions)
    yield predictions("places", fresh_scorer(), known, 256)
    yield latency(rows, validation)


def differences(batch: Batch, network: object, n: int) -> BenchRecord:
    """The largest difference from the loop forms, in float64; raises when it is too large."""
    assert isinstance(network, CopyModel)
    ids, places = batch["ids"], network.config.places
    valid = torch.arange(ids.shape[1])[None] < batch["lengths"][:, None]
    attention = torch.rand(ids.shape, dtype=torch.float64)
    decay, logits = torch.tensor(0.9, dtype=torch.float64), torch.randn(len(ids), places, dtype=torch.float64)
    cells = torch.randn(len(ids), network.config.cells[0], dtype=torch.float64)
    tree, chosen = network.tree[0], cells.argmax(1)
    torch.set_default_dtype(torch.float64)
    try:
        pairs = {
            "copy": (
                copying.copy_distribution(attention, ids, valid, places),
                loops.copy_loop(attention, ids, valid, places),
            ),
            "frequency": (copying.frequency(ids, valid, places), loops.frequency_loop(ids, valid, places)),
            "recency": (
                copying.recency(ids, valid, batch["lengths"], decay, places),
                loops.recency_loop(ids, valid, batch["lengths"], decay, places),
            ),
            "hard filter": (
                copying.hard_filter(logits, chosen, tree),
                loops.hard_filter_loop(logits, chosen, tree),
            ),
            "soft filter": (
                copying.soft_filter(logits, cells, tree, 0.1),
                loops.soft_filter_loop(logits, cells, tree, 0.1),
            ),
        }
    finally:
        torch.set_default_dtype(torch.float32)
    found: dict[str, float | None] = {name: float((one - two).abs().max()) for name, (one, two) in pairs.items()}
    largest = max(value for value in found.values() if value is not None)
    if largest > TOLERANCE:
        raise RunFailed(f"a vectorised form is {largest:.2e} away from its loop form: nothing is timed ({found})")
    return BenchRecord(
        name="largest difference from the loop forms, float64", ours=largest, peers=found, ratios={},
        unit="difference", n=len(ids), machine=one_line(), note=f"one batch of {len(ids)} rows of {n}",
    )  # fmt: skip


def forms(run: Run, rows: VisitRows, repeats: int) -> BenchRecord:
    """Seconds an epoch of training with scatter-add, one-hot tables and loops, from steps taken in turn."""
    plan = VisitPlan(rows, run.training.batch, run.seed)
    learners: dict[str, Learner] = {}
    for name, sums in (("linnet", Sums()), ("one-hot", loops.ONE_HOT), ("loops", loops.LOOPS)):
        learner = Learner(run, rows.codec, torch.device("cpu"), Processes())
        assert isinstance(learner.network, CopyModel)
        learner.network.sums = sums
        learners[name] = learner
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for turn in range(repeats + 1):
        for name, learner in learners.items():
            count = 1 if name == "loops" else 6
            began = time.perf_counter()
            for number in range(turn * 6, turn * 6 + count):
                learner.step(plan.batch(number % plan.steps_per_epoch), number, 1000)
            if turn:
                seconds[name].append((time.perf_counter() - began) / count)
    epoch = {name: statistics.median(taken) * plan.steps_per_epoch for name, taken in seconds.items()}
    ours = epoch.pop("linnet")
    ratios = {
        name: sorted(mine / theirs for mine, theirs in zip(seconds["linnet"], seconds[name], strict=True))
        for name in epoch
    }
    spread = "; ".join(f"{name}: ratios from {found[0]:.2f} to {found[-1]:.2f}" for name, found in ratios.items())
    note = f"{len(rows)} rows, {run.threads} threads, {parameters(run):,} parameters; {spread}"
    return BenchRecord(
        name=f"{run.recipe}, training at batch {run.training.batch}", ours=ours, peers=dict(epoch),
        ratios={name: statistics.median(found) for name, found in ratios.items()}, unit="seconds an epoch",
        n=repeats, machine=one_line(), note=note,
    )  # fmt: skip


def predictions(recipe: str, network: CopyModel | Scorer, rows: VisitRows, size: int) -> BenchRecord:
    """Histories a second, gathering and padding included."""
    network.eval()
    order = np.argsort(rows.lengths, kind="stable")
    began = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(order), size):
            network(pad(rows.gather(order[first : first + size])))
    speed = len(order) / (time.perf_counter() - began)
    return BenchRecord(
        name=f"{recipe}, predictions in batches of {size}", ours=speed, peers={}, ratios={},
        unit="histories/s", n=len(order), machine=one_line(),
        note=f"{torch.get_num_threads()} threads, {rows.lengths.mean() - 1:.0f} entries in a mean history",
    )  # fmt: skip


def fresh_scorer() -> Scorer:
    """Untrained: its numbers cost what those of a trained one do."""
    chosen = made("places").model
    assert isinstance(chosen, ScorerConfig)
    return Scorer(chosen)


def latency(train: VisitRows, rows: VisitRows, most: int = 200) -> BenchRecord:
    """Milliseconds of one prediction of the scorer for a user who is being followed."""
    visits, codec = rows.visits, train.codec
    follower = Follower(fresh_scorer(), codec, suggestions=PlacesData().suggestions)
    user = int(np.bincount(visits.user).argmax())
    name, taken = visits.users[user].item(), []
    for row in np.flatnonzero(visits.user == user)[:most].tolist():
        offset = int(visits.offset[row])
        place = visits.places[visits.place[row]].item()
        follower.visit(name, place, int(visits.start[row]) + offset, int(visits.end[row]) + offset)
        began = time.perf_counter()
        follower.next(name)
        taken.append(1000 * (time.perf_counter() - began))
    return BenchRecord(
        name="places, one prediction for a followed user", ours=statistics.median(taken), peers={}, ratios={},
        unit="ms", n=len(taken), machine=one_line(),
        note=f"90 % within {sorted(taken)[int(0.9 * len(taken))]:.2f} ms",
    )  # fmt: skip
