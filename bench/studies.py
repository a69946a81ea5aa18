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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet import workbench
from linnet.errors import BadInput, nearest
from linnet.files import write_atomically
from linnet.records import AnalysisRecord, RunRecord

NAMES = ("brackets", "carry", "modular")


@dataclass(frozen=True)
class Study:
    """Where a study keeps its runs, and how many seeds it trains."""

    out: Path
    seeds: int = 5
    quick: bool = False  # a few steps: whether everything fits together, not a result

    def run(self, name: str, recipe: str, seed: int, settings: Sequence[str], quick: Sequence[str] = ()) -> Path:
        """A trained run of this name and seed."""
        folder = self.out / f"{name}-seed{seed}"
        if (folder / "run.toml").is_file():
            workbench.resume(folder)
        else:
            changed = [*settings, *(quick if self.quick else ())]
            workbench.train(recipe, out=folder, seed=seed, settings=["threads=1", *changed])
        return folder

    def measured(self, path: Path, measure: Callable[[Path], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What `measure` finds in a run, as JSON; kept beside the run until that is trained further."""
        record = hashlib.sha256((path / "record.json").read_bytes()).hexdigest()
        kept = path.with_name(f"{path.name}.json")
        if kept.is_file():
            known: dict[str, Any] = json.loads(kept.read_text())
            if known["record"] == record:
                return known
        found = json.loads(json.dumps({**measure(path), "record": record}))
        write_atomically(kept, json.dumps(found, indent=1).encode())
        return dict(found)


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


def study(name: str, out: Path, seeds: int = 5, quick: bool = False) -> list[Path]:
    """Do a study, and say what it wrote."""
    if name not in NAMES:
        raise BadInput(f'there is no study "{name}"{nearest(name, NAMES)}; there is {", ".join(NAMES)}')
    chosen = Study(out, seeds, quick)
    module = importlib.import_module(f"bench.study_{name}")
    made: Callable[[Study], Page] = module.page
    return write(chosen, name, made(chosen))


def score(record: RunRecord, name: str) -> float:
    return next(one.value for one in record.scores if one.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    print(*study(args.name, args.out, args.seeds, args.quick), sep="\n")


if __name__ == "__main__":
    main()
