"""What a search on rationales maximises: facts that hold of the window, and never the label.

A true claim adds 1 and a false one takes 1, each kind once; four true facts are 1. How many sampled answers agree
on a label is known only once they are drawn: `use` adds it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linnet.domains.series.captions.codec import NUMBERS, window_in
from linnet.domains.series.captions.rewards import summed
from linnet.domains.series.rationales.facts import Motion, measure
from linnet.domains.series.rationales.grammar import verdicts
from linnet.errors import BadInput

ENOUGH = 4  # true facts of a full reward


@dataclass(frozen=True)
class Rationale:
    """The reward of rationales, named `rationale`: the prompt is a window, channel by channel, as numbers."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, texts: Sequence[str], ids: Sequence[Sequence[int]], prompt: str) -> list[float]:
        found = measured(prompt)
        return [summed(verdicts(text, found), ENOUGH) for text in texts]


@functools.lru_cache(maxsize=64)
def measured(prompt: str) -> Motion:
    """The measures of a window that is written as numbers."""
    if not NUMBERS.fullmatch(prompt):
        raise BadInput("the reward rationale compares facts with a window: the prompt is its numbers")
    return measure(window_in(prompt))
