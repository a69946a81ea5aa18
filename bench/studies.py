"""Studies: findings of others repeated on models trained here, each by one command that ends in a page.

    linnet bench study carry --out carry-runs
    python -m bench.studies brackets --out bracket-runs --seeds 5

A study trains the runs that are missing in its folder, goes on with those that were stopped, measures those that
were not measured, and writes `NAME.md` with its pictures beside them. A copy of each page is in docs/studies.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from linnet import workbench
from linnet.errors import BadInput, nearest
from linnet.files import write_atomically
from linnet.records import AnalysisRecord

NAMES = ("brackets", "carry", "modular")

Found = Mapping[tuple[str, int], Mapping[str, Any]]  # what was measured, by the name of a setting and a seed


@dataclass(frozen=True)
class Trial:
    """One run of a study, and how it is measured."""

    name: str
    seed: int
    recipe: str
    settings: tuple[str, ...]
    measure: Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """Where a study keeps its runs."""

    out: Path

    def find(self, trial: Trial) -> Mapping[str, Any]:
        """What a trial measures, trained first where it was not; kept as JSON until the run is trained further.

        A run that was measured may be removed. One of other settings is refused: a page is about one kind of run.
        """
        folder = self.out / f"{trial.name.replace(' ', '-')}-seed{trial.seed}"
        kept = folder.with_name(f"{folder.name}.json")
        known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
        if known and known.get("settings") != list(trial.settings):
            raise BadInput(
                f"{kept} was measured with other settings; name another folder, or remove it and its run"
            )
        if known and not folder.exists():
            return known
        if (folder / "run.toml").is_file():
            workbench.resume(folder)
        else:
            workbench.train(trial.recipe, out=folder, seed=trial.seed, settings=["threads=1", *trial.settings])
        record = hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
        if known.get("record") != record:
            facts = {"settings": trial.settings, "record": record}
            known = json.loads(json.dumps({**trial.measure(folder), **facts}))
            write_atomically(kept, json.dumps(known, indent=1).encode())
        return known

    def find_all(self, trials: Sequence[Trial], jobs: int) -> Found:
        """What all trials measure; so many run at once, each in a process with one thread."""
        if jobs == 1:
            found = [self.find(trial) for trial in trials]
        else:
            with ProcessPoolExecutor(jobs, get_context("spawn")) as processes:
                found = list(processes.map(self.find, trials))
        return {(trial.name, trial.seed): one for trial, one in zip(trials, found, strict=True)}


@dataclass(frozen=True)
class Page:
    """What a study ends in: text in Markdown, and pictures by their names."""

    text: str
    pictures: Mapping[str, AnalysisRecord]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (headings, ["---"] * len(headings), *rows)]
    return "\n".join(lines) + "\n"


def write(study: Study, name: str, page: Page) -> list[Path]:
    """The page and its pictures."""
    from linnet.figures import save

    paths = [study.out / f"{name}.md"]
    write_atomically(paths[0], page.text.encode())
    for picture, record in page.pictures.items():
        paths.append(study.out / f"{name}-{picture}.svg")
        save(record, paths[-1])
    return paths


def study(name: str, out: Path, seeds: int = 5, quick: bool = False, jobs: int = 1) -> list[Path]:
    """Do a study, and say what it wrote."""
    if name not in NAMES:
        raise BadInput(f'there is no study "{name}"{nearest(name, NAMES)}; there is {", ".join(NAMES)}')
    module, chosen = importlib.import_module(f"bench.study_{name}"), Study(out)
    trials: Callable[[int, bool], list[Trial]] = module.trials
    page: Callable[[Found], Page] = module.page
    return write(chosen, name, page(chosen.find_all(trials(seeds, quick), jobs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few steps: whether it works, not a result")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    print(*study(args.name, args.out, args.seeds, args.quick, args.jobs), sep="\n")


if __name__ == "__main__":
    main()
