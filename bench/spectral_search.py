"""Forecasts by spectral search: how far the distance of the spectra falls, and what that does to OWA.

    linnet train forecast-tokens --data m4/Weekly-train.csv.gz --set data.length=156 --set data.stride=52 --out RUN
    python -m bench.spectral_search RUN --data m4/Weekly-train.csv.gz --part choice    # to choose settings on
    python -m bench.spectral_search RUN --data m4/Weekly-train.csv.gz --part report

The horizon is the stride of the run: as many values at the end of each series that it never learned from. The
distance is that of the power spectra of (the end of the history, as long as the horizon, and the forecast) and of
the history. `greedy` takes the likeliest tokens, `a draw` is the mean over all draws, `median of draws` is what
one uses for accuracy; the searches have one budget and one cache. Every second series is for the choice of
settings, the others are for the report. Intervals are over series and paired; OWA divides by Naive2.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.series.baselines import METHODS, filled
from linnet.domains.series.metrics import Ratio, mase, scales_of, smape
from linnet.domains.series.scoring import Errors
from linnet.domains.series.seasons import timing
from linnet.domains.series.sources import Reading, parse_roles, parse_where, read_table
from linnet.domains.series.tables import as_text
from linnet.domains.series.token_data import SeriesTokens
from linnet.errors import BadInput
from linnet.intervals import Bootstrap
from linnet.machine import one_line
from linnet.search.budgets import Budget
from linnet.search.methods import named
from linnet.search.reward import Reward
from linnet.search.rewards.spectral import Spectral, numbers
from linnet.search.steps import Target
from linnet.search.tree import Tree, search
from linnet.training.settings import parse_setting
from linnet.workbench.open import load
from linnet.workbench.search_source import Source, source_of

MEMORY = 1 << 29  # bytes of keys and values
USUAL = {"mode": "best", "lam": 8.0, "chosen": 0.0}  # of maxent
REFERENCE = "Naive2"


@dataclass(frozen=True)
class Problem:
    """Series [n] with histories as the run reads them, whole ones for rules, and what followed [n, H]."""

    shown: list[np.ndarray]
    whole: list[np.ndarray]
    truth: np.ndarray
    season: int


def problem(data: SeriesTokens, files: Sequence[Path], part: str, count: int) -> Problem:
    table = read_table(files, Reading(parse_roles(data.columns), parse_where(data.where))).univariate()
    season, horizon = timing(table).season, data.stride
    long = [index for index in range(len(table)) if len(table.series(index)) >= data.length]
    mine = long[int(part == "report") :: 2]
    if not mine or not horizon or not data.length:
        raise BadInput("this needs a run with data.length and data.stride, and series as long as data.length")
    chosen = [mine[at] for at in np.linspace(0, len(mine) - 1, min(count, len(mine))).astype(int)]
    values = [filled(table.series(index)[:, 0]) for index in chosen]
    shown = [one[-data.length : -horizon] for one in values]
    return Problem(shown, [one[:-horizon] for one in values], np.stack([one[-horizon:] for one in values]), season)


@dataclass(frozen=True)
class Searches:
    """What all trees share."""

    source: Source
    horizon: int
    rollouts: int
    temperature: float
    metric: str
    further: Mapping[str, Any]  # settings of maxent

    @property
    def reward(self) -> Spectral:
        return Spectral(metric=self.metric, least=self.horizon, before=self.horizon)  # type: ignore[arg-type]

    def tree(self, history: np.ndarray, method: str, seed: int) -> Tree:
        text = as_text(history)
        step = self.source.step(text, Target(self.horizon, self.temperature), MEMORY)
        settings = {**USUAL, **self.further} if method == "maxent" else {}
        budget = Budget(rollouts=1 if method == "greedy" else self.rollouts, wave=16)
        reward = Reward(self.reward, most=1.0, least=0.0, name="spectral")
        ids = self.source.read(text, "the series").ids
        return search(ids, step, method=named(method, **settings), reward=reward, budget=budget, rng=seed)

    def whole(self, text: str, history: np.ndarray) -> np.ndarray:
        """[H]: the numbers of a text; one that ends early repeats its last number."""
        found = numbers(text)[: self.horizon]
        found = found if len(found) else history[-1:]
        return np.concatenate([found, np.full(self.horizon - len(found), found[-1])])


def forecasts(searches: Searches, histories: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Of each system [n, K, H], K forecasts of a series; and the tokens of the searches."""
    found: dict[str, list[list[np.ndarray]]] = {}
    tokens = dict.fromkeys(("greedy", "best_of_n", "maxent"), 0)
    for row, history in enumerate(histories):
        trees = {method: searches.tree(history, method, row) for method in tokens}
        for method, tree in trees.items():
            tokens[method] += tree.step.forward_tokens
            best = "" if tree.best is None else tree.best.text
            found.setdefault(method, []).append([searches.whole(best, history)])
        drawn = trees["best_of_n"].draws["leaf"].tolist()
        paths = [searches.whole(trees["best_of_n"].leaf(leaf).text, history) for leaf in drawn]
        found.setdefault("a draw", []).append(paths)
        found.setdefault("median of draws", []).append([np.median(paths, 0)])
        if (row + 1) % 20 == 0:
            print(f"{row + 1} series", flush=True)
    return {name: np.array(one) for name, one in found.items()}, tokens


def table(searches: Searches, given: Problem) -> list[str]:
    """A row for each system: distance, OWA, and both against greedy and against a draw."""
    found, tokens = forecasts(searches, given.shown)
    scales = scales_of(given.whole, given.season)
    rule = METHODS[REFERENCE].forecast(given.whole, searches.horizon, given.season).mean
    reference = Errors(smape(given.truth, rule), mase(given.truth, rule, scales))
    rows, draws = (
        {**found, REFERENCE: rule[:, None], "what came": given.truth[:, None]},
        Bootstrap.draw(len(scales)),
    )
    apart = {name: distances(searches, given.shown, paths) for name, paths in rows.items()}
    errors = {name: owa_of(paths, given.truth, scales).relative(reference) for name, paths in rows.items()}
    lines = ["| system | tokens | distance | falls against greedy | against a draw | OWA | OWA minus greedy's |"]
    lines.append("|---" * 7 + "|")
    for name in rows:
        falls = []
        for other in ("greedy", "a draw"):
            share = Ratio(apart[other] - apart[name], apart[other])
            low, high = draws.interval(share)
            falls.append(f"{share.value:+.1%} ({low:+.1%} .. {high:+.1%})")
        more = draws.difference(errors[name], errors["greedy"])
        cells = [
            name,
            f"{tokens[name] // len(scales):,}" if name in tokens else "",
            f"{apart[name].mean():.4f}",
            *falls,
            f"{errors[name].value:.3f}",
            f"{more.value:+.3f} ({more.low:+.3f} .. {more.high:+.3f})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def distances(searches: Searches, histories: Sequence[np.ndarray], paths: np.ndarray) -> np.ndarray:
    """[n]: of each series, the mean over its forecasts [n, K, H]."""
    rewards = [
        searches.reward(list(map(as_text, some)), [()] * len(some), as_text(history))
        for history, some in zip(histories, paths, strict=True)
    ]
    return np.array([-np.log(np.maximum(one, 1e-300)).mean() for one in rewards])


def owa_of(paths: np.ndarray, truth: np.ndarray, scales: np.ndarray) -> Errors:
    """Both errors [n], each the mean over the forecasts of a series."""
    each = [(smape(truth, paths[:, k]), mase(truth, paths[:, k], scales)) for k in range(paths.shape[1])]
    return Errors(*np.mean(each, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--part", choices=("choice", "report"), default="choice")
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--metric", choices=("l1", "wasserstein", "kl"), default="l1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of maxent")
    given = parser.parse_args()
    opened = load(given.run, precision="float32")
    data = opened.run.data
    if not isinstance(data, SeriesTokens):
        raise BadInput(f"{given.run} is no run of the recipe forecast-tokens")
    further = dict(map(parse_setting, given.set))
    searches = Searches(source_of(opened), data.stride, given.rollouts, given.temperature, given.metric, further)
    one = problem(data, given.data, given.part, given.series)
    print(f"{len(one.shown)} series for the {given.part}, {data.stride} steps ahead, {one_line()}\n")
    for line in table(searches, one):
        print(line)


if __name__ == "__main__":
    main()
