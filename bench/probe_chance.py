"""How often the interval of a probe on shuffled labels contains chance: 95 % are wanted.

python -m bench.probe_chance [--repeats 400] [--first 1000]
"""

from __future__ import annotations

import argparse

import torch

from linnet.probing.probes import Labelled, Settings, Split, probe, shuffled


def drawn(rows: int, steps: int, seed: int = 0) -> tuple[Labelled, torch.Tensor]:
    """Labels that one of eight channels shows, with some noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows, steps), generator=random)
    values = torch.randn(rows * steps, 8, generator=random)
    values[:, 5] = labels.flatten() + 0.1 * values[:, 5]
    ids = torch.randint(30, (rows, steps), generator=random)
    return Labelled(ids, labels, ("a", "b", "c")), values


def inside(seed: int) -> bool:
    """Whether chance lies in the interval of a probe on shuffled labels."""
    data, values = drawn(60, 4, seed)
    settings = Settings(sparse=(), seed=seed)
    found = probe(Split.of(shuffled(data, seed), settings), "tap", values, settings)
    return found.linear.low <= found.chance <= found.linear.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    given = parser.parse_args()
    found = sum(inside(seed) for seed in range(given.first, given.first + given.repeats))
    print(f"chance inside {found} of {given.repeats} intervals")


if __name__ == "__main__":
    main()
