"""What a search on captions maximises: facts of the caption that hold, by `reading` and `facts`.

Each kind counts once. A true claim adds 1, a true one that says little (a maximum without a position, "it is
periodic") adds a quarter, a false one takes 1; a claim that is unclear counts neither way. Five true facts are 1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from linnet.domains.series.captions.codec import NUMBERS, series_in
from linnet.domains.series.captions.facts import Claim, Measures, Verdict, measure
from linnet.domains.series.captions.reading import verdicts
from linnet.errors import BadInput

ENOUGH = 5  # true facts of a full reward
VAGUE = 0.25


def worth(claim: Claim, verdict: Verdict) -> float:
    if verdict == "true":
        return 1.0 if claim.specific else VAGUE
    return -1.0 if verdict == "false" else 0.0


def fact_reward(text: str, found: Measures) -> float:
    """Between 0 and 1."""
    return summed(verdicts(text, found), ENOUGH)


def summed(found: Iterable[tuple[Claim, Verdict]], enough: int) -> float:
    """The worth of these claims over `enough` true ones; a kind that is stated twice counts by the worse claim."""
    kinds: dict[str, float] = {}
    for claim, verdict in found:
        value = worth(claim, verdict)
        kinds[claim.kind] = min(value, kinds.get(claim.kind, value))
    return min(1.0, max(0.0, sum(kinds.values()) / enough))


@dataclass(frozen=True)
class Facts:
    """The reward of captions, named `facts`: the prompt is the series, as numbers."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, texts: Sequence[str], ids: Sequence[Sequence[int]], prompt: str) -> list[float]:
        found = measured(prompt)
        return [fact_reward(text, found) for text in texts]


@functools.lru_cache(maxsize=64)
def measured(prompt: str) -> Measures:
    """The measures of a series that is written as numbers."""
    if not NUMBERS.fullmatch(prompt):
        raise BadInput("the reward facts compares a caption with a series: the prompt is its numbers")
    return measure(series_in(prompt))
