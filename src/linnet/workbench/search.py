"""Searching after prompts: one tree a prompt, records of what was found, and methods beside each other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import BadInput, refuse_unknown
from linnet.files import refuse_existing
from linnet.intervals import ratio_interval
from linnet.progress import Progress, short
from linnet.search.budgets import Budget
from linnet.search.methods.contract import Method
from linnet.search.named import reward_of
from linnet.search.records import SearchComparisonRecord, SearchedMethod, SearchRecord
from linnet.search.reporting import record_of
from linnet.search.rewards.calls import Calls
from linnet.search.saving import (
    LAYOUT,
    SETTINGS,
    Saved,
    SavedSource,
    as_saved,
    read_saved,
    restore,
    save,
    tree_record,
)
from linnet.search.tree import Tree
from linnet.training.settings import parse_setting
from linnet.workbench.open import Opened
from linnet.workbench.prompts import Prompt
from linnet.workbench.search_options import Plan, SearchOptions, plan_of
from linnet.workbench.search_source import Source, source_of

MEGABYTE = 1 << 20
SEEDS = 5  # of a comparison on few prompts
FEW = 10
FIRST = 2  # an adaptive search gives one part in so many evenly, and the rest where the value is least certain
FREE = ("rollouts", "tokens", "reward_calls", "seconds", "width", "samples", "preset", "settings", "remark")
FREE_SETTINGS = (
    "wave",
    "memory",
    "processes",
    "reward_seconds",
    "shown",
)  # with FREE, what a saved search may change
REFRESH = 0.5  # seconds between two looks at the value while a search runs


@dataclass
class Searcher:
    """A model and a plan; trees are made one by one, each with a memory of its own."""

    source: Source
    plan: Plan
    calls: Calls
    trees: dict[int, Tree] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def open(cls, source: Source, plan: Plan) -> Iterator[Searcher]:
        further = plan.further
        with Calls(plan.score, seconds=further.reward_seconds, processes=further.processes) as calls:
            yield cls(source, plan, calls)

    def read(self, prompts: Sequence[str] | None, names: Sequence[str] | None) -> list[Prompt]:
        if prompts is None:
            return [self.source.read(None, "no prompt")]
        given = [f"prompt {number}" for number in range(1, len(prompts) + 1)] if names is None else names
        return [self.source.read(text, name) for text, name in zip(prompts, given, strict=True)]

    def tree(self, prompt: Prompt, method: Method, seed: int, *, shares: int = 1) -> Tree:
        """A fresh tree; `shares` of them are held at the same time."""
        further = self.plan.further
        target = self.plan.target(len(prompt.ids), self.source.context)
        step = self.source.step(prompt.text, target, further.memory * MEGABYTE // shares)
        limits = (further.least, further.most)
        reward = reward_of(self.plan.score, self.calls, self.plan.reward, limits)
        return Tree(prompt.ids, step, method, reward, seed)

    def extend(self, tree: Tree, budget: Budget, what: str) -> Tree:
        """Spend a budget on a tree, with a line about it."""
        whole = budget.rollouts or budget.reward_calls or 0
        with Progress(what, whole) as progress:
            tree.watch = Watch(progress, tree)
            tree.extend(budget)
            tree.watch = None
        return tree

    def record(self, tree: Tree, saved: Path | None = None) -> SearchRecord:
        plan = self.plan
        path = None if saved is None else str(saved)
        record = record_of(tree, plan.options.method, plan.reward, plan.samples)
        branches = tree_record(tree, plan.further.shown)
        return record.model_copy(update={"branches": branches, "tree": path})


class Watch:
    """Tells how far a search is: rollouts, the best reward, the value with its interval, tokens a second."""

    def __init__(self, progress: Progress, tree: Tree) -> None:
        self.progress, self.rollouts = progress, tree.rollouts
        self.tokens, self.began, self.looked = tree.step.forward_tokens, time.monotonic(), 0.0
        self.value = ""

    def __call__(self, tree: Tree) -> None:
        now = time.monotonic()
        if now - self.looked > REFRESH:
            self.looked, found = now, tree.value
            width = f" ({found.low:.3g} .. {found.high:.3g})" if np.isfinite(found.width) else ""
            self.value = "" if found.value is None else f"value {found.value:.3g}{width}"
        best = tree.best
        facts = ["" if best is None else f"best {best.reward:.3g}", self.value]
        tokens = (tree.step.forward_tokens - self.tokens) / max(now - self.began, 1e-9)
        facts.append(f"{short(tokens)} tokens/s")
        self.progress.update(tree.rollouts - self.rollouts, *filter(None, facts))


def search(
    run: Path | str | Opened,
    prompts: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    checkpoint: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    out: Path | str | None = None,
    force: bool = False,
    **options: Any,
) -> Iterator[SearchRecord]:
    """A search after each prompt; `options` are those of `SearchOptions`. An interrupt gives what there is."""
    plan = plan_of(options_from(options))
    method = plan.method()
    if out is not None:
        if prompts is not None and len(prompts) != 1:
            raise BadInput("one tree is saved in one folder; give one prompt, or leave the folder out")
        refuse_existing(Path(out), force=force, layout=LAYOUT)
    source = source_of(run, checkpoint=checkpoint, device=device, precision=precision)
    with Searcher.open(source, plan) as searcher:
        given = searcher.read(prompts, names)
        _tell(plan, given)
        trees = _adaptive(searcher, given, method) if plan.options.adaptive else _each(searcher, given, method)
        for tree in trees:
            saved = None if out is None else Path(out)
            record = searcher.record(tree, saved)
            if saved is not None:
                used = {"checkpoint": checkpoint, "device": device, "precision": precision}
                save(tree, saved, record, _origin(source, plan, given[0], used), force=force)
            yield record
            if interrupted(tree):
                raise KeyboardInterrupt


def resume_search(
    folder: Path | str, run: Path | str | Opened | None = None, *, force: bool = True, **options: Any
) -> Iterator[SearchRecord]:
    """Go on with a saved tree, with the model, the method and the reward of its beginning, and save it again.

    `options` may give another budget, and settings that change neither the tree nor its target.
    """
    folder = Path(folder)
    saved = read_saved(folder)
    origin = saved.source
    refuse_changes(saved, options)
    rewards = {f"reward.{key}": value for key, value in origin.reward_settings.items()}
    limits = {key: value for key, value in (("least", origin.least), ("most", origin.most)) if value is not None}
    settings = [f"{key}={json.dumps(value)}" for key, value in (rewards | limits).items()]
    settings += [one for one in options.get("settings", ()) if parse_setting(one)[0] in FREE_SETTINGS]
    plan = plan_of(
        options_from({"reward": origin.reward, **options, "method": saved.method, "settings": settings})
    )
    if run is not None:
        source = source_of(run)
    else:
        source = source_of(
            origin.path, checkpoint=origin.checkpoint, device=origin.device, precision=origin.precision
        )
    with Searcher.open(source, plan) as searcher:
        prompt = Prompt("the prompt", origin.prompt, tuple(saved.root))
        method = as_saved(plan.method(), saved.method_settings, folder / SETTINGS)
        fresh = searcher.tree(prompt, method, saved.seed)
        step = source.step(
            prompt.text,
            as_saved(fresh.step.target, saved.target, folder / SETTINGS),
            plan.further.memory * MEGABYTE,
        )
        tree = restore(folder, saved, step, method, fresh.reward)
        searcher.extend(tree, plan.budget, "searching")
        record = searcher.record(tree, folder)
        save(tree, folder, record, origin, force=force)
        yield record
        if interrupted(tree):
            raise KeyboardInterrupt


def refuse_changes(saved: Saved, options: dict[str, Any]) -> None:
    """Options that would change a saved tree or its target; those of its beginning may be given again."""
    origin, usual = saved.source, {one.name: one.default for one in dataclasses.fields(SearchOptions)}
    began = {
        "reward": origin.reward,
        "method": saved.method,
        "seed": saved.seed,
        "adaptive": False,
        **saved.target,
    }
    for name, value in options.items():
        if (
            name in usual
            and name not in FREE
            and not callable(value)
            and value not in (usual[name], began.get(name))
        ):
            raise BadInput(f"{name} is {value}; a saved search goes on with its own, {began.get(name)}")
    limits = {"least": origin.least, "most": origin.most}
    rewards = {f"reward.{key}": value for key, value in origin.reward_settings.items()}
    own = saved.method_settings | saved.target | limits | rewards
    for key, value in map(parse_setting, options.get("settings", ())):
        if key not in FREE_SETTINGS and value != own.get(key) and str(value) != str(own.get(key)):
            raise BadInput(
                f"--set {key}={value}: a saved search goes on with its own settings, {key}={own.get(key)}"
            )


def options_from(given: dict[str, Any]) -> SearchOptions:
    """The options of a search by their names."""
    known = [one.name for one in dataclasses.fields(SearchOptions)]
    for name in given:
        refuse_unknown(name, known, "a search has no option")
    if "reward" not in given:
        raise BadInput("a search needs a reward: a name, module:function, or a function")
    return SearchOptions(**given)


def interrupted(tree: Tree) -> bool:
    return any(note.startswith("interrupted") for note in tree.notes)


def _origin(source: Source, plan: Plan, prompt: Prompt, used: dict[str, Any]) -> SavedSource:
    """Where a saved tree came from, to go on from it."""
    path = str(Path(source.path).resolve())
    least, most = plan.further.least, plan.further.most
    return SavedSource(path, prompt.text, plan.reward, plan.reward_settings, **used, least=least, most=most)


def _tell(plan: Plan, prompts: Sequence[Prompt]) -> None:
    if plan.options.remark is not None:
        for note in dict.fromkeys(note for prompt in prompts for note in prompt.notes):
            plan.options.remark(note)


def _each(searcher: Searcher, prompts: Sequence[Prompt], method: Method) -> Iterator[Tree]:
    for number, prompt in enumerate(prompts, 1):
        what = "searching" if len(prompts) == 1 else f"searching {number}/{len(prompts)}"
        yield searcher.extend(
            searcher.tree(prompt, method, searcher.plan.options.seed), searcher.plan.budget, what
        )


def _adaptive(searcher: Searcher, prompts: Sequence[Prompt], method: Method) -> Iterator[Tree]:
    """The rollouts of all prompts together: half of them evenly, then waves where the value is least certain."""
    budget, seed = searcher.plan.budget, searcher.plan.options.seed
    if budget.rollouts is None:
        raise BadInput("an adaptive search shares rollouts among prompts; give them (--rollouts)")
    trees = [searcher.tree(prompt, method, seed, shares=len(prompts)) for prompt in prompts]
    left = budget.rollouts * len(prompts)
    first = replace(budget, rollouts=max(1, budget.rollouts // FIRST))
    for number, tree in enumerate(trees, 1):
        searcher.extend(tree, first, f"searching {number}/{len(trees)}")
        left -= tree.rollouts
    going = dict(enumerate(trees))
    while left > 0 and going and not any(map(interrupted, trees)):
        number = max(going, key=lambda at: going[at].value.width)
        tree, before = trees[number], trees[number].rollouts
        searcher.extend(
            tree, replace(budget, rollouts=min(left, budget.wave)), f"prompt {number + 1}, least certain"
        )
        left -= tree.rollouts - before
        if tree.rollouts == before or not tree.value.width > 0:
            del going[number]
    yield from trees


def compare_searches(
    run: Path | str | Opened,
    prompts: Sequence[str] | None,
    methods: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    checkpoint: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    **options: Any,
) -> SearchComparisonRecord:
    """The same budget for each method, on the same prompts and seeds; leads are over the first method."""
    plan = plan_of(options_from(options))
    made = {name: plan.method(name, strict=False) for name in methods}
    if not made:
        raise BadInput("a comparison needs methods, such as best_of_n,maxent")
    used = {key for method in made.values() for key in asdict(method)}
    for key in plan.method_settings:
        refuse_unknown(key, used, "none of these methods has a setting")
    source = source_of(run, checkpoint=checkpoint, device=device, precision=precision)
    with Searcher.open(source, plan) as searcher:
        given = searcher.read(prompts, names)
        seeds = plan.further.repeats or (SEEDS if len(given) < FEW else 1)
        rows = {name: _measured(searcher, given, method, seeds, name) for name, method in made.items()}
    budget = {key: value for key, value in asdict(plan.budget).items() if value is not None}
    return SearchComparisonRecord(
        reward=plan.reward,
        budget=budget | {"max_tokens": plan.target(max(len(one.ids) for one in given), source.context).max_tokens},
        prompts=len(given),
        seeds=seeds,
        n=len(_units(next(iter(rows.values()))["reward_best"])),
        methods=tuple(_row(name, rows) for name in rows),
        notes=_notes(rows, "prompts and seeds" if len(given) < FEW else "prompts"),
    )


MEASURES = ("reward_best", "rollouts", "forward_tokens", "reward_calls", "seconds", "unseen")


def _measured(
    searcher: Searcher, prompts: Sequence[Prompt], method: Method, seeds: int, name: str
) -> dict[str, np.ndarray]:
    """What each prompt and seed gave, [prompts, seeds] a measure."""
    found = np.zeros((len(MEASURES), len(prompts), seeds))
    for row, prompt in enumerate(prompts):
        for seed in range(seeds):
            what = f"{name} {row * seeds + seed + 1}/{len(prompts) * seeds}"
            tree = searcher.tree(prompt, method, searcher.plan.options.seed + seed)
            searcher.extend(tree, searcher.plan.budget, what)
            if interrupted(tree):
                raise KeyboardInterrupt
            best = tree.best
            found[:, row, seed] = (
                np.nan if best is None else best.reward,
                tree.rollouts,
                tree.step.forward_tokens,
                tree.reward_calls,
                tree.seconds,
                tree.unseen,
            )
    return dict(zip(MEASURES, found, strict=True))


def _row(name: str, rows: dict[str, dict[str, np.ndarray]]) -> SearchedMethod:
    first = next(iter(rows))
    units = {key: _units(row["reward_best"]) for key, row in rows.items()}
    low, high = _interval(units[name])
    lead = units[name] - units[first]
    lead_low, lead_high = _interval(lead)
    alone = name == first
    means = {key: float(rows[name][key].mean()) for key in MEASURES}
    return SearchedMethod(
        method=name,
        low=low,
        high=high,
        lead=None if alone else float(lead.mean()),
        lead_low=None if alone else lead_low,
        lead_high=None if alone else lead_high,
        **means,
    )


def _notes(rows: dict[str, dict[str, np.ndarray]], units: str) -> tuple[str, ...]:
    """What the intervals are over, and which of them say nothing."""
    found = f"intervals and leads are over {units}"
    alike = [name for name, row in rows.items() if np.ptp(_units(row["reward_best"])) == 0]
    if not alike:
        return (found,)
    return (
        found,
        f"{', '.join(alike)}: all best rewards are equal, so an interval without width says nothing of others",
    )


def _units(values: np.ndarray) -> np.ndarray:
    """One number for each unit [n]: a prompt, or each of its seeds where there are few prompts."""
    return values.ravel() if len(values) < FEW else values.mean(1)


def _interval(values: np.ndarray) -> tuple[float, float]:
    return ratio_interval(values, np.ones(len(values)))
