"""The places table: runs of several seeds beside every rule and the boosted ranker, on one split, test read once.

    python -m bench.places_geolife --data visits.csv --runs DIR --seeds 5 [--ranker 3] [--split test] > table.md

Runs are trained where DIR has none, as DIR/RECIPE-SEED, and found there again; the scorer answers twice, with
the same information and with the full past. `--split validation` is what choices are made on; `--split test` is
for the report at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.places import visit_rows
from linnet import workbench
from linnet.domains.places.answers import (
    Answers,
    answers,
    cell_tables,
    first_visits,
    legacy_ranking,
    ranker_tables,
    rules,
    truths,
)
from linnet.domains.places.counters import BASELINES, MostFrequent
from linnet.domains.places.data import PlacesData
from linnet.domains.places.features import VisitRows
from linnet.domains.places.scores import Ranked, Resampled, measures, paired, vocabularies
from linnet.domains.places.visits import PARTS

RECIPES = {
    "scorer": ("places", "same"), "scorer, full past": ("places", "full"),
    "GRU + copy": ("places-gru", "same"), "Transformer + copy": ("places-transformer", "same"),
}  # fmt: skip
MEAN = "scorers of all seeds together"
COLUMNS = ("legacy.acc@1", "legacy.acc@5", "legacy.acc@10", "legacy.mrr", "legacy.ndcg@10", "strict.acc@1",
           "open.acc@1", "open.acc@5", "open.acc@10", "open.mrr")  # fmt: skip


@dataclass(frozen=True)
class System:
    """One seed of a system: its ranks by vocabulary."""

    name: str
    seed: int
    tables: dict[str, Ranked]
    parameters: int


def value(system: System, column: str) -> float:
    table, measure = column.split(".", 1)
    if table not in system.tables:
        return float("nan")
    return 100 * float(measures(system.tables[table])[measure].mean())


def trained(arguments: argparse.Namespace, recipe: str, seed: int) -> Path:
    """The run of this seed, trained if it is not there."""
    path = arguments.runs / f"{recipe}-{seed}"
    if not (path / "record.json").is_file():
        options = [f"data.local='{arguments.local}'", f"threads={arguments.threads}"]
        options += arguments.set if recipe == "places" else []
        began = time.perf_counter()
        if (path / "run.toml").is_file():
            workbench.resume(path)
        else:
            workbench.train(recipe, out=path, data=[arguments.data], seed=seed, settings=options)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return path


def averaged(found: list[Answers], rows: VisitRows) -> dict[str, Ranked]:
    """What the scorers of all seeds name together: the mean of their probabilities over the same candidates."""
    truth, ids = truths(rows)
    rankings = [one.ranking for one in found if one.ranking is not None]
    assert all(np.array_equal(one.label, rankings[0].label) for one in rankings)
    mean = replace(rankings[0], score=np.mean([one.score for one in rankings], 0))
    fresh = np.mean([one.fresh for one in found if one.fresh is not None], 0)
    return vocabularies(mean, truth, ids, legacy_ranking(mean, fresh, ids)) | cell_tables(rows, mean, truth)


def networks(arguments: argparse.Namespace) -> list[System]:
    found: list[System] = []
    for name in arguments.systems:
        recipe, information = RECIPES[name]
        named = []
        for seed in range(1, arguments.seeds + 1):
            opened = workbench.load(trained(arguments, recipe, seed))
            domain = opened.run.data
            assert isinstance(domain, PlacesData)
            informed = domain.model_copy(update={"information": information})
            rows = visit_rows(informed.read(opened.codec, [arguments.data], arguments.split))
            for kind in ("none", "hard", "soft") if recipe != "places" else ("",):
                one = answers(opened.network, rows, 256, opened.region, kind)
                label = name if kind in ("", "none") else f"{name}, {kind} filter"
                count = sum(parameter.numel() for parameter in opened.network.parameters())
                found.append(System(label, seed, one.tables, count))
            named += [one] if one.ranking is not None else []
        if len(named) > 1:
            label = name.replace("scorer", MEAN)
            found.append(System(label, 1, averaged(named, rows), count * len(named)))
    return found


def counted(arguments: argparse.Namespace, information: str) -> list[System]:
    """Rules and rankers with this information."""
    data = PlacesData(paths=(str(arguments.data),), local=arguments.local, information=information)
    table, material = data.table(), data.load(0)
    rows = visit_rows(data.read(material.codec, [arguments.data], arguments.split))
    suffix = ", full past" if information == "full" else ""
    found = [System(name + suffix, 1, tables, 0) for name, tables in rules(rows).items()]
    visits, ids = table.visits, rows.codec.place_ids(table.visits.places)
    if not suffix:
        first, truth = MostFrequent("first"), visits.place[rows.samples.target].astype(np.int64)
        tables = vocabularies(
            first.rank(visits, rows.samples, visits.place.astype(np.int64)), truth, ids,
            first.rank(visits, rows.samples, ids[visits.place]),
        )  # fmt: skip
        found.append(System("most frequent, ties to the first", 1, tables, 0))
    for seed in range(arguments.ranker):
        for name, ranked in ranker_tables(data, table, rows, seed).items():
            found.append(System(name + suffix, seed + 1, dict(ranked), 0))
    return found


def print_table(systems: list[System]) -> None:
    """Mean and range over seeds."""
    print("| system | parameters | seeds | " + " | ".join(COLUMNS) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for name in dict.fromkeys(system.name for system in systems):
        seeds = [system for system in systems if system.name == name]
        cells = []
        for column in COLUMNS:
            values = [value(system, column) for system in seeds]
            spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
            cells.append("-" if np.isnan(values[0]) else f"{np.mean(values):.2f}{spread}")
        print(f"| {name} | {seeds[0].parameters:,} | {len(seeds)} | " + " | ".join(cells) + " |")


def hits(systems: list[System], name: str, table: str) -> np.ndarray | None:
    """[n]: the share of the seeds that were right."""
    found = [measures(s.tables[table])["acc@1"] for s in systems if s.name == name and table in s.tables]
    return np.mean(found, 0) if found else None


def print_tests(systems: list[System], user: np.ndarray, ours: str, theirs: list[str]) -> None:
    """Paired differences in acc@1, with intervals over users."""
    draws = Resampled.draw(user)
    for table in ("legacy", "strict", "open"):
        mine = hits(systems, ours, table)
        for name in theirs:
            other = hits(systems, name, table)
            if mine is not None and other is not None:
                d = paired(mine, other, draws)
                between = f"({100 * d.low:+.2f} to {100 * d.high:+.2f})"
                print(f"- {table}: {ours} minus {name}: {100 * d.value:+.2f} {between}, "
                      f"p = {d.p:.3f}, n = {len(mine)}")  # fmt: skip


def print_first_visits(systems: list[System], rows: VisitRows) -> None:
    """The right cell of level 13 among ten, on first visits, beside the most popular cells."""
    fresh = first_visits(rows)
    for name in dict.fromkeys(system.name for system in systems):
        found = [s.tables["cell13"] for s in systems if s.name == name and "cell13" in s.tables]
        if found:
            shares = [100 * measures(table)["acc@10"][fresh].mean() for table in found]
            print(
                f"- {name}: {np.mean(shares):.2f} % of {int(fresh.sum())} first visits in one of ten named cells"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranker", type=int, default=0, help="seeds of the boosted ranker")
    parser.add_argument("--split", choices=PARTS, default="validation")
    parser.add_argument("--local", default="+08:00")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--systems", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    systems = counted(arguments, "same") + counted(arguments, "full") + networks(arguments)
    print(f"## {arguments.data.name}, {arguments.split} part, seeds 1 to {arguments.seeds}\n")
    print_table(systems)
    data = PlacesData(paths=(str(arguments.data),), local=arguments.local)
    rows = visit_rows(data.read(data.load(0).codec, [arguments.data], arguments.split))
    user = rows.visits.user[rows.samples.target]
    print("\nPaired differences in acc@1 (mean over seeds), 95 % intervals over users:\n")
    for ours in ("scorer", MEAN):
        same = ["counter", "Markov-2", "boosted ranker, legacy", "boosted ranker, open", "GRU + copy"]
        full = [f"{name}, full past" for name in same[:-1]]
        print_tests(systems, user, ours, same)
        print_tests(systems, user, f"{ours}, full past", full)
    print("\nFirst visits:\n")
    print_first_visits(systems, rows)
    assert BASELINES


if __name__ == "__main__":
    main()
