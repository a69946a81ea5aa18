"""Captions by search: facts that hold, by the checker that nothing is searched on, for each method at one budget.

    linnet train captions --steps 1000 --out runs/captions
    python -m bench.captions runs/captions --series 500 --calls 64
    python -m bench.captions runs/captions --data m4/Weekly-train.csv.gz --series 100

Every method has the same model, the same cache of keys and values, and at most so many reward calls and 45 tokens
for each of them; what it used stands beside. `rerank` draws as best_of_n does and takes the likeliest caption, not
the one with the best reward. The writer by rules is the ceiling. Differences to best_of_n are paired over series,
with bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnet.decoding.runner import Runner
from linnet.domains.series.captions import making
from linnet.domains.series.captions.codec import END
from linnet.domains.series.captions.data import captioning, read_series
from linnet.domains.series.captions.facts import KINDS, measure
from linnet.domains.series.captions.judging import Numbers
from linnet.domains.series.captions.patches import MOST
from linnet.domains.series.captions.rewards import Facts, fact_reward
from linnet.domains.series.captions.scores import Tally, macro, table
from linnet.domains.series.captions.use import by_rules, captions_run
from linnet.domains.series.captions.writing import columns_of, greedy
from linnet.domains.series.tables import as_text
from linnet.search.budgets import Budget
from linnet.search.cached_steps import CachedStep, Texts
from linnet.search.methods import named
from linnet.search.model_steps import ModelReader
from linnet.search.reward import Reward
from linnet.search.steps import Target
from linnet.search.tree import Tree, search
from linnet.training.settings import parse_setting
from linnet.workbench.open import Opened

HELD_OUT = 1 << 42  # seed of series that no run draws
TOKENS = 80  # of a caption at most
EACH = 45  # tokens for each call of the reward
DRAWS = 2000
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "maxent": {"mode": "best", "lam": 8.0, "chosen": 0.0},
    "best_first": {"parallel": 16},
}


@dataclass
class Written:
    """The captions of one method, and what they cost."""

    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def grown(
    opened: Opened, values: np.ndarray, method: str, calls: int, seed: int, further: Mapping[str, Any]
) -> Tree:
    """The tree of one method about one series."""
    text = as_text(values)
    prompt = opened.prompt(text)
    target = Target(min(TOKENS, opened.model.config.context - len(prompt)))
    reader = ModelReader(Runner(opened.model, columns=columns_of(captioning(opened.codec).patches(values))))
    texts = Texts(lambda ids: text, opened.codec.continuation)
    step = CachedStep(reader, target, ends=[END], texts=texts)
    reward = Reward(Facts(), most=1.0, least=0.0, name="facts")
    settings = {**SETTINGS.get(method, {}), **(further if method == "maxent" else {})}
    budget = Budget(reward_calls=calls, tokens=calls * EACH, wave=16)
    return search(prompt, step, method=named(method, **settings), reward=reward, budget=budget, rng=seed)


def write(
    opened: Opened, series: Sequence[np.ndarray], methods: Sequence[str], calls: int, further: Mapping[str, Any]
) -> dict[str, Written]:
    found = {name: Written() for name in ("greedy", *methods, "rerank", "rules")}
    found["greedy"].texts = greedy(opened.model, captioning(opened.codec), series)
    found["rules"].texts = [by_rules(values, index) for index, values in enumerate(series)]
    for index, values in enumerate(series):
        for method in methods:
            began = time.perf_counter()
            tree = grown(opened, values, method, calls, index, further)
            one = found[method]
            one.seconds += time.perf_counter() - began
            one.tokens += tree.step.forward_tokens
            one.texts.append("" if tree.best is None else tree.best.text)
            if method == "best_of_n":
                likeliest = max(tree.leaves, key=lambda leaf: float(tree.nodes["logprob"][leaf]))
                found["rerank"].texts.append(tree.leaf(likeliest).text)
        if (index + 1) % 20 == 0:
            print(f"{index + 1} series", flush=True)
    return found


def compare(found: dict[str, Written], series: Sequence[np.ndarray]) -> list[dict[str, object]]:
    """A row for each method: facts, the difference to best_of_n with its interval, and each kind."""
    numbers = [Numbers.of(values) for values in series]
    measures = [measure(values) for values in series]
    tables = {
        name: table([Tally.of(text, one) for text, one in zip(written.texts, numbers, strict=True)])
        for name, written in found.items()
        if written.texts
    }
    draws = np.random.default_rng(0).integers(len(series), size=(DRAWS, len(series)))
    reference = "best_of_n" if "best_of_n" in tables else "greedy"
    drawn = {
        name: np.array([macro(true[one], decided[one]) for one in draws])
        for name, (true, decided) in tables.items()
    }
    rows: list[dict[str, object]] = []
    for name, (true, decided) in tables.items():
        rewards = [fact_reward(text, one) for text, one in zip(found[name].texts, measures, strict=True)]
        low, high = np.quantile(drawn[name] - drawn[reference], [0.025, 0.975])
        shares = true.sum(0) / np.maximum(decided.sum(0), 1)
        rows.append(
            {
                "method": name,
                "facts_true": round(float(macro(true, decided)), 4),
                "said": round(float(decided.sum(1).mean()), 3),
                "true_per_caption": round(float(true.sum(1).mean()), 3),
                "against": [round(float(low), 4), round(float(high), 4)],
                "reward": round(float(np.mean(rewards)), 4),
                "tokens": round(found[name].tokens / len(series), 1),
                "seconds": round(found[name].seconds / len(series), 3),
                **{kind: round(float(share), 3) for kind, share in zip(KINDS, shares, strict=True)},
                **{f"n.{kind}": int(count) for kind, count in zip(KINDS, decided.sum(0), strict=True)},
            }
        )
    return rows


def chosen_series(data: Sequence[Path], count: int, seed: int) -> list[np.ndarray]:
    """Series that no run has seen: drawn ones, or the last values of those in files."""
    if not data:
        return list(making.draw(count, HELD_OUT + seed))
    every = read_series(data)
    picked = np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)
    return [every[index][1][-MOST:] for index in picked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", type=int)
    parser.add_argument("--series", type=int, default=500)
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--methods", default="best_of_n,best_first,maxent")
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0, help="of the series; settings are chosen on others than 0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of maxent")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    series = chosen_series(given.data, given.series, given.seed)
    opened = captions_run(given.run, given.checkpoint)
    further = dict(parse_setting(setting) for setting in given.set)
    found = write(opened, series, given.methods.split(","), given.calls, further)
    rows = compare(found, series)
    for row in rows:
        print(json.dumps(row), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps({"rows": rows, "texts": {name: one.texts for name, one in found.items()}}))


if __name__ == "__main__":
    main()
