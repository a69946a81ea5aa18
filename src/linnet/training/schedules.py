"""Learning-rate schedules: pure functions of the step, chosen by `optim.schedule`.

`factor(step, steps)` multiplies the run's learning rate at step 0 .. steps - 1. A `warmup` below 1 is a share of
all steps, otherwise a number of steps.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from linnet.model.config import Part


def climb(step: int, steps: int, warmup: float) -> tuple[float, int]:
    """The warm-up factor of this step, and at which step the warm-up ends."""
    length = round(warmup * steps) if warmup < 1 else min(int(warmup), steps)
    return (step + 1) / length if step < length else 1.0, length


class Constant(Part):
    kind: Literal["constant"] = Field("constant", description="how the learning rate moves")
    warmup: float = Field(0, ge=0, description="steps, or a share of them below 1")

    def factor(self, step: int, steps: int) -> float:
        return climb(step, steps, self.warmup)[0]


class Cosine(Part):
    kind: Literal["cosine"] = Field("cosine", description="how the learning rate moves")
    warmup: float = Field(0.05, ge=0, description="steps, or a share of them below 1")
    floor: float = Field(0.1, ge=0, le=1, description="of the peak, at the end")

    def factor(self, step: int, steps: int) -> float:
        rising, start = climb(step, steps, self.warmup)
        if step < start:
            return rising
        done = (step - start) / max(1, steps - start - 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2


class Linear(Part):
    kind: Literal["linear"] = Field("linear", description="how the learning rate moves")
    warmup: float = Field(0.05, ge=0, description="steps, or a share of them below 1")
    floor: float = Field(0.0, ge=0, le=1, description="of the peak, at the end")

    def factor(self, step: int, steps: int) -> float:
        rising, start = climb(step, steps, self.warmup)
        if step < start:
            return rising
        done = (step - start) / max(1, steps - start)
        return self.floor + (1 - self.floor) * (1 - min(1.0, done))


class WarmupStableDecay(Part):
    """Flat after the warm-up, then down to the floor over the last `decay` share of the steps."""

    kind: Literal["wsd"] = Field("wsd", description="how the learning rate moves")
    warmup: float = Field(0.02, ge=0, description="steps, or a share of them below 1")
    decay: float = Field(0.2, ge=0, le=1, description="share of the steps in which it falls")
    shape: Literal["linear", "sqrt"] = Field("sqrt", description="of the fall")
    floor: float = Field(0.0, ge=0, le=1, description="of the peak, at the end")

    def factor(self, step: int, steps: int) -> float:
        rising, start = climb(step, steps, self.warmup)
        if step < start:
            return rising
        length = max(1, round(self.decay * steps))
        done = max(0.0, (step - (steps - length) + 1) / length)
        fall = math.sqrt(done) if self.shape == "sqrt" else done
        return self.floor + (1 - self.floor) * (1 - fall) if self.decay else 1.0


class OneCycle(Part):
    """torch's OneCycleLR with cosine arms: from 1/div up to 1, then down to 1/(div x final_div)."""

    kind: Literal["onecycle"] = Field("onecycle", description="how the learning rate moves")
    pct_start: float = Field(0.3, gt=0, lt=1, description="share of the steps in which it rises")
    div: float = Field(25.0, ge=1, description="peak over the first rate")
    final_div: float = Field(1e4, ge=1, description="first rate over the last")

    def factor(self, step: int, steps: int) -> float:
        low, last = 1 / self.div, 1 / (self.div * self.final_div)
        peak, end = self.pct_start * steps - 1, steps - 1
        if step <= peak:
            return _cosine(low, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, last, min(1.0, (step - peak) / max(1e-9, end - peak)))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


Schedule = Annotated[
    Constant | Cosine | Linear | WarmupStableDecay | OneCycle,
    Field(discriminator="kind"),
]
