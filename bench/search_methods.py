"""Exact match by method on sums that a model has learned badly, at equal model tokens and at equal calls of the
reward.

    python -m bench.search_methods RUN [--weights SNAPSHOT] [--prompts 300] [--tokens 256] [--part validation]
                                       [--maxent chosen=1,focus=2] [--only maxent,puct]

All methods see the same model through the same cache. A checker knows the right sum: with `exact` it says 1 or
0, with `partial` it also gives credit for the length, the leading digits and the residue modulo 9. Methods that
need no plan are run once, and each smaller budget is read from the same search; beam, Gumbel and SMC are run for
each budget, and maxent for each budget of tokens. Best-first stands in every table. `imperfect` pays for length
and residue only: the true share beside the reward says how far it leads astray.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from safetensors.torch import load_file

from linnet.decoding.runner import Runner
from linnet.domains.arithmetic.problems import part_of
from linnet.search.budgets import Budget
from linnet.search.cached_steps import CachedStep, Texts
from linnet.search.methods import Method, named
from linnet.search.model_steps import ModelReader
from linnet.search.reward import Reward
from linnet.search.steps import Rows, Step, Target
from linnet.search.tree import Tree, search
from linnet.workbench.open import Opened, load
from linnet.workbench.prompts import read_prompt

CALLS = (1, 4, 16, 64)
UNPLANNED: dict[str, Method] = {
    "greedy": named("greedy"),
    "best_of_n": named("best_of_n"),
    "without_replacement": named("without_replacement"),
    "best_first": named("best_first"),
    "puct": named("puct"),
    "dts_star": named("dts_star"),
    "maxent": named("maxent", mode="best"),
}
PLANNED: dict[str, Method] = {"beam": named("beam"), "gumbel": named("gumbel"), "smc": named("smc", lam=8.0)}
BLIND = {"greedy", "best_of_n", "without_replacement", "best_first", "beam"}  # that look at no reward on the way
MOST = 200  # rollouts of one search: with replacement, draws of the same texts may cost no tokens for ever


class Remembered(Step):
    """A step whose rows are kept from search to search; each search is charged as if it computed them itself."""

    def __init__(self, inner: CachedStep) -> None:
        self.inner, self.target, self.ends, self.vocabulary = inner, inner.target, inner.ends, inner.vocabulary
        self.known: dict[
            tuple[int, ...], tuple[int, np.ndarray, np.ndarray]
        ] = {}  # handle of the model, ids, logprobs
        self.paths: list[tuple[int, ...]] = []

    def begin(self, root: Sequence[int]) -> Rows:
        self.prompt_tokens, self.forward_tokens, self.paths = len(root), 0, [()]
        if () not in self.known:
            self._learn([()], self.inner.begin(root))
            self.prompt = self.inner.prompt
        return self._rows([0])

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Rows:
        self.forward_tokens += len(parents)
        first = len(self.paths)
        self.paths += [(*self.paths[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        new = [path for path in self.paths[first:] if path not in self.known]
        if new:
            above = [self.known[path[:-1]][0] for path in new]
            self._learn(new, self.inner.extend(above, [path[-1] for path in new]))
        return self._rows(range(first, len(self.paths)))

    def recall(self, parents: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        first = len(self.paths)
        self.paths += [(*self.paths[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        return np.arange(first, len(self.paths))

    def row(self, handle: int) -> np.ndarray:
        raise AssertionError("every child is kept: the vocabulary is small")

    def release(self, handles: Collection[int]) -> None:
        return

    def text(self, ids: Sequence[int]) -> str:
        return self.inner.text(ids)

    def _learn(self, paths: Sequence[tuple[int, ...]], rows: Rows) -> None:
        for at, path in enumerate(paths):
            self.known[path] = (int(rows.handles[at]), rows.ids[at], rows.logprobs[at])

    def _rows(self, handles: Collection[int]) -> Rows:
        found = [self.known[self.paths[handle]] for handle in handles]
        ids, logprobs = np.stack([one[1] for one in found]), np.stack([one[2] for one in found])
        numbers, none = np.array(list(handles)), np.full(len(ids), -np.inf)
        return Rows(numbers, ids, logprobs, none, lambda at: logprobs[at], nothing)


def nothing(which: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws from a rest that has no tokens."""
    raise AssertionError("every child is kept: the vocabulary is small")


def rewards(answer: int) -> dict[str, Reward]:
    """What a checker of one sum may say."""

    def graded(grade: Callable[[str], float], name: str) -> Reward:
        return Reward(lambda texts, ids, prompt: [grade(text) for text in texts], most=1.0, least=0.0, name=name)

    right = str(answer)

    def exact(text: str) -> float:
        return float(text == right)

    def imperfect(text: str) -> float:
        number = int(text) if text.isdigit() else None
        return 0.5 * (len(text) == len(right)) + 0.5 * (number is not None and number % 9 == answer % 9)

    def partial(text: str) -> float:
        if text == right:
            return 1.0
        same = len(os.path.commonprefix([text, right])) / len(right)
        return 0.6 * imperfect(text) + 0.3 * same

    return {
        "exact": graded(exact, "exact"),
        "partial": graded(partial, "partial"),
        "imperfect": graded(imperfect, "imperfect"),
    }


@dataclass
class Found:
    """Of each prompt: after how many calls and tokens the right answer was there; infinite if never."""

    calls: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


def seed_of(root: Sequence[int]) -> int:
    """A seed of its own for each sum."""
    return zlib.crc32(bytes(root))


def first_right(
    step: Step, root: Sequence[int], method: Method, reward: Reward, tokens: int
) -> tuple[float, float]:
    """Reward calls and tokens of one search until the right answer has reward 1."""
    tree = Tree(root, step, method, reward, seed_of(root))
    while tree.step.forward_tokens + tree.limit <= tokens and tree.rollouts < MOST:
        before = tree.rollouts
        tree.extend(Budget(tokens=tokens - tree.step.forward_tokens, rollouts=1, wave=1))
        if tree.leaves and tree.nodes["reward"][tree.leaves[-1]] == 1:
            return tree.reward_calls, tree.step.forward_tokens
        if tree.rollouts == before:
            break
    return np.inf, np.inf


def solved(step: Step, root: Sequence[int], method: Method, reward: Reward, budget: Budget) -> bool:
    tree = search(root, step, method=method, reward=reward, budget=budget, rng=seed_of(root))
    return tree.best is not None and tree.best.reward == 1


class Bench:
    """One model, and its problems."""

    def __init__(self, run: str, prompts: int, digits: int, tokens: int, weights: str | None, part: str) -> None:
        self.opened: Opened = load(run, precision="float32")
        if weights is not None:
            self.opened.model.load_state_dict(load_file(weights), strict=False)  # tied heads are stored once
        self.runner, self.tokens = Runner(self.opened.model), tokens
        rng = np.random.default_rng(5)
        least = 10 ** (digits - 1)
        drawn = rng.integers(least, 10 * least, (20 * prompts, 2)).tolist()
        self.sums = [(a, b) for a, b in drawn if part_of("add", f"{a}+{b}") == part][:prompts]
        self.budgets = [budget for budget in (64, 256, 1024) if budget <= tokens]
        self.found = {(name, kind): Found() for name in UNPLANNED for kind in self.kinds(name)}
        self.planned: dict[tuple[str, str, str], list[bool]] = {}
        self.astray: dict[tuple[str, int], list[tuple[float, float]]] = {}

    @staticmethod
    def kinds(name: str) -> tuple[str, ...]:
        return ("exact",) if name in BLIND else ("exact", "partial")

    def step(self, text: str, longest: int) -> tuple[Remembered, tuple[int, ...]]:
        codec = self.opened.codec
        prompt = read_prompt(self.opened, text, "prompt")
        first = 0 if codec.begin is None else 1
        texts = Texts(lambda ids: text, lambda root, ids: codec.continuation(root[first:], list(ids)))
        ends = [] if codec.end is None else [codec.end]
        room = self.opened.model.config.context - len(prompt.ids) + 1
        inner = CachedStep(ModelReader(self.runner), Target(min(longest, room)), ends=ends, texts=texts)
        return Remembered(inner), tuple(prompt.ids)

    def run(self) -> None:
        for number, (a, b) in enumerate(self.sums):
            step, root = self.step(f"{a}+{b}=", len(str(a + b)) + 3)
            graded = rewards(a + b)
            for (name, kind), found in self.found.items():
                calls, tokens = first_right(step, root, UNPLANNED[name], graded[kind], self.tokens)
                found.calls.append(calls)
                found.tokens.append(tokens)
            self._plan(step, root, graded)
            self._astray(step, root, graded, str(a + b))
            if number % 50 == 49:
                print(f"{number + 1} sums", flush=True)

    def _plan(self, step: Step, root: Sequence[int], graded: dict[str, Reward]) -> None:
        for name, method in PLANNED.items():
            for kind in self.kinds(name):
                for calls in CALLS:
                    if name != "smc" or calls >= 4:
                        self.planned.setdefault((name, kind, f"{calls} calls"), []).append(
                            solved(step, root, method, graded[kind], Budget(rollouts=calls, wave=min(calls, 8)))
                        )
                for tokens in self.budgets:
                    self.planned.setdefault((name, kind, f"{tokens} tokens"), []).append(
                        solved(step, root, method, graded[kind], Budget(tokens=tokens, rollouts=256, wave=8))
                    )

        for kind in self.kinds("maxent") if "maxent" in UNPLANNED else ():
            for tokens in self.budgets:
                budget = Budget(tokens=tokens, rollouts=256, wave=1)
                self.planned.setdefault(("maxent", kind, f"{tokens} tokens"), []).append(
                    solved(step, root, UNPLANNED["maxent"], graded[kind], budget)
                )

    def _astray(self, step: Step, root: Sequence[int], graded: dict[str, Reward], right: str) -> None:
        """The reward of the best text by an imperfect reward, and whether it is right."""
        for name in UNPLANNED.keys() & {"best_of_n", "best_first", "maxent"}:
            tree = Tree(root, step, UNPLANNED[name], graded["imperfect"], seed_of(root))
            for calls in CALLS:
                tree.extend(Budget(rollouts=calls - tree.rollouts, wave=1))
                if tree.best is not None:
                    self.astray.setdefault((name, calls), []).append(
                        (tree.best.reward, float(tree.best.text == right))
                    )
                if tree.rollouts < calls:
                    break

    def report(self) -> None:
        columns = [f"{calls} calls" for calls in CALLS] + [f"{tokens} tokens" for tokens in self.budgets]
        shares = {
            (name, kind, column): np.array(
                [at <= float(column.split()[0]) for at in getattr(found, column.split()[1])]
            )
            for (name, kind), found in self.found.items()
            for column in columns
        }
        shares |= {key: np.array(values) for key, values in self.planned.items()}
        print(f"exact match of {len(self.sums)} sums; difference to best-first on the same ones, 95 % interval")
        for name, kind in dict.fromkeys(key[:2] for key in shares):
            cells = [
                cell(shares.get((name, kind, column)), shares[("best_first", "exact", column)])
                for column in columns
            ]
            print(f"{name:20s} {kind:8s}" + "  ".join(f"{c}: {v}" for c, v in zip(columns, cells, strict=True)))
        for (name, calls), pairs in self.astray.items():
            reward, true = np.mean(pairs, axis=0)
            print(f"imperfect, {name}, {calls} calls: reward {reward:.3f}, right {true:.3f} (n {len(pairs)})")


def cell(ours: np.ndarray | None, theirs: np.ndarray) -> str:
    """A share, and the paired difference to another method with a normal interval."""
    if ours is None:
        return "-"
    difference = ours.astype(float) - theirs
    half = 1.96 * difference.std() / np.sqrt(len(difference))
    return f"{ours.mean():.3f} ({difference.mean():+.3f} +- {half:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--digits", type=int, default=5)
    parser.add_argument("--weights", help="a snapshot of the run, of its training when it knew little")
    parser.add_argument("--part", default="test", help="of all sums: test, or validation to choose settings by")
    parser.add_argument("--only", default="", help="methods beside best-first")
    parser.add_argument("--maxent", default="", help="its settings: KEY=NUMBER,...")
    given = parser.parse_args()
    changed = {
        key: float(number) for key, _, number in (one.partition("=") for one in given.maxent.split(",")) if key
    }
    UNPLANNED["maxent"] = named("maxent", mode="best", **changed)
    for table in (UNPLANNED, PLANNED):
        for name in [name for name in table if given.only and name not in ("best_first", *given.only.split(","))]:
            del table[name]
    bench = Bench(given.run, given.prompts, given.digits, given.tokens, given.weights, given.part)
    bench.run()
    bench.report()


if __name__ == "__main__":
    main()
