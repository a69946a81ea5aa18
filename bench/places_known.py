"""Check-ins from a known process: every rule, the boosted ranker and the scorer in one table, beside the ceiling.

    python -m bench.places_known --out DIR [--users 200] [--visits 120] [--seeds 3] [--ranker 1] [--bound]

The table has user, local time and venue, no coordinates; nothing was tuned on it, and every default is the
documented one. The ceiling is the mean probability of the likeliest next place of each test sample under the
process that drew it, given everything but the time of the next check-in: nobody can do better without that time.
`--bound` fits the form of the process itself (tastes, hours, sequences, waits) on the train part, where the
category of each venue is given and where it has to be found: what a learner could reach that knows this form.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench.places import visit_rows
from linnet import workbench
from linnet.domains.places.answers import answers, full_past_counter, ranker_tables, rules
from linnet.domains.places.data import PlacesData
from linnet.domains.places.generated import WAITS, Generated, Process, generate, slot_of, write_check_ins
from linnet.domains.places.scores import Ranked, Resampled, measures, paired
from linnet.domains.places.visits import MINUTE

COLUMNS = ("acc@1", "acc@5", "acc@10", "mrr")


def ceiling(made: Generated, names: np.ndarray, place: np.ndarray, target: np.ndarray) -> float:
    """The best accuracy on these targets; rows of the table are in the order in which they were drawn."""
    assert [f"v{venue:05d}" for venue in made.venue[:1000].tolist()] == names[place[:1000]].tolist()
    return float(made.best[target].mean())


def steps_of(made: Generated, users: int, first: int, last: int) -> tuple[torch.Tensor, ...]:
    """(user, here, now, there, then) of the check-ins `first` to `last` of each user."""
    venue, time = (column.reshape(users, -1) for column in (made.venue, made.time))
    user, at = np.repeat(np.arange(users), last - first), np.tile(np.arange(first, last), users)
    columns = (user, venue[user, at - 1], time[user, at - 1], venue[user, at], time[user, at])
    return tuple(map(torch.from_numpy, columns))


def bound(made: Generated, process: Process, *, given: bool, steps: int = 600) -> float:
    """acc@1 on the last tenth of each user's check-ins of the form of the process, fitted on the first 80 %."""
    torch.manual_seed(0)
    train, kinds = int(0.8 * process.visits), process.categories
    own = [np.unique(row[:train]) for row in made.venue.reshape(process.users, -1)]
    offered = np.full((process.users, max(map(len, own))), -1)
    for row, places in enumerate(own):
        offered[row, : len(places)] = places
    options = torch.from_numpy(offered)
    category = F.one_hot(torch.from_numpy(made.category), kinds).float()
    sizes = (offered.shape, (kinds, 12), (kinds, kinds), (kinds, len(WAITS)), (process.venues, kinds))
    taste, hours, follow, patience, found = parameters = [
        (0.3 * torch.randn(size) * (number > 0)).requires_grad_() for number, size in enumerate(sizes)
    ]

    def scores(user: torch.Tensor, here: torch.Tensor, slot: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        by_hour = (kind[options] @ hours)[user].gather(2, slot[:, None, None].expand(-1, options.shape[1], 1))
        score = taste[user] + by_hour.squeeze(2) + ((kind[here] @ follow)[:, None] * kind[options[user]]).sum(2)
        return score.masked_fill((options[user] < 0) | (options[user] == here[:, None]), -1e9)

    user, here, now, there, then = steps_of(made, process.users, 1, train)
    wait = torch.from_numpy(np.searchsorted(WAITS, ((then - now) // MINUTE).numpy()))
    hit = options[user] == there[:, None]
    known, slot = hit.any(1), torch.from_numpy(slot_of(then.numpy()))
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(steps):
        kind = category if given else found.softmax(1)
        nats = F.cross_entropy(scores(user, here, slot, kind)[known], hit[known].long().argmax(1), reduction="sum")
        waits = (kind[here] @ patience.softmax(1)).gather(1, wait[:, None]).log().sum()
        prior = (taste**2).sum() / 2.4 + (hours**2).sum() / 5.1 + (follow**2).sum() / 2 + (found**2).sum() / 50
        optimizer.zero_grad()
        (nats - waits + prior).backward()
        optimizer.step()
    with torch.no_grad():
        user, here, now, there, _ = steps_of(made, process.users, int(0.9 * process.visits), process.visits)
        kind = category if given else found.softmax(1)
        chance = kind[here] @ patience.softmax(1)
        slots = [torch.from_numpy(slot_of((now + int(minutes) * MINUTE).numpy())) for minutes in WAITS]
        shares = [chance[:, [n]] * scores(user, here, s, kind).softmax(1) for n, s in enumerate(slots)]
        first = torch.stack(shares).sum(0).argmax(1, keepdim=True)
        return float((options[user].gather(1, first)[:, 0] == there).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--visits", type=int, default=120)
    parser.add_argument("--process", type=int, default=0, help="the seed of what is drawn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranker", type=int, default=1, help="seeds of the boosted ranker")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bound", action="store_true", help="what the form of the process reaches, and no more")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "check-ins.csv"
    process = Process(users=arguments.users, visits=arguments.visits, seed=arguments.process)
    made = generate(process)
    write_check_ins(file, made)
    if arguments.bound:
        for given, what in ((True, "given"), (False, "to be found")):
            print(
                f"the form of the process, categories {what}: acc@1 {100 * bound(made, process, given=given):.2f}"
            )
        return
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
