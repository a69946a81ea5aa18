"""Forecasts of M4 in one table: ours, classical methods, lags, a residual MLP, and statsforecast where installed.

    python -m bench.series_m4 --data M4 --out DIR [--recipe forecast --seeds 3 --set KEY=VALUE] [--plain 2]
                              [--peers AutoETS,AutoCES,AutoARIMA --limit 300 --last 260]

M4 is a folder with a training and a test part. Each of our seeds trains once, from the training part alone, and is
kept in DIR; a peer's forecasts are kept there, too. OWA divides by Naive2 after averaging over series. Differences
are ours minus the other, paired over series. A peer that is not installed, or not ready in time, is named.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from linnet import workbench
from linnet.domains.series.baselines import METHODS, filled
from linnet.domains.series.copies import copied
from linnet.domains.series.data import SeriesData, forecast_rows
from linnet.domains.series.forecasts import forecast
from linnet.domains.series.lags import Ridge
from linnet.domains.series.metrics import Relative, coverage, mase, mean_of, msis, quantile_loss, scales_of, smape
from linnet.domains.series.perceptron import ResidualMLP
from linnet.domains.series.windows import ForecastRows
from linnet.errors import RunFailed
from linnet.intervals import Bootstrap
from linnet.machine import one_line
from linnet.model.contract import parameter_count

LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
LOSS = tuple(range(1, 10))  # positions in LEVELS of the levels of the weighted quantile loss


@dataclass(frozen=True)
class Problem:
    """Complete histories, what followed [n, H], and where a future stands in another history [n]."""

    histories: list[np.ndarray]
    truth: np.ndarray
    season: int
    scales: np.ndarray
    copies: np.ndarray

    @classmethod
    def of(cls, rows: ForecastRows) -> Problem:
        histories = [filled(rows.history(index)) for index in range(len(rows))]
        truth = rows.futures(np.arange(len(rows)), int((rows.limit - rows.end).max()))
        scales = scales_of(histories, rows.codec.season)
        return cls(histories, truth, rows.codec.season, scales, copied(histories, list(truth)) >= 0)

    @property
    def horizon(self) -> int:
        return self.truth.shape[1]


@dataclass(frozen=True)
class Entry:
    """One row: points [S, n, H] and quantiles [S, n, H, Q] at `LEVELS` of one or several seeds."""

    name: str
    points: np.ndarray
    quantiles: np.ndarray | None
    seconds: float
    parameters: int = 0
    note: str = ""

    def errors(self, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """sMAPE and MASE [n], averaged over seeds."""
        return (
            np.mean([smape(problem.truth, point) for point in self.points], 0),
            np.mean([mase(problem.truth, point, problem.scales) for point in self.points], 0),
        )


def ours(data: Path, out: Path, arguments: argparse.Namespace) -> tuple[Entry, Problem]:
    """Train each seed that is not there yet, and forecast the test part."""
    points, quantiles, seconds = [], [], []
    for seed in range(1, arguments.seeds + 1):
        path = out / f"{arguments.recipe}-{seed}"
        if not (path / "record.json").is_file():
            workbench.train(arguments.recipe, out=path, data=[data], seed=seed, settings=arguments.set, force=True)
        opened = workbench.load(path)
        assert isinstance(opened.run.data, SeriesData)
        rows = forecast_rows(opened.run.data.read(opened.codec, [data]).rows)
        windows = rows.histories(np.arange(len(rows)), max(rows.codec.histories))
        found = forecast(opened.network, rows.codec, windows, 256, opened.region)
        points.append(found.median)
        quantiles.append(np.stack([found.at(level) for level in LEVELS], -1))
        seconds.append(trained_seconds(path))
    entry = Entry(
        f"linnet {arguments.recipe}", np.stack(points), np.stack(quantiles), float(np.mean(seconds)),
        parameter_count(opened.network), f"{arguments.seeds} seeds",
    )  # fmt: skip
    return entry, Problem.of(rows)


def trained_seconds(path: Path) -> float:
    import json

    return float(json.loads((path / "record.json").read_text())["seconds"])


def classical(problem: Problem) -> Iterator[Entry]:
    """The methods of M4 and ridge regression on lags of a year and a half."""
    methods = {**METHODS, "ridge on lags": Ridge(lags=lags_of(problem))}
    for name, method in methods.items():
        began = time.perf_counter()
        found = method.forecast(problem.histories, problem.horizon, problem.season)
        quantiles = found.quantiles(LEVELS)
        yield Entry(name, found.mean[None], quantiles[None], time.perf_counter() - began)


def lags_of(problem: Problem) -> int:
    """What a person would choose for weeks: a year and a half, or two seasons where there is one."""
    return 78 if problem.season == 1 else max(2 * problem.horizon, 2 * problem.season)


def plain(problem: Problem, seeds: int) -> Entry:
    """The network that stands in the table of `linnet eval`, with other seeds."""
    lags, began, points, quantiles = lags_of(problem), time.perf_counter(), [], []
    for seed in range(1, seeds + 1):
        network = ResidualMLP(lags, seed=seed)
        found = network.forecast(problem.histories, problem.horizon, problem.season)
        points.append(found.mean)
        quantiles.append(found.quantiles(LEVELS))
    seconds, size = (time.perf_counter() - began) / seeds, parameter_count(network.network(lags, problem.horizon))
    return Entry("residual MLP", np.stack(points), np.stack(quantiles), seconds, size, f"{seeds} seeds")


# Peers


def peer(name: str, problem: Problem, arguments: argparse.Namespace) -> Entry | str:
    """Forecasts of a model of statsforecast, made in a process that ends with the time limit; or why not."""
    kept = arguments.out / f"{name}.npz"
    if not kept.is_file():
        series = [history[-arguments.last :] for history in problem.histories]
        process = multiprocessing.get_context("fork").Process(
            target=forecast_with, args=(name, series, problem.horizon, problem.season, kept)
        )
        process.start()
        process.join(arguments.limit)
        if process.is_alive():
            process.kill()
            process.join()
            return f"{name}: not ready after {arguments.limit} s"
        if not kept.is_file():
            return f"{name}: failed with exit code {process.exitcode}"
    stored = np.load(kept)
    note = f"statsforecast, the last {arguments.last} values"
    return Entry(name, stored["points"][None], stored["quantiles"][None], float(stored["seconds"]), 0, note)


def forecast_with(name: str, histories: Sequence[np.ndarray], horizon: int, season: int, kept: Path) -> None:
    """Fit and forecast each series with `statsforecast.models.NAME`."""
    import statsforecast.models

    began = time.perf_counter()
    points, quantiles = np.empty((len(histories), horizon)), np.empty((len(histories), horizon, len(LEVELS)))
    widths = sorted({round(100 * abs(1 - 2 * level), 6) for level in LEVELS if level != 0.5})
    for row, history in enumerate(histories):
        model = getattr(statsforecast.models, name)(season_length=season)
        found = model.forecast(y=history.astype(np.float64), h=horizon, level=widths)
        points[row] = found["mean"]
        for column, level in enumerate(LEVELS):
            side, width = ("lo" if level < 0.5 else "hi"), round(100 * abs(1 - 2 * level), 6)
            quantiles[row, :, column] = found["mean"] if level == 0.5 else bound(found, side, width)
    np.savez(kept, points=points, quantiles=quantiles, seconds=time.perf_counter() - began)


def bound(found: Mapping[str, np.ndarray], side: str, width: float) -> np.ndarray:
    names = (f"{side}-{width}", f"{side}-{width:g}")
    return np.asarray(next(found[name] for name in names if name in found))


# The table

HEADINGS = (
    "system", "parameters", "seconds", "sMAPE", "MASE", "OWA (95 %)", "seeds", "without copies",
    "ours minus it", "WQL", "in 80 %", "MSIS",
)  # fmt: skip


def table(entries: Sequence[Entry], problem: Problem) -> Iterator[str]:
    draws = Bootstrap.draw(len(problem.truth))
    errors = {entry.name: entry.errors(problem) for entry in entries}
    naive2 = errors["Naive2"]
    first = Relative.of(errors[entries[0].name], naive2)
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "|---" * len(HEADINGS) + "|"
    for entry in entries:
        mine = errors[entry.name]
        owa = Relative.of(mine, naive2)
        low, high = draws.interval(owa)
        kept = ~problem.copies
        without = Relative.of((mine[0][kept], mine[1][kept]), (naive2[0][kept], naive2[1][kept])).value
        apart = draws.difference(first, owa)
        each = [Relative.of((smape(problem.truth, p), mase(problem.truth, p, problem.scales)), naive2).value
                for p in entry.points]  # fmt: skip
        cells = [
            entry.name, f"{entry.parameters:,}" if entry.parameters else "", f"{entry.seconds:.1f}",
            f"{np.nanmean(mine[0]):.3f}", f"{np.nanmean(mine[1]):.3f}",
            f"{owa.value:.3f} ({low:.3f} .. {high:.3f})",
            f"{min(each):.3f} .. {max(each):.3f}" if len(each) > 1 else "", f"{without:.3f}",
            "" if entry is entries[0] else f"{apart.value:+.3f} ({apart.low:+.3f} .. {apart.high:+.3f})",
            *spread_cells(entry, problem),
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def spread_cells(entry: Entry, problem: Problem) -> list[str]:
    """Weighted quantile loss, coverage of the 80 % interval, MSIS at 95 %, averaged over seeds."""
    if entry.quantiles is None:
        return ["", "", ""]
    found = []
    for quantiles in entry.quantiles:
        loss = quantile_loss(problem.truth, quantiles[..., LOSS], [LEVELS[level] for level in LOSS]).value
        inside = coverage(problem.truth, quantiles[..., 1], quantiles[..., 9]).value
        width = mean_of(msis(problem.truth, (quantiles[..., 0], quantiles[..., 10]), problem.scales)).value
        found.append((loss, inside, width))
    loss, inside, width = np.mean(found, 0)
    return [f"{loss:.4f}", f"{100 * inside:.1f} %", f"{width:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="forecast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plain", type=int, default=2, help="seeds of the residual MLP; 0: leave it out")
    parser.add_argument("--peers", default="AutoETS,AutoCES,DynamicOptimizedTheta,AutoARIMA")
    parser.add_argument("--limit", type=int, default=300, help="seconds for each peer")
    parser.add_argument("--last", type=int, default=260, help="values of a history that peers are given")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    entry, problem = ours(arguments.data, arguments.out, arguments)
    entries = [entry, *([plain(problem, arguments.plain)] if arguments.plain else []), *classical(problem)]
    remarks = []
    for name in filter(None, arguments.peers.split(",")):
        try:
            import statsforecast.models  # noqa: F401
        except ImportError:
            remarks.append(f"{name}: statsforecast is not installed")
            continue
        found = peer(name, problem, arguments)
        entries += [found] if isinstance(found, Entry) else []
        remarks += [found] if isinstance(found, str) else []
    if not np.isfinite(problem.truth).any():
        raise RunFailed("there is no test part to score")
    print(f"{len(problem.truth)} series, {problem.horizon} steps ahead, {one_line()}")
    print(f"{int(problem.copies.sum())} test windows stand in another series\n")
    for line in table(entries, problem):
        print(line)
    for remark in remarks:
        print(f"\n{remark}")


if __name__ == "__main__":
    main()
