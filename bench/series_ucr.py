"""Sets of the UCR and UEA archives over resamples: ours beside those of aeon, neighbours, and published means.

    python -m bench.series_ucr --data DIR --out DIR [--sets GunPoint,ArrowHead] [--resamples 10]
                              [--peers MiniRocket,MultiRocket-Hydra] [--set KEY=VALUE]

Resample 0 is the official split; the others draw as many training cases of each class from all cases. A result is
kept in --out for each resample. Published means are those of 30 resamples in the archive's result store.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.series_labels import OURS, Found, digest, fitted, kept, rocket, rockets
from linnet.domains.series.data import SeriesData
from linnet.domains.series.labelling import label_codec
from linnet.domains.series.labels import labelled_windows
from linnet.domains.series.neighbours import NearestNeighbour
from linnet.domains.series.sources import Reading, read_table
from linnet.domains.series.tables import SeriesTable
from linnet.intervals import Bootstrap
from linnet.machine import one_line
from linnet.workbench.train import prepare

SETS = ("GunPoint", "ArrowHead", "ItalyPowerDemand", "BasicMotions")
PUBLISHED = {
    "GunPoint": {"MiniRocket": 0.992, "LITETime": 0.994, "InceptionTime": 0.995, "1-NN DTW": 0.876},
    "ArrowHead": {"MiniRocket": 0.883, "LITETime": 0.888, "InceptionTime": 0.880, "1-NN DTW": 0.722},
    "ItalyPowerDemand": {"MiniRocket": 0.960, "LITETime": 0.960, "InceptionTime": 0.960, "1-NN DTW": 0.922},
    "BasicMotions": {"InceptionTime": 1.000, "1-NN DTW": 0.975},
}


def file_of(data: Path, name: str, part: str) -> Path:
    """The `.ts` file where there is one, else the table."""
    found = [data / f"{name}_{part}{ending}" for ending in (".ts", ".csv")]
    return next(path for path in found if path.is_file())


def whole(data: Path, name: str) -> tuple[SeriesTable, int]:
    """All cases of a set, and how many of them, at the beginning, are the official training part."""
    train, test = (read_table([file_of(data, name, part)], Reading(labelled=True)) for part in ("TRAIN", "TEST"))
    assert train.labels is not None and test.labels is not None
    joined = SeriesTable(
        np.concatenate([train.values, test.values]),
        np.concatenate([train.starts, train.starts[-1] + test.starts[1:]]),
        tuple(f"{part}-{name}" for part, table in (("train", train), ("test", test)) for name in table.names),
        train.channels,
        (*train.where, *test.where),
        ("",) * (len(train) + len(test)),
        np.concatenate([train.labels.astype(str), test.labels.astype(str)]),
    )
    return joined, len(train)


def resampled(table: SeriesTable, train: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Cases of the training and of the test part; each class keeps its number of training cases."""
    everything = np.arange(len(table))
    if number == 0:
        return everything[:train], everything[train:]
    assert table.labels is not None
    classes = table.labels[table.starts[:-1]]
    rng, chosen = np.random.default_rng(number), []
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        chosen.append(members[: int((classes[:train] == label).sum())])
    inside = np.sort(np.concatenate(chosen))
    return inside, np.setdiff1d(everything, inside)


def systems_of(
    tables: tuple[SeriesTable, SeriesTable], number: int, stem: str, settings: tuple[str, ...], peers: str
) -> tuple[dict[str, Found], np.ndarray]:
    """Every system on one resample, and the true classes of its test part."""
    run = prepare("classify", settings=settings)
    assert isinstance(run.data, SeriesData)
    codec = label_codec(run.data, tables[0])
    train, test = (labelled_windows(part, codec, 0) for part in tables)
    cases, others = (one.values(one.first, one.count).transpose(0, 2, 1) for one in (train, test))
    count = len(codec.classes)
    mine = Path(f"{stem}-ours-{digest(run.model_dump_json())}.npz")
    found = {OURS: kept(mine, lambda: fitted("classify", settings, tables, number + 1))}
    for peer in rockets(peers):
        theirs = Path(f"{stem}-{peer.lower()}.npz")
        found[peer] = kept(theirs, functools.partial(rocket, peer, cases, train.truth, others, count, number))
    nearest = NearestNeighbour().fit(cases, train.truth, count)
    return found | {"1-NN Euclid": Found(nearest.probabilities(others), 0.0)}, test.truth


def accuracies(name: str, arguments: argparse.Namespace) -> tuple[dict[str, list[float]], list[Found]]:
    """Accuracy of each system on each resample, and our fits."""
    table, count = whole(arguments.data, name)
    found: dict[str, list[float]] = {}
    fits = []
    for number in range(arguments.resamples):
        parts = resampled(table, count, number)
        tables = table.select(parts[0]), table.select(parts[1])
        stem = str(arguments.out / f"{name}-{number}")
        systems, truth = systems_of(tables, number, stem, tuple(arguments.set), arguments.peers)
        fits.append(systems[OURS])
        for system, one in systems.items():
            found.setdefault(system, []).append(float((one.probabilities.argmax(1) == truth).mean()))
        print(f"{name} {number}: " + ", ".join(f"{s} {a[-1]:.3f}" for s, a in found.items()), flush=True)
    return found, fits


def row(name: str, found: dict[str, list[float]], fits: Sequence[Found]) -> str:
    """Means over resamples, with a paired interval of the difference from MiniRocket."""
    ours = np.array(found[OURS])
    apart = ""
    if "MiniRocket" in found and len(ours) > 1:
        draws, gap = Bootstrap.draw(len(ours)), ours - np.array(found["MiniRocket"])
        low, high = draws.interval(lambda weights: weights @ gap / len(gap))
        apart = f"{gap.mean():+.3f} ({low:+.3f} .. {high:+.3f})"
    means = {system: f"{np.mean(values):.3f}" for system, values in found.items()}
    spread = f"{ours.mean():.3f} ({ours.min():.3f} .. {ours.max():.3f})"
    published = ", ".join(f"{system} {value:.3f}" for system, value in PUBLISHED[name].items())
    cells = [name, f"{fits[0].parameters:,}", f"{np.mean([fit.seconds for fit in fits]):.0f}", spread,
             means.get("MiniRocket", "not run"), apart, means.get("MultiRocket-Hydra", "not run"),
             means["1-NN Euclid"], published]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--resamples", type=int, default=10)
    parser.add_argument("--peers", default="MiniRocket", help="of aeon: MiniRocket,MultiRocket-Hydra")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [row(name, *accuracies(name, arguments)) for name in arguments.sets.split(",")]
    print(f"\n{arguments.resamples} resamples, {one_line()}\n")
    print("| set | parameters | CPU seconds a fit | ours (least .. most) | MiniRocket | ours minus it "
          "| MultiRocket-Hydra | 1-NN Euclid | published means |")  # fmt: skip
    print("|---" * 9 + "|")
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
