"""Activities from a phone and from a watch: ours beside aeon, neighbours and a forest, in folds by person.

    python -m bench.series_activity --data DIR --out DIR [--device phone --device watch] [--folds 5] [--seed 1]
                                    [--peers MiniRocket,MultiRocket-Hydra] [--set KEY=VALUE] [--trees 300]

DIR has tables with the columns subject, device, recording, t_ms, channels and label. Windows have 256 steps,
begin every 128, and have the label of most of their steps. Nothing of a person is on both sides of a fold.
Intervals are over persons. Results of each fold are kept in --out. Without aeon its rows are left out.

Every recording follows one script, so a model that sees the neighbours of a window can learn the script. What that
gives is shown apart: the windows' probabilities smoothed along each recording by a chain learned from the training
persons, and the same smoothing with the windows of each recording in random order as a control.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.series_labels import OURS, Found, digest, fitted, has_aeon, kept, rocket, rockets, rows
from linnet.domains.series.data import SeriesData
from linnet.domains.series.forest import Forest
from linnet.domains.series.labelling import label_codec
from linnet.domains.series.labels import LabelRows, labelled_windows
from linnet.domains.series.neighbours import Classifier, Majority, NearestNeighbour
from linnet.domains.series.tables import SeriesTable
from linnet.machine import one_line
from linnet.workbench.train import prepare

RECIPE = "activity"


@dataclass(frozen=True)
class Fold:
    """Tables of the persons that are learned from and of the others, and windows of both."""

    number: int
    tables: tuple[SeriesTable, SeriesTable]
    train: LabelRows
    test: LabelRows


def files_of(data: Path) -> list[Path]:
    return sorted(file for file in data.iterdir() if file.name.startswith("s") and file.name[1:3].isdigit())


def folds(data: SeriesData, files: Sequence[Path], count: int) -> list[Fold]:
    """Persons dealt out in the order of their names."""
    table = data.table(files)
    codec = label_codec(data, table)
    people = sorted(set(table.groups))
    found = []
    for number in range(count):
        held = set(people[number::count])
        inside = np.array([group in held for group in table.groups])
        parts = table.select(np.flatnonzero(~inside)), table.select(np.flatnonzero(inside))
        train, test = (labelled_windows(part, codec, data.labels.step) for part in parts)
        found.append(Fold(number, parts, train, test))
    return found


def cases(windows: LabelRows) -> np.ndarray:
    """[n, C, T] as the sensor gives them."""
    return windows.values(windows.first, windows.count).transpose(0, 2, 1)


def rivals(trees: int) -> Mapping[str, Classifier]:
    return {"majority": Majority(), "nearest neighbour": NearestNeighbour(), f"forest of {trees}": Forest(trees)}


def rule(method: Classifier, fold: Fold, cases: tuple[np.ndarray, np.ndarray]) -> Found:
    began = time.process_time()
    found = method.fit(cases[0], fold.train.truth, len(fold.test.codec.classes)).probabilities(cases[1])
    return Found(found, time.process_time() - began)


def systems_of(fold: Fold, arguments: argparse.Namespace, device: str) -> dict[str, Found]:
    """Every system on one fold."""
    mine = ("data.where='device=" + device + "'", *arguments.set)
    name = digest(prepare(RECIPE, settings=mine).model_dump_json(), arguments.seed, fold.tables[0].fingerprint())
    found = {
        OURS: kept(
            arguments.out / f"{device}-{fold.number}-ours-{name}.npz",
            lambda: fitted(RECIPE, mine, fold.tables, arguments.seed),
        )
    }
    count = len(fold.test.codec.classes)
    train, test = cases(fold.train), cases(fold.test)
    spread = np.nanstd(train, (0, 2), keepdims=True)
    train, test = train / spread, test / spread
    for peer in rockets(arguments.peers):
        found[peer] = kept(
            arguments.out / f"{device}-{fold.number}-{peer.lower()}.npz",
            functools.partial(rocket, peer, train, fold.train.truth, test, count),
        )
    for name, method in rivals(arguments.trees).items():
        found[name] = kept(
            arguments.out / f"{device}-{fold.number}-{name.replace(' ', '-')}.npz",
            lambda method=method: rule(method, fold, (train, test)),  # type: ignore[misc]
        )
    return found


def along(found: Found, fold: Fold, seed: int | None) -> Found:
    """Probabilities given all windows of a recording, by a chain of classes; a seed puts them in random order."""
    count = found.probabilities.shape[1]
    moves, first = np.ones((2, count, count)), np.ones(count)
    moves = moves[0]
    for series in np.unique(fold.train.series):
        classes = fold.train.truth[fold.train.series == series]
        first[classes[0]] += 1
        np.add.at(moves, (classes[:-1], classes[1:]), 1)
    moves, first = moves / moves.sum(1, keepdims=True), first / first.sum()
    shares = np.bincount(fold.train.truth, minlength=count) + 1.0
    evidence = found.probabilities / (shares / shares.sum())
    smooth = np.empty_like(evidence)
    rng = np.random.default_rng(seed)
    for series in np.unique(fold.test.series):
        members = np.flatnonzero(fold.test.series == series)
        if seed is not None:
            members = rng.permutation(members)
        smooth[members] = forward_backward(evidence[members], moves, first)
    return replace(found, probabilities=smooth)


def forward_backward(evidence: np.ndarray, moves: np.ndarray, first: np.ndarray) -> np.ndarray:
    """[n, K]: probabilities of the classes of a chain, given all of its evidence."""
    ahead, back = np.empty_like(evidence), np.ones_like(evidence)
    now = first
    for step, seen in enumerate(evidence):
        now = (now @ moves if step else first) * seen
        now = now / now.sum()
        ahead[step] = now
    for step in range(len(evidence) - 2, -1, -1):
        back[step] = moves @ (evidence[step + 1] * back[step + 1])
        back[step] /= back[step].sum()
    both = ahead * back
    return np.asarray(both / both.sum(1, keepdims=True))


def joined(parts: Sequence[Found]) -> Found:
    """All folds end to end; seconds are those of a fold."""
    probabilities = np.concatenate([part.probabilities for part in parts])
    return Found(probabilities, float(np.mean([part.seconds for part in parts])), parts[0].parameters)


def report(device: str, arguments: argparse.Namespace) -> None:
    run = prepare(RECIPE, data=[arguments.data], settings=[f"data.where='device={device}'", *arguments.set])
    assert isinstance(run.data, SeriesData)
    every = folds(run.data, files_of(arguments.data), arguments.folds)
    found = [systems_of(fold, arguments, device) for fold in every]
    names = [name for name in found[0] if all(name in one for one in found)]
    systems = {name: joined([one[name] for one in found]) for name in names}
    ours = [one[OURS] for one in found]
    context = {
        "whole recording": joined([along(one, fold, None) for one, fold in zip(ours, every, strict=True)]),
        "whole recording, shuffled": joined([along(one, fold, 0) for one, fold in zip(ours, every, strict=True)]),
    }
    truth = np.concatenate([fold.test.truth for fold in every])
    people = np.concatenate([fold.test.groups.astype(str) for fold in every])
    _, units = np.unique(people, return_inverse=True)
    print(f"\n{device}: {len(truth)} windows of {units.max() + 1} persons, {one_line()}\n")
    for line in rows(systems | context, truth, units.ravel()):
        print(line)
    if not has_aeon():
        print(f"\n{arguments.peers}: aeon is not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--peers", default="MiniRocket", help="of aeon: MiniRocket,MultiRocket-Hydra")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for device in arguments.device or ("phone", "watch"):
        report(device, arguments)


if __name__ == "__main__":
    main()
