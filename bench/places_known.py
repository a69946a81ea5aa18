"""Check-ins from a known process: every rule, the boosted ranker and the scorer in one table, beside the ceiling.

    python -m bench.places_known --out DIR [--users 200] [--visits 120] [--seeds 3] [--ranker 1]

The table has user, local time and venue, no coordinates; nothing was tuned on it, and every default is the
documented one. The ceiling is the mean probability of the likeliest next place of each test sample under the
process that drew it, given everything but the time of the next check-in: nobody can do better without that time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench.places import visit_rows
from linnet import workbench
from linnet.domains.places.answers import answers, full_past_counter, ranker_tables, rules
from linnet.domains.places.data import PlacesData
from linnet.domains.places.generated import Generated, Process, generate, write_check_ins
from linnet.domains.places.scores import Ranked, Resampled, measures, paired

COLUMNS = ("acc@1", "acc@5", "acc@10", "mrr")


def ceiling(made: Generated, names: np.ndarray, place: np.ndarray, target: np.ndarray) -> float:
    """The best accuracy on these targets; rows of the table are in the order in which they were drawn."""
    assert [f"v{venue:05d}" for venue in made.venue[:1000].tolist()] == names[place[:1000]].tolist()
    return float(made.best[target].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--visits", type=int, default=120)
    parser.add_argument("--process", type=int, default=0, help="the seed of what is drawn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranker", type=int, default=1, help="seeds of the boosted ranker")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "check-ins.csv"
    made = generate(Process(users=arguments.users, visits=arguments.visits, seed=arguments.process))
    write_check_ins(file, made)
    systems: dict[str, list[dict[str, Ranked]]] = {}
    for seed in range(1, arguments.seeds + 1):
        path = arguments.out / f"places-{seed}"
        if not (path / "record.json").is_file():
            workbench.train("places", out=path, data=[file], seed=seed, settings=[f"threads={arguments.threads}"])
        opened = workbench.load(path)
        assert isinstance(opened.run.data, PlacesData)
        domain = opened.run.data
        rows = visit_rows(domain.read(opened.codec, [file], "test"))
        named = answers(opened.network, rows, 256, opened.region)
        systems.setdefault("scorer", []).append(named.tables)
    for name, tables in (rules(rows) | {"counter, full past": full_past_counter(rows)}).items():
        systems[name] = [tables]
    for seed in range(arguments.ranker):
        found = ranker_tables(domain, domain.table([file]), rows, seed)["boosted ranker, open"]
        systems.setdefault("boosted ranker, open", []).append(dict(found))
    best = ceiling(made, rows.visits.places, rows.visits.place, rows.samples.target)
    print(f"{len(rows)} test samples of {arguments.users} users; the process allows acc@1 {100 * best:.2f}\n")
    print("| system | seeds | " + " | ".join(COLUMNS) + " | share of the ceiling | the scorer minus it, acc@1 |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    draws = Resampled.draw(rows.visits.user[rows.samples.target])
    ours = np.mean([measures(tables["open"])["acc@1"] for tables in systems["scorer"]], 0)
    for name, seeds in systems.items():
        values = {column: np.mean([measures(t["open"])[column] for t in seeds], 0) for column in COLUMNS}
        cells = [f"{100 * value.mean():.2f}" for value in values.values()]
        apart = paired(ours, values["acc@1"], draws)
        difference = f"{100 * apart.value:+.2f} ({100 * apart.low:+.2f} to {100 * apart.high:+.2f})"
        share = f"{values['acc@1'].mean() / best:.3f}"
        print(f"| {name} | {len(seeds)} | " + " | ".join([*cells, share, difference]) + " |")


if __name__ == "__main__":
    main()
