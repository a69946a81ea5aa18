"""Activities with a rationale: a label alone, after a greedy rationale, and after sampled and searched ones.

    python -m bench.activity_rationale --data DIR --out DIR [--device phone] [--folds 5] [--only 0 --only 1]
                                       [--draws 16] [--seed 1] [--set KEY=VALUE] [--direct KEY=VALUE]

DIR is that of `bench.series_activity`: the same windows, folds by person, direct classifier and rivals.
One decoder is trained on each fold. `label alone` is what it says without a rationale. Each of its answers about a
window is a draw; `most answers` is the label of most, `facts and agreement` that of the answer whose facts hold
best and that most others agree with, `answers by facts` weighs each answer by exp(4 facts), and `facts by rule` is
the label after true facts, which no search on facts can improve. Intervals are over persons. Results of each fold
are kept in --out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.series_activity import Fold, files_of, folds, joined, systems_of
from bench.series_labels import Found, digest, kept, rows
from linnet.domains.series.captions.data import captioning
from linnet.domains.series.captions.writing import greedy
from linnet.domains.series.data import SeriesData
from linnet.domains.series.rationales.data import RationaleData, complete, label_probabilities, window_text
from linnet.domains.series.rationales.facts import measure
from linnet.domains.series.rationales.grammar import ANSWER, rationale
from linnet.domains.series.rationales.scores import counted, one_hot
from linnet.domains.series.rationales.use import Sampled, sampled
from linnet.domains.tokens import decoder
from linnet.machine import one_line
from linnet.model.contract import parameter_count
from linnet.training.checkpoint import RunFolder
from linnet.training.resolve import settle
from linnet.workbench.open import Opened
from linnet.workbench.prepare import prepare
from linnet.workbench.search_source import source_of
from linnet.workbench.train import train_in_memory

RECIPE = "activity-rationale"
LAM = 4.0
MOST = 4  # facts that are given
NAMES = (
    "label alone",
    "greedy rationale",
    "most answers",
    "facts and agreement",
    "answers by facts",
    "facts by rule",
)


def trained(fold: Fold, settings: Sequence[str], seed: int) -> tuple[Opened, float]:
    """The decoder of one fold, and its processor seconds."""
    run = settle(prepare(RECIPE, settings=settings, seed=seed))
    assert isinstance(run.data, RationaleData)
    began = time.process_time()
    material = run.data.material(fold.tables[0], run.seed)
    run, network = train_in_memory(run, material)
    folder = RunFolder(Path())
    opened = Opened(folder, run, material.codec, network, 0, contextlib.nullcontext)
    return opened, time.process_time() - began


def explained(fold: Fold, settings: Sequence[str], seed: int, draws: int) -> dict[str, Found]:
    """Every way in which the decoder of a fold names the windows of the others."""
    opened, seconds = trained(fold, settings, seed)
    windows, codec = list(complete(fold.test)), captioning(opened.codec)
    model, classes = decoder(opened.network), fold.test.codec.classes
    texts = greedy(model, codec, windows)
    source = source_of(opened)
    answers = [sampled(source, classes, window_text(window), draws, seed) for window in windows]
    best = [one.texts[one.best] for one in answers]
    for name, written in {"greedy": texts, "searched": best}.items():
        print(f"fold {fold.number}, {name}: {facts(written, windows)}; such as: {written[0]}", flush=True)
    print(f"fold {fold.number}: {agreement(answers, fold.test.truth)}", flush=True)
    named = functools.partial(label_probabilities, model, codec, windows, batch=64, region=contextlib.nullcontext)
    random = np.random.default_rng(seed)
    found = (
        named(),
        one_hot(texts, fold.test.truth, classes),
        np.stack([one.shares() for one in answers]),
        one_hot(best, fold.test.truth, classes),
        np.stack([one.shares(LAM) for one in answers]),
        named(before=[rationale(measure(window), "", random, MOST).partition(ANSWER)[0] for window in windows]),
    )
    parameters = parameter_count(opened.network)
    return {name: Found(one, seconds, parameters) for name, one in zip(NAMES, found, strict=True)}


def facts(texts: Sequence[str], windows: Sequence[np.ndarray]) -> str:
    """Facts that hold of those that can be decided, and how many a text has."""
    counts = np.array([counted(text, measure(window)) for text, window in zip(texts, windows, strict=True)])
    true, decided, n = counts.sum(0)
    return f"{true / max(1, decided):.3f} of {decided / n:.2f} facts hold"


def agreement(answers: Sequence[Sampled], truth: np.ndarray) -> str:
    """What a search could gain: whether any answer is right, and the rewards of right and wrong ones."""
    right = [one.labels == label for one, label in zip(answers, truth, strict=True)]
    rewards = [one.rewards for one in answers]
    mixed = [row for row, one in enumerate(right) if one.any() and not one.all()]
    apart = [rewards[row][right[row]].mean() - rewards[row][~right[row]].mean() for row in mixed]
    gap, half = (np.mean(apart), 1.96 * np.std(apart) / np.sqrt(len(apart))) if apart else (0.0, 0.0)
    return (
        f"some answer is right in {np.mean([one.any() for one in right]):.3f} of windows; where answers differ "
        f"({len(mixed)} windows), facts of right ones are rewarded by {gap:+.3f} +- {half:.3f} more"
    )


def systems(fold: Fold, arguments: argparse.Namespace, device: str) -> Mapping[str, Found]:
    settings = (f"data.where='device={device}'", *arguments.set)
    run = prepare(RECIPE, settings=settings)
    name = digest(run.model_dump_json(), arguments.seed, arguments.draws, fold.tables[0].fingerprint())
    make = functools.cache(lambda: explained(fold, settings, arguments.seed, arguments.draws))
    mine = {}
    for one in NAMES:
        file = arguments.out / f"{device}-{fold.number}-{one.replace(' ', '-')}-{name}.npz"
        mine[one] = kept(file, functools.partial(lambda key: make()[key], one))
    direct = argparse.Namespace(**{**vars(arguments), "set": arguments.direct})
    return mine | {f"direct: {key}": one for key, one in systems_of(fold, direct, device).items()}


def report(device: str, arguments: argparse.Namespace) -> None:
    run = prepare("activity", settings=[f"data.where='device={device}'"])
    assert isinstance(run.data, SeriesData)
    every = folds(run.data, files_of(arguments.data), arguments.folds)
    chosen = [every[number] for number in arguments.only or range(len(every))]
    found = [systems(fold, arguments, device) for fold in chosen]
    truth = np.concatenate([fold.test.truth for fold in chosen])
    people = np.concatenate([fold.test.groups.astype(str) for fold in chosen])
    _, units = np.unique(people, return_inverse=True)
    print(f"\n{device}: {len(truth)} windows of {units.max() + 1} persons, {one_line()}\n")
    named = {name: joined([one[name] for one in found]) for name in found[0] if all(name in one for one in found)}
    first = {"facts and agreement": named.pop("facts and agreement")}
    for line in rows(first | named, truth, units.ravel()):
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, action="append", default=[], help="a fold; all of them unless given")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--direct", action="append", default=[], metavar="KEY=VALUE", help="of the recipe activity"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for device in arguments.device or ("phone", "watch"):
        report(device, arguments)


if __name__ == "__main__":
    main()
