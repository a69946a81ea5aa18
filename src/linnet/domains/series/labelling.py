"""From a table to labelled windows, from a network to probabilities, and their scores.

Legend: n = windows, K = classes, U = units that intervals are drawn over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from linnet.calibration import Spread, warmed
from linnet.domains.contract import Material, Part, Region, Scored
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.convolution import Convolution, mean_of_members
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.forecasts import chunks
from linnet.domains.series.forest import Forest
from linnet.domains.series.labels import FLAT, LabelRows, labelled_windows, normalised, split
from linnet.domains.series.metrics import CalibrationError, MacroF1, Ratio
from linnet.domains.series.neighbours import Classifier, Majority, NearestNeighbour
from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput, counted
from linnet.intervals import Bootstrap, Statistic
from linnet.model.contract import Network, evaluating, refuse_nan
from linnet.progress import tracked
from linnet.records import Baseline, Score, System

if TYPE_CHECKING:
    from linnet.domains.series.data import SeriesData

TREES = 50
MOST_APART = 10  # times that one axis of a sensor may be as large as another
MOST_WARPED = 2 * 10**8  # products of steps that warping may compare
LEAST = 1e-12  # probability that nats are counted with at least


def label_material(data: SeriesData, table: SeriesTable, seed: int, codec: SeriesCodec | None) -> Material:
    """Windows to learn from and to validate on; no group is in both."""
    if table.labels is None:
        raise BadInput(f"{table.where[0]}: no label column was found; name it: data.columns=label=COLUMN")
    own = codec or label_codec(data, table)
    rows = labelled_windows(table, own, data.labels.step)
    learned, kept = split(rows, data.labels.validation, seed)
    train = rows.select(learned)
    if codec is None and data.labels.units != "series":
        own = standardised(own, train, turned=data.labels.units == "triples")
        rows = replace(rows, codec=own)
        train = rows.select(learned)
    validation = replace(rows.select(kept) if len(kept) else train, learned=train, held_out=len(kept) > 0)
    notes = [*table.notes, *table.problems, in_words(own, train, validation if len(kept) else None)]
    unit = "group" if any(table.groups) else "series"
    return Material(own, Part(train, unit=unit), Part(validation, unit=unit), tuple(notes))


def label_codec(data: SeriesData, table: SeriesTable) -> SeriesCodec:
    assert table.labels is not None
    classes = tuple(np.unique(table.labels.astype(str)).tolist())
    if len(classes) < 2:
        raise BadInput(f"{table.where[0]}: every label is {classes[0]}; classes need at least two")
    length = data.labels.length or int(table.lengths.max())
    return SeriesCodec("classes", table.channels, classes=classes, length=length)


def standardised(codec: SeriesCodec, train: LabelRows, *, turned: bool) -> SeriesCodec:
    """The codec with mean and deviation of each channel over the windows that are learned from.

    Where sensors may be `turned`, three axes keep their zero and have one size, so that lengths and angles are
    those of the sensor.
    """
    values = train.values(train.first, train.count)
    means = np.nanmean(values, (0, 1))
    deviations = np.nanstd(values, (0, 1))
    squares = np.nanmean(values**2, (0, 1))
    if turned and are_axes(squares):
        means, deviations = np.zeros_like(means), np.repeat(np.sqrt(squares.reshape(-1, 3).mean(1)), 3)
    deviations = np.where(deviations > FLAT * np.maximum(np.abs(means), 1e-300), deviations, 1.0)
    return replace(codec, means=tuple(means.tolist()), deviations=tuple(deviations.tolist()))


def are_axes(squares: np.ndarray) -> bool:
    """Whether channels with these mean squares [C] can be the axes of sensors: threes of nearly one size."""
    if len(squares) % 3:
        return False
    threes = np.sqrt(squares).reshape(-1, 3)
    return bool((threes.max(1) <= MOST_APART * threes.min(1)).all())


def in_words(codec: SeriesCodec, train: LabelRows, validation: LabelRows | None) -> str:
    held = "none are held out, so the scores are no test"
    if validation is not None:
        held = (
            f"{counted(len(validation), 'window')} from {len(set(validation.groups.tolist()))} more are held out"
        )
    return (
        f"{counted(len(train), 'window')} of {codec.length} steps and {counted(len(codec.channels), 'channel')} "
        f"from {counted(len(set(train.groups.tolist())), 'unit')} in {len(codec.classes)} classes; {held}"
    )


def label_part(data: SeriesData, codec: SeriesCodec, table: SeriesTable) -> Part:
    rows = labelled_windows(table, codec, data.labels.step)
    if table.labels is None:
        raise BadInput(f"{table.where[0]}: scoring needs labels; name their column: data.columns=label=COLUMN")
    rows, notes = with_learned(data, codec, rows)
    notes = (*table.notes, *table.problems, *notes)
    return Part(rows, notes=notes, unit="group" if any(table.groups) else "series")


def with_learned(data: SeriesData, codec: SeriesCodec, rows: LabelRows) -> tuple[LabelRows, tuple[str, ...]]:
    """The windows beside those of the training files, where these are still there."""
    files = [path for path in data.files if path.exists()]
    if len(files) < len(data.files) or not files:
        return rows, ("the training files are gone, so only the commonest class stands beside the run",)
    train = labelled_windows(data.table(chosen_files(files).train), codec, data.labels.step)
    return replace(rows, learned=train), ()


def probabilities(network: Network, rows: LabelRows, size: int, region: Region) -> np.ndarray:
    """float64 [n, K], at the temperature of the network."""
    assert isinstance(network, Convolution)
    heat = float(network.temperature)
    return np.asarray(np.exp(warmed(logarithms(network, rows, size, region), heat)))


def logarithms(network: Convolution, rows: LabelRows, size: int, region: Region) -> np.ndarray:
    """float64 [n, K]: log-probabilities before any temperature."""
    parts = [np.empty((0, len(rows.codec.classes)))]
    with evaluating(network), region():
        for chosen in chunks(len(rows), size):
            batch = rows.batch(rows.first[chosen], rows.count[chosen]).to(network.device)
            parts.append(mean_of_members(network(batch).hidden).double().cpu().numpy())
    refuse_nan(network, *parts)
    return np.maximum(np.concatenate(parts), np.log(LEAST))


def nats(network: Network, rows: LabelRows, size: int, region: Region) -> float:
    """Nats of these windows. Where they were held out, the network takes the temperature that makes them least.

    Averaged members and weighed classes leave confidence below accuracy, which training cannot see.
    """
    assert isinstance(network, Convolution)
    spread = Spread.of_classes(logarithms(network, rows, size, region), rows.truth)
    heat = spread.fitted() if rows.held_out else 1.0
    with torch.no_grad():
        network.temperature.fill_(heat)
    return float(spread.at(heat)[1].mean())


def score_labels(network: Network, rows: LabelRows, size: int, region: Region) -> Scored:
    """Accuracy, macro F1, calibration and nats, with intervals over units, beside the rules."""
    found, truth = probabilities(network, rows, size, region), rows.truth
    _, units = np.unique(rows.groups.astype(str), return_inverse=True)
    scored = scored_labels({"this run": found, **rivals(rows)}, truth, units.ravel())
    assert isinstance(network, Convolution)
    heat = float(network.temperature)
    note = f"probabilities are at the temperature {heat:.2f}, which was fitted to windows held out of training"
    return scored if heat == 1 else replace(scored, notes=(*scored.notes, note))


def rivals(rows: LabelRows) -> dict[str, np.ndarray]:
    """Probabilities [n, K] of classifiers without a network, fitted to what the run learned from."""
    learned = rows if rows.learned is None else rows.learned
    methods: dict[str, Classifier] = {"majority": Majority()}
    if rows.learned is not None:
        methods |= {"nearest neighbour": NearestNeighbour(), "forest": Forest(trees=TREES)}
        if len(learned) * len(rows) * rows.codec.length**2 <= MOST_WARPED:
            methods["nearest, warped"] = NearestNeighbour(window=0.1)
    ours, theirs = cases(learned), cases(rows)
    count = len(rows.codec.classes)
    return {
        name: method.fit(ours, learned.truth, count).probabilities(theirs)
        for name, method in tracked(methods.items(), "naming classes with baselines", len(methods))
    }


def cases(rows: LabelRows) -> np.ndarray:
    """[n, C, T] in the units that the network reads."""
    return normalised(rows.values(rows.first, rows.count), rows.codec).transpose(0, 2, 1)


def scored_labels(systems: Mapping[str, np.ndarray], truth: np.ndarray, units: np.ndarray) -> Scored:
    """Scores of the first system, with the best of the others as baseline, and a table of all."""
    tables = {name: label_statistics(found, truth, units) for name, found in systems.items()}
    draws = Bootstrap.draw(int(units.max()) + 1)
    every = np.ones((1, draws.weights.shape[1]))
    values = {name: {key: float(one(every)[0]) for key, one in table.items()} for name, table in tables.items()}
    ours, *others = tables
    scores = []
    for key, statistic in tables[ours].items():
        least = key in ("nats", "ece")
        best = (min if least else max)(others, key=lambda name: values[name][key])
        share = key in ("accuracy", "macro_f1", "ece")
        low, high = draws.share_interval(statistic) if share else draws.interval(statistic)
        baseline = Baseline(name=best, value=values[best][key])
        scores.append(
            Score(name=key, value=values[ours][key], n=len(truth), low=low, high=high, baseline=baseline)
        )
    alone = "all windows are of one group: what they say of other groups is not known, and intervals say so"
    return Scored(
        tuple(scores),
        tuple(System(name=name, values=one) for name, one in values.items()),
        notes=(alone,) if len(every[0]) == 1 else (),
    )


def label_statistics(found: np.ndarray, truth: np.ndarray, units: np.ndarray) -> dict[str, Statistic]:
    f1 = MacroF1.of(truth, found.argmax(1), units, found.shape[1])
    lost = -np.log(np.maximum(found[np.arange(len(truth)), truth], LEAST))
    size = int(units.max()) + 1
    losses = Ratio(np.bincount(units, lost, size), np.bincount(units, minlength=size).astype(np.float64))
    return {
        "accuracy": f1.accuracy,
        "macro_f1": f1,
        "ece": CalibrationError.of(found, truth, units),
        "nats": losses,
    }
