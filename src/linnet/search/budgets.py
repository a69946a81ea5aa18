"""How much a search may spend, in the same coin for each method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from linnet.errors import BadInput

WAVE = 16


@dataclass(frozen=True)
class Budget:
    """A search ends at the first of these limits; they count from the call that they are given to.

    `tokens` are positions that the model computes after the prompt, `reward_calls` texts that are scored,
    `width` is that of the interval of the value: a search that reaches it ends early. A wave has at most `wave`
    rollouts, all computed together; as many of them are begun as end within the budget.
    """

    rollouts: int | None = None
    tokens: int | None = None
    reward_calls: int | None = None
    seconds: float | None = None
    width: float | None = None
    wave: int = WAVE

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("rollouts", "tokens", "reward_calls", "seconds")}
        for name, limit in limits.items():
            if limit is not None and not 0 < limit < math.inf:
                raise BadInput(f"a budget of {limit} {name.replace('_', ' ')}; it must be above 0 and finite")
        if all(limit is None for limit in limits.values()):
            raise BadInput("a budget needs a limit: rollouts, tokens, reward_calls or seconds")
        if self.width is not None and not self.width > 0:
            raise BadInput(
                f"a search that ends at an interval of width {self.width} never ends; it must be above 0"
            )
        if self.wave < 1:
            raise BadInput(f"a wave of {self.wave} rollouts; it must have at least 1")


@dataclass(frozen=True)
class Preset:
    """Sizes of a search under one name."""

    rollouts: int
    max_tokens: int
    samples: int


PRESETS = {"quick": Preset(5, 30, 3), "balanced": Preset(10, 50, 10), "quality": Preset(20, 100, 50)}
