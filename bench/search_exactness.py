"""How near a maxent search comes to exact answers, beside soft best-of-n with the same draws; and whether its
intervals hold.

    python -m bench.search_exactness [law|chains|coverage|partition] [--runs 100] [--wave 1] [--only MODEL]

`law`: total variation between the target and the law of the next final draw, over runs, on enumerable models.
`chains`: models of 10^12 leaves; the law of the first token and the value. `coverage`: how often the interval of
the value contains it, beside 1.96 standard errors. `partition`: the mean of the unbiased estimate of Z over
runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bench.search_tables import Chain, Enumerable, chain, easy, hard, next_law, peaked
from linnet.search.budgets import Budget
from linnet.search.methods import MaxEnt, Method, SoftBestOfN, WithoutReplacement
from linnet.search.methods.maxent import options, root_mean
from linnet.search.tree import Tree, search

Models = Mapping[str, Callable[[], Enumerable]]
MODELS: Models = {"easy": easy, "hard": hard, "peaked": peaked}
COVERED: Models = {"hard": hard, "rare": lambda: hard(share=0.02), "peaked": peaked}
CHAINS = ("dense", "end", "early")


@dataclass(frozen=True)
class Plan:
    """How often each search is run, and seen at which sizes."""

    runs: int
    wave: int
    sizes: list[int]
    only: str | None

    def chosen(self, name: str) -> bool:
        return self.only in (None, name)


def stages(
    model: Enumerable | Chain, method: Method, sizes: list[int], seed: int, wave: int = 1
) -> Iterator[Tree]:
    """One search, seen whenever it has that many rollouts."""
    tree = Tree((), model.step, method, model.reward, seed)
    for size in sizes:
        if size > tree.rollouts:
            tree.extend(Budget(rollouts=size - tree.rollouts, wave=wave))
        yield tree


def plain_law(tree: Tree, model: Enumerable) -> np.ndarray:
    """The law of the next draw of soft best-of-n."""
    found = np.zeros(len(model.rewards))
    leaves = [model.number(tree.path(int(leaf))) for leaf in tree.draws["leaf"]]
    np.add.at(found, leaves, np.exp(tree.draws["loggain"] - tree.shift))
    return found / found.sum()


def variation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).sum() / 2)


def law(plan: Plan) -> None:
    """Total variation on enumerable models."""
    runs, wave, sizes = plan.runs, plan.wave, plan.sizes
    print(f"total variation to the target, mean of {runs} runs (standard error); waves of {wave}")
    for name, make in MODELS.items():
        if not plan.chosen(name):
            continue
        model = make()
        ours, plain, errors = (np.zeros((runs, len(sizes))) for _ in range(3))
        for seed in range(runs):
            for at, tree in enumerate(stages(model, MaxEnt(model.lam), sizes, seed, wave)):
                ours[seed, at] = variation(next_law(tree, model), model.target)
                errors[seed, at] = abs((tree.value.value or 0) - model.value)
            for at, tree in enumerate(stages(model, SoftBestOfN(model.lam), sizes, seed + 10_000, 64)):
                plain[seed, at] = variation(plain_law(tree, model), model.target)
        for at, size in enumerate(sizes):
            a, b = ours[:, at], plain[:, at]
            print(
                f"{name:7s} N={size:5d}  maxent {a.mean():.4f} ({a.std() / math.sqrt(runs):.4f})  "
                f"soft best-of-n {b.mean():.4f} ({b.std() / math.sqrt(runs):.4f})  "
                f"ratio {a.mean() / b.mean():.3f}  value off by {errors[:, at].mean():.4f}",
                flush=True,
            )


def first_law(tree: Tree, model: Chain) -> np.ndarray:
    """The law of the first token of the next final draw."""
    found = np.zeros(model.vocabulary)
    if isinstance(tree.method, MaxEnt):
        visited, shares = tree.method.visited(tree)
        rest = options(tree, 0, root_mean(tree), tree.method.shrinkage_at(tree, 1))
        spread = rest.prior * rest.unseen * rest.mean
        kept = rest.tokens >= 0
        np.add.at(found, rest.tokens[kept], tree.unseen * root_mean(tree) * spread[kept] / spread.sum())
    else:
        visited, shares = tree.draws["leaf"], np.exp(tree.draws["loggain"] - tree.shift)
    np.add.at(found, [tree.path(int(leaf))[0] for leaf in visited], shares)
    return found / found.sum()


def chains(plan: Plan) -> None:
    """Models of 10^12 leaves."""
    runs, wave, sizes = plan.runs, plan.wave, plan.sizes
    methods: dict[str, Callable[[float], Method]] = {
        "maxent": MaxEnt,
        "soft best-of-n": SoftBestOfN,
        "without replacement": WithoutReplacement,
    }
    for kind in filter(plan.chosen, CHAINS):
        model = chain(kind)
        value, exact = model.first_token()
        print(f"{kind}: value {value:.4f}, mean of {runs} runs, waves of {wave}")
        for name, make in methods.items():
            seen = np.zeros((runs, len(sizes), 4))
            for seed in range(runs):
                for at, tree in enumerate(stages(model, make(model.lam), sizes, seed + 1000 * len(name), wave)):
                    best = tree.best
                    off = abs((tree.value.value or 0) - value)
                    law = variation(first_law(tree, model), exact) if name != "without replacement" else math.nan
                    seen[seed, at] = law, off, best.reward if best else 0, tree.unseen
            for at, size in enumerate(sizes):
                mean, error = seen[:, at].mean(0), seen[:, at].std(0) / math.sqrt(runs)
                print(
                    f"  {name:20s} N={size:4d}  law {mean[0]:.3f} ({error[0]:.3f})  value off by {mean[1]:.4f} "
                    f"({error[1]:.4f})  best {mean[2]:.2f}  unseen {mean[3]:.4f}",
                    flush=True,
                )


def coverage(plan: Plan) -> None:
    """How often the interval contains the value."""
    runs, wave, sizes = plan.runs, plan.wave, plan.sizes
    for name, make in COVERED.items():
        if not plan.chosen(name):
            continue
        model = make()
        inside, plain, widths = (np.zeros((runs, len(sizes))) for _ in range(3))
        for seed in range(runs):
            for at, tree in enumerate(stages(model, MaxEnt(model.lam), sizes, seed, wave)):
                found = tree.value
                inside[seed, at] = found.low - 1e-9 <= model.value <= found.high + 1e-9
                widths[seed, at] = found.width
                plain[seed, at] = by_standard_errors(tree, math.exp(model.lam * model.value))
        for at, size in enumerate(sizes):
            print(
                f"{name:7s} N={size:4d}  covers {inside[:, at].mean():.3f} of {runs}, "
                f"width {widths[:, at].mean():.3f}; 1.96 standard errors cover {plain[:, at].mean():.3f}",
                flush=True,
            )


def by_standard_errors(tree: Tree, exact: float) -> bool:
    """Whether the mean of the Z_i with 1.96 of its standard errors covers Z."""
    draws = tree.draws
    known = ~np.isnan(draws["logweight"])
    gains = np.exp(draws["logweight"][known] + draws["loggain"][known])
    terms = np.exp(draws["mass"][known]) + draws["unseen"][known] * gains
    half = 1.96 * terms.std(ddof=1) / math.sqrt(len(terms))
    return bool(abs(terms.mean() - exact) <= half)


def partition(plan: Plan) -> None:
    """The mean of the unbiased estimate."""
    runs, wave, sizes = plan.runs, plan.wave, plan.sizes
    for name, make in MODELS.items():
        if not plan.chosen(name):
            continue
        model = make()
        exact = math.exp(model.lam * model.value)
        for size in sizes:
            budget = Budget(rollouts=size, wave=wave)
            trees = (
                search(
                    (),
                    model.step,
                    method=MaxEnt(model.lam, chosen=0.0),
                    reward=model.reward,
                    budget=budget,
                    rng=seed,
                )
                for seed in range(runs)
            )
            found = np.array([math.exp(tree.value.unbiased or 0) for tree in trees])
            t = (found.mean() - exact) / (found.std() / math.sqrt(runs))
            print(f"{name:7s} N={size:4d}  mean {found.mean():.3f} exact {exact:.3f}  t {t:+.2f}", flush=True)


PARTS: dict[str, tuple[Callable[[Plan], None], list[int]]] = {
    "law": (law, [16, 64, 256, 1024]),
    "chains": (chains, [64, 256]),
    "coverage": (coverage, [16, 64, 256]),
    "partition": (partition, [8, 64]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS), nargs="?")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--wave", type=int, default=1)
    parser.add_argument("--only")
    parser.add_argument("--sizes", type=int, nargs="+")
    given = parser.parse_args()
    for name in [given.part] if given.part else sorted(PARTS):
        measure, sizes = PARTS[name]
        measure(Plan(given.runs, given.wave, given.sizes or sizes, given.only))


if __name__ == "__main__":
    main()
