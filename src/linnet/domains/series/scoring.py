"""Scores of forecasts beside every baseline, on the same windows, with intervals over series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from linnet.domains.contract import Region, Scored
from linnet.domains.series.baselines import METHODS, Forecast, Method, filled
from linnet.domains.series.copies import copied
from linnet.domains.series.forecasts import Forecasts, forecast, known
from linnet.domains.series.lags import Ridge
from linnet.domains.series.metrics import (
    Relative,
    coverage,
    mase,
    mean_of,
    msis,
    quantile_loss,
    smape,
)
from linnet.domains.series.perceptron import ResidualMLP
from linnet.domains.series.windows import ForecastRows
from linnet.intervals import Bootstrap, Statistic
from linnet.model.contract import Network
from linnet.progress import tracked
from linnet.records import Baseline, ForecastRecord, Lead, Score, System

LOSS_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS_80, LEVELS_95 = (0.1, 0.9), (0.025, 0.975)
REFERENCE = "Naive2"
OURS = "this run"
EXAMPLES = 9
MOST_COMPARED = 2 * 10**9  # products of windows and steps that are looked through for copies


@dataclass(frozen=True)
class Errors:
    """sMAPE and MASE of one system, [series] each."""

    smape: np.ndarray
    mase: np.ndarray

    def relative(self, reference: Errors) -> Relative:
        return Relative.of((self.smape, self.mase), (reference.smape, reference.mase))

    def select(self, chosen: np.ndarray) -> Errors:
        return Errors(self.smape[chosen], self.mase[chosen])


def score_forecasts(
    network: Network, rows: ForecastRows, batch: int, region: Region, *, trained: bool = True
) -> Scored:
    """Every measure of the run, and a table of the systems that it has to beat.

    Without `trained`, the network that is trained for the comparison alone is left out.
    """
    codec = rows.codec
    everything = np.arange(len(rows))
    horizon = max(1, int((rows.limit - rows.end).max()))
    truth = rows.futures(everything, horizon)
    windows = rows.histories(everything, max(codec.histories))
    found = forecast(network, codec, windows, batch, region, horizon)
    unit = rows.unit[rows.series]
    rules = baselines(rows, horizon, trained=trained)
    points = {OURS: found.median} | {name: one.mean for name, one in rules.items()}
    errors = {name: Errors(smape(truth, point), mase(truth, point, unit)) for name, point in points.items()}
    draws = Bootstrap.draw(len(rows))
    owa = {name: one.relative(errors[REFERENCE]) for name, one in errors.items()}
    scores = point_scores(errors, owa, draws, len(rows)) + spread_scores(
        Spread.of(found, rules), truth, unit, draws
    )
    scores[3:3], notes = without_copies(rows, truth, errors)
    if constant := int((~np.isfinite(unit)).sum()):
        notes.append(f"{constant} of {len(rows)} series never move before the forecast: mase leaves them out")
    if len(rows) == 1:
        notes.append("one series is scored: what it says of others is not known, and intervals say so")
    shown = examples(rows, found, truth)
    return Scored(tuple(scores), systems(errors, owa, draws), tuple(notes), shown)


def without_copies(
    rows: ForecastRows, truth: np.ndarray, errors: Mapping[str, Errors]
) -> tuple[list[Score], list[str]]:
    """The error without windows that begin as another series goes on: who read that series has seen the answer."""
    if len(rows) * rows.table.starts[-1] > MOST_COMPARED:
        return [], ["too many series to look for test windows that stand in another series"]
    other = copied([rows.history(index) for index in range(len(rows))], list(truth))
    kept = np.flatnonzero(other < 0)
    if len(kept) in (0, len(rows)):
        return [], []
    names = [rows.table.names[rows.series[row]] for row in np.flatnonzero(other >= 0)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    note = f"{len(names)} of {len(rows)} windows begin as another series goes on: {', '.join(names[:10])}{more}"
    table = {name: one.select(kept).relative(errors[REFERENCE].select(kept)) for name, one in errors.items()}
    return [measured("owa.without_copies", table, Bootstrap.draw(len(kept)), len(kept))], [note]


def examples(rows: ForecastRows, found: Forecasts, truth: np.ndarray) -> tuple[ForecastRecord, ...]:
    """Series at equal distances in the table, each with its forecast and what came."""
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)
    return tuple(
        found.record(
            rows.table.names[rows.series[row]], row, rows.history(row)[-2 * max(rows.codec.histories) :]
        ).model_copy(update={"truth": known(truth[row])})
        for row in chosen
    )


def baselines(rows: ForecastRows, horizon: int, *, trained: bool) -> Mapping[str, Forecast]:
    """Forecasts [n, H] of methods that know nothing but the whole histories."""
    histories = [filled(rows.history(index)) for index in range(len(rows))]
    season, cycle, lags = rows.codec.season, rows.codec.cycle, max(rows.codec.histories)
    methods: dict[str, Method] = {**METHODS, "ridge on lags": Ridge(lags)}
    if trained:
        methods["residual MLP"] = ResidualMLP(lags)
    found = {
        name: method.forecast(histories, horizon, season)
        for name, method in tracked(methods.items(), "forecasting with baselines", len(methods))
    }
    if cycle != season:  # errors of weeks are scaled by a season of 1, and still a year comes back
        found[f"seasonal naive ({cycle})"] = METHODS["seasonal naive"].forecast(histories, horizon, cycle)
    return found


def point_scores(
    errors: Mapping[str, Errors], owa: Mapping[str, Relative], draws: Bootstrap, count: int
) -> list[Score]:
    """owa, smape and mase of the run, each with the best rule beside it."""
    tables: dict[str, Mapping[str, Statistic]] = {
        "owa": owa,
        "smape": {name: mean_of(one.smape) for name, one in errors.items()},
        "mase": {name: mean_of(one.mase) for name, one in errors.items()},
    }
    return [measured(name, table, draws, count) for name, table in tables.items()]


def measured(name: str, table: Mapping[str, Statistic], draws: Bootstrap, count: int) -> Score:
    every = np.ones((1, draws.weights.shape[1]))
    values = {system: float(statistic(every)[0]) for system, statistic in table.items()}
    ours = values.pop(OURS)
    best = min(values, key=lambda system: values[system])
    low, high = draws.interval(table[OURS])
    return Score(
        name=name, value=ours, n=count, low=low, high=high, baseline=Baseline(name=best, value=values[best])
    )


@dataclass(frozen=True)
class Spread:
    """Quantiles [n, H, Q] of each system at the levels of the weighted quantile loss and of both intervals."""

    levels: tuple[float, ...]
    quantiles: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, found: Forecasts, rules: Mapping[str, Forecast]) -> Spread:
        levels = tuple(sorted({*LOSS_LEVELS, *LEVELS_80, *LEVELS_95}))
        ours = np.stack([found.at(level) for level in levels], -1)
        return cls(levels, {OURS: ours} | {name: one.quantiles(levels) for name, one in rules.items()})

    def at(self, name: str, levels: tuple[float, ...]) -> np.ndarray:
        return self.quantiles[name][..., [self.levels.index(level) for level in levels]]


def spread_scores(spread: Spread, truth: np.ndarray, unit: np.ndarray, draws: Bootstrap) -> list[Score]:
    """Weighted quantile loss and interval score beside the best rule, coverage beside what is promised."""
    losses: dict[str, Statistic] = {}
    scores: dict[str, Statistic] = {}
    for name in spread.quantiles:
        low, high = np.moveaxis(spread.at(name, LEVELS_95), -1, 0)
        losses[name] = quantile_loss(truth, spread.at(name, LOSS_LEVELS), LOSS_LEVELS)
        scores[name] = mean_of(msis(truth, (low, high), unit))
    found = [measured("wql", losses, draws, len(truth)), measured("msis", scores, draws, len(truth))]
    for promised, pair in ((0.8, LEVELS_80), (0.95, LEVELS_95)):
        share = coverage(truth, *np.moveaxis(spread.at(OURS, pair), -1, 0))
        low, high = draws.share_interval(share)
        baseline = Baseline(name="promised", value=promised)
        name = f"coverage.{round(100 * promised)}"
        found.append(Score(name=name, value=share.value, n=len(truth), low=low, high=high, baseline=baseline))
    return found


def systems(errors: Mapping[str, Errors], owa: Mapping[str, Relative], draws: Bootstrap) -> tuple[System, ...]:
    """One row a system; the run's lead over each rule is paired over series."""
    rows = []
    for name, one in errors.items():
        values = {"owa": owa[name].value, "smape": mean_of(one.smape).value, "mase": mean_of(one.mase).value}
        lead = None
        if name != OURS:
            apart = draws.difference(owa[name], owa[OURS])
            lead = Lead(measure="owa", value=apart.value, low=apart.low, high=apart.high, p=apart.p)
        rows.append(System(name=name, values=values, lead=lead))
    return tuple(rows)
