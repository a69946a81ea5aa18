"""What the comparisons of classifiers share: fits in memory, kept results, aeon, rows with intervals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.data import SeriesData
from linnet.domains.series.labelling import label_material, probabilities
from linnet.domains.series.labels import labelled_windows
from linnet.domains.series.metrics import CalibrationError, MacroF1
from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput
from linnet.intervals import Bootstrap
from linnet.model.contract import parameter_count
from linnet.training.resolve import settle
from linnet.workbench.train import prepare, train_in_memory

OURS = "linnet"
ROCKETS = {"MiniRocket": "MiniRocketClassifier", "MultiRocket-Hydra": "MultiRocketHydraClassifier"}  # of aeon


@dataclass(frozen=True)
class Found:
    """Probabilities [n, K] of one fit, its processor seconds, and how many parameters it has."""

    probabilities: np.ndarray
    seconds: float
    parameters: int = 0


def kept(path: Path, make: Callable[[], Found]) -> Found:
    """What is in this file, or what is made now and written there."""
    if not path.is_file():
        found = make()
        np.savez(path, probabilities=found.probabilities, seconds=found.seconds, parameters=found.parameters)
    stored = np.load(path)
    return Found(stored["probabilities"], float(stored["seconds"]), int(stored["parameters"]))


def fitted(recipe: str, settings: Sequence[str], tables: tuple[SeriesTable, SeriesTable], seed: int) -> Found:
    """Train a recipe on one table and name the classes of the windows of the other."""
    run = settle(prepare(recipe, settings=settings, seed=seed))
    assert isinstance(run.data, SeriesData)
    began = time.process_time()
    material = label_material(run.data, tables[0], run.seed, None)
    run, network = train_in_memory(run, material)
    seconds = time.process_time() - began
    assert isinstance(material.codec, SeriesCodec) and isinstance(run.data, SeriesData)
    rows = labelled_windows(tables[1], material.codec, run.data.labels.step)
    return Found(probabilities(network, rows, 64, nullcontext), seconds, parameter_count(network))


def rocket(
    name: str, cases: np.ndarray, classes: np.ndarray, others: np.ndarray, count: int, seed: int = 0
) -> Found:
    """A classifier of aeon with a ridge, which has no probabilities: the chosen class has all of it."""
    from aeon.classification import convolution_based

    began = time.process_time()
    model = getattr(convolution_based, ROCKETS[name])(random_state=seed)
    model.fit(cases, classes)
    named = np.asarray(model.predict(others)).astype(np.int64)
    return Found(np.eye(count)[named], time.process_time() - began)


def rockets(names: str) -> tuple[str, ...]:
    """Those of aeon that are to be run: none where it is not installed."""
    chosen = tuple(filter(None, names.split(",")))
    for name in chosen:
        if name not in ROCKETS:
            raise BadInput(f'there is no peer "{name}"; there is {", ".join(ROCKETS)}')
    return chosen if has_aeon() else ()


def has_aeon() -> bool:
    import importlib.util

    return importlib.util.find_spec("aeon") is not None


def digest(*parts: object) -> str:
    """A short name for everything that a kept result depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def rows(systems: Mapping[str, Found], truth: np.ndarray, units: np.ndarray) -> Iterator[str]:
    """Accuracy, macro F1 and calibration with intervals over units, and the first system minus each other."""
    draws = Bootstrap.draw(int(units.max()) + 1)
    classes = next(iter(systems.values())).probabilities.shape[1]
    scores = {
        name: MacroF1.of(truth, one.probabilities.argmax(1), units, classes) for name, one in systems.items()
    }
    first = next(iter(scores.values()))
    yield "| system | parameters | CPU seconds | accuracy | macro F1 (95 %) | ours minus it | ECE (95 %) |"
    yield "|---|---|---|---|---|---|---|"
    for name, f1 in scores.items():
        one = systems[name]
        low, high = draws.interval(f1)
        apart = draws.difference(first, f1)
        error = CalibrationError.of(one.probabilities, truth, units)
        from_, to = draws.interval(error)
        sure = bool((one.probabilities.max(1) == 1).all())  # a class without probabilities
        cells = [
            name,
            f"{one.parameters:,}" if one.parameters else "",
            f"{one.seconds:.0f}",
            f"{f1.accuracy.value:.3f}",
            f"{f1.value:.3f} ({low:.3f} .. {high:.3f})",
            "" if f1 is first else f"{apart.value:+.3f} ({apart.low:+.3f} .. {apart.high:+.3f})",
            "" if sure else f"{error.value:.3f} ({from_:.3f} .. {to:.3f})",
        ]
        yield "| " + " | ".join(cells) + " |"
