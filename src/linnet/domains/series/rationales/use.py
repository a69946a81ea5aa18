"""Labels with a rationale, by sampled answers: facts that hold, and how many answers agree on the label."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.contract import Predictions
from linnet.domains.series.rationales.data import RationaleData, captioning, windowed
from linnet.domains.series.rationales.grammar import label_in
from linnet.domains.series.rationales.rewards import Rationale
from linnet.errors import BadInput
from linnet.progress import tracked
from linnet.records import Candidate, PredictionRecord
from linnet.search.budgets import Budget
from linnet.search.methods import named
from linnet.search.reward import Reward
from linnet.search.steps import Target
from linnet.search.tree import search
from linnet.workbench.open import load, options_of
from linnet.workbench.search_source import Source, source_of

TOKENS = 80  # of an answer at most
MEMORY = 1 << 28  # bytes of keys and values
DRAWS = 16


@dataclass(frozen=True)
class Sampled:
    """Independent answers about one window: their texts, labels (-1: none) and rewards, as often as drawn."""

    texts: tuple[str, ...]
    labels: np.ndarray  # int64 [n]
    rewards: np.ndarray  # float64 [n]
    classes: tuple[str, ...]

    def shares(self, lam: float = 0.0) -> np.ndarray:
        """float64 [K]: how many answers have each label; an answer counts as exp(lam reward)."""
        known = self.labels >= 0
        weights = np.exp(lam * (self.rewards[known] - 1))
        found = np.bincount(self.labels[known], weights, len(self.classes))
        return np.asarray(found / found.sum() if found.sum() else np.full(len(found), 1 / len(found)))

    @property
    def best(self) -> int:
        """The answer with the largest sum of its facts that hold and of the share of answers that agree."""
        agreed = np.where(self.labels >= 0, self.shares()[self.labels], 0.0)
        return int((self.rewards + agreed).argmax())


def sampled(
    source: Source, classes: tuple[str, ...], prompt: str, draws: int, seed: int, name: str = "the window"
) -> Sampled:
    """So many draws from the model after a window."""
    ids = source.read(prompt, name).ids
    step = source.step(prompt, Target(min(TOKENS, source.context - len(ids))), MEMORY)
    reward = Reward(Rationale(), most=1.0, least=0.0, name="rationale")
    budget = Budget(rollouts=draws, wave=draws)
    tree = search(ids, step, method=named("best_of_n"), reward=reward, budget=budget, rng=seed)
    leaves = [tree.leaf(node) for node in tree.draws["leaf"].tolist()]
    labels = [label_in(leaf.text, classes) for leaf in leaves]
    return Sampled(
        tuple(leaf.text for leaf in leaves),
        np.array([-1 if label is None else classes.index(label) for label in labels]),
        np.array([leaf.reward for leaf in leaves]),
        classes,
    )


def predict(
    path: Path | str, file: Path, *, k: int = 10, settings: Sequence[str] = (), **options: Any
) -> Predictions:
    """The label of each window with its best rationale. `settings` may hold draws and seed."""
    chosen = options_of(list(settings), draws=DRAWS, seed=1)
    opened = load(path, **{"precision": "float32", **options})
    data = opened.run.data
    if not isinstance(data, RationaleData):
        raise BadInput(f"{path} is no run on activities with a rationale")
    prompts, classes = data.prompts(file), windowed(captioning(opened.codec)).classes
    source, began, records = source_of(opened), time.perf_counter(), []
    for name, text in tracked(prompts.items(), "explaining windows", len(prompts)):
        found = sampled(source, classes, text, chosen["draws"], chosen["seed"], f"window {name}")
        shares = found.shares()
        order = np.argsort(-shares, kind="stable")[:k]
        candidates = tuple(Candidate(value=classes[at], probability=float(shares[at])) for at in order)
        records.append(PredictionRecord(id=name, candidates=candidates, text=found.texts[found.best]))
    return Predictions(tuple(records), (), time.perf_counter() - began, chosen["draws"])
