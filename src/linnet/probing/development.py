"""How something develops over the snapshots of a run, and when it sets in.

A measure takes a network and gives named numbers; `curves` runs it over the snapshots. `onset` finds the snapshot
at which a curve leaves where it was and does not come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from linnet.codecs import Codec
from linnet.errors import BadInput
from linnet.model.contract import Network
from linnet.progress import tracked
from linnet.training.checkpoint import RunFolder, load_weights
from linnet.training.learner import fresh_network
from linnet.training.run import Run

Measure = Callable[[Network], Mapping[str, float]]

LEAVES = 0.1  # of the whole way of a curve, at which it counts as having left its level
NOISE = 4.0  # standard deviations of the level before


def networks(folder: RunFolder, run: Run, codec: Codec) -> Iterator[tuple[int, Network]]:
    """The network at step 0 and at every snapshot; one network, whose weights change."""
    kept = folder.snapshots
    if not kept.steps:
        raise BadInput(
            f"{folder.path} kept no snapshots of its training; train it with --set training.snapshots=log"
        )
    network = fresh_network(run, codec).eval()
    yield 0, network
    for step in kept.steps:
        load_weights(network, kept.read(step), str(kept.file(step)))
        yield step, network


def curves(
    folder: RunFolder, run: Run, codec: Codec, measure: Measure
) -> tuple[list[int], dict[str, list[float]]]:
    """The steps, and each number that the measure gives at them."""
    steps: list[int] = []
    found: dict[str, list[float]] = {}
    whole = len(folder.snapshots.steps) + 1
    for step, network in tracked(networks(folder, run, codec), "measuring snapshots", whole):
        steps.append(step)
        for name, value in measure(network).items():
            found.setdefault(name, []).append(float(value))
    return steps, found


def onset(values: Sequence[float]) -> int | None:
    """The index from which a curve stays away from its first level; None where it never leaves it.

    The level is the median of what came before, and what counts as away is a tenth of the whole way or four
    standard deviations of the values before, whichever is more.
    """
    curve = np.asarray(values, float)
    if len(curve) < 3 or not np.isfinite(curve).all():
        return None
    for index in range(1, len(curve)):
        before, rest = curve[:index], curve[index:]
        level = float(np.median(before))
        way = float(np.abs(curve - level).max())
        noise = NOISE * float(np.std(before)) if index > 2 else 0.0
        limit = max(LEAVES * way, noise, 1e-9)
        side = np.sign(rest[-1] - level)
        if way > 1e-9 and ((rest - level) * side > limit).all():
            return index
    return None
