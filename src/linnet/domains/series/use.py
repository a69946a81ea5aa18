"""What a run on series is used for: forecasts of the series of a file, with quantiles and sampled futures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from linnet.domains.contract import Predictions
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.data import SeriesData
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.forecasts import Forecasts, forecast
from linnet.domains.series.labelling import probabilities
from linnet.domains.series.labels import labelled_windows
from linnet.domains.series.sources import read_table
from linnet.domains.series.tables import Series, SeriesTable, as_numbers
from linnet.errors import BadInput
from linnet.records import Candidate, PredictionRecord
from linnet.untrusted import lines_of, parse_object
from linnet.workbench.open import Opened, load, options_of

JSON = (".jsonl", ".jsonl.gz", ".json")
SHOWN = 60  # values of the history that a record keeps


def series_run(path: Path | str, **options: Any) -> tuple[Opened, SeriesData, SeriesCodec]:
    """An opened run on series; any other run is refused. `options` are those of `load`."""
    opened = load(path, **options)
    data, codec = opened.run.data, opened.codec
    if not isinstance(data, SeriesData) or not isinstance(codec, SeriesCodec):
        raise BadInput(f"{path} is a run on {data.domain}, and not on series")
    return opened, data, codec


def predict(
    path: Path | str, file: Path, *, k: int = 10, settings: tuple[str, ...] = (), **options: Any
) -> Predictions:
    """What comes next in every series of the file. `settings` may hold batch, horizon, paths and seed."""
    opened, data, codec = series_run(path, **options)
    table = series_of(data, file)
    if codec.task == "classes":
        return _classes(opened, data, table, k, settings)
    return _forecasts(opened, codec, table, settings)


def series_of(data: SeriesData, file: Path) -> SeriesTable:
    """The series of a table, of a folder, or of JSON lines."""
    if file.name.endswith(JSON):
        return read_lines(file)
    files = chosen_files([file])
    return read_table(files.train or files.test, data.reading)


def read_lines(file: Path) -> SeriesTable:
    """Lines such as {"id": 1, "values": [3.5, null, 4]}; a series of several channels has a list of lists."""
    found = []
    for number, line in enumerate(lines_of(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        given = parse_object(line, where)
        values = given.get("values")
        if not isinstance(values, list) or not values:
            raise BadInput(f'{where}: a line needs "values", a list of numbers')
        channels = values if all(isinstance(one, list) for one in values) else [values]
        lengths = {len(one) for one in channels}
        if len(lengths) != 1:
            raise BadInput(f"{where}: channels have different lengths ({', '.join(map(str, sorted(lengths)))})")
        columns = [as_numbers(one, lambda index, at=where: f"{at}, value {index + 1}") for one in channels]
        found.append(Series(str(given.get("id", number)), np.stack(columns, 1), where))
    if not found:
        raise BadInput(f"{file} is empty")
    width = {one.values.shape[1] for one in found}
    if len(width) != 1:
        raise BadInput(f"{file}: series have different numbers of channels ({', '.join(map(str, sorted(width)))})")
    return SeriesTable.of(found, [f"{number + 1}" for number in range(width.pop())])


def _forecasts(opened: Opened, codec: SeriesCodec, table: SeriesTable, settings: Sequence[str]) -> Predictions:
    chosen = options_of(list(settings), batch=256, horizon=codec.horizon, paths=0, seed=1)
    table = table.univariate()
    began = time.perf_counter()
    windows = last_values(table, max(codec.histories))
    found = forecast(opened.network, codec, windows, chosen["batch"], opened.region, chosen["horizon"])
    paths = sampled_paths(found, chosen["paths"], chosen["seed"])
    records = tuple(
        found.record(table.names[row], row, windows[row, -SHOWN:]).model_copy(
            update={"paths": tuple(map(tuple, paths[row].tolist()))}
        )
        for row in range(len(table))
    )
    seconds = time.perf_counter() - began
    return Predictions(records, (*table.notes, *table.problems), seconds, chosen["batch"])


def _classes(opened: Opened, data: SeriesData, table: SeriesTable, k: int, settings: Sequence[str]) -> Predictions:
    """The k likeliest classes of each series, or of each window, which is named SERIES@FIRST STEP."""
    chosen = options_of(list(settings), batch=64)
    codec = opened.codec
    assert isinstance(codec, SeriesCodec)
    rows = labelled_windows(replace(table, labels=None), codec, data.labels.step)
    began = time.perf_counter()
    found = probabilities(opened.network, rows, chosen["batch"], opened.region)
    order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    records = []
    for row, (series, first) in enumerate(zip(rows.series.tolist(), rows.first.tolist(), strict=True)):
        name, step = table.names[series], first - int(table.starts[series])
        named = [
            Candidate(value=codec.classes[index], probability=float(found[row, index])) for index in order[row]
        ]
        shown = f"{name}@{step}" if data.labels.step else name
        records.append(PredictionRecord(id=shown, candidates=tuple(named)))
    seconds = time.perf_counter() - began
    return Predictions(tuple(records), (*table.notes, *table.problems), seconds, chosen["batch"])


def last_values(table: SeriesTable, length: int) -> np.ndarray:
    """[n, length]: the ends of all series, right-aligned."""
    steps = table.starts[1:, None] + np.arange(-length, 0)
    inside = steps >= table.starts[:-1, None]
    return np.where(inside, table.values[np.where(inside, steps, 0), 0], np.nan)


def sampled_paths(found: Forecasts, count: int, seed: int) -> np.ndarray:
    """[n, count, H]: futures whose values at each step follow the quantiles of that step.

    Neighbouring steps move together as those of a random walk do: the rank at step h is that of the sum of h
    normal draws. Between levels a value lies on the line between its neighbours, and never beyond the outermost.
    """
    rows, horizon, _ = found.quantiles.shape
    random = np.random.default_rng(seed)
    walks = random.normal(size=(rows, count, horizon)).cumsum(-1) / np.sqrt(np.arange(1, horizon + 1))
    points = np.array([NormalDist().inv_cdf(level) for level in found.levels])
    above = np.clip(np.searchsorted(points, walks), 1, len(points) - 1)
    share = np.clip((walks - points[above - 1]) / (points[above] - points[above - 1]), 0, 1)
    quantiles = found.quantiles[:, None]
    below = np.take_along_axis(quantiles, (above - 1)[..., None], -1)[..., 0]
    upper = np.take_along_axis(quantiles, above[..., None], -1)[..., 0]
    return np.asarray((1 - share) * below + share * upper)
