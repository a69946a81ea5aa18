"""What a search maximises, or tilts towards: one number for each generated text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from linnet.errors import BadInput, LinnetError, RunFailed

Ids = tuple[int, ...]
Bounds = tuple[float, float]  # the least and the largest reward
Score = Callable[[Sequence[str], Sequence[Ids], str], Sequence[float] | np.ndarray]


@dataclass(frozen=True)
class Reward:
    """`score(texts, ids, prompt)` gives one number for each text: the generated part only, without an end token.

    A number depends on its own text alone, so a leaf that is drawn again costs no second call. -inf excludes a
    text. `most` and `least` are limits that no number passes; with `most` a search can bound its value.
    `prefix(ids)` is an upper limit for all texts that begin so; where it equals `least` or -inf, the subtree's
    rewards are known.
    """

    score: Score
    most: float | None = None
    least: float | None = None
    prefix: Callable[[Ids], float] | None = None
    name: str = "reward"
    own: bool = False

    def __post_init__(self) -> None:
        if self.most is not None and self.least is not None and self.least > self.most:
            raise BadInput(f"{self.name}: least is {self.least}, above most, which is {self.most}")

    def numbers(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        """One checked number for each text."""
        try:
            found = np.asarray(self.score(texts, ids, prompt), dtype=np.float64)
        except LinnetError:
            raise
        except Exception as error:
            raise RunFailed(
                f"{self.name} raised {type(error).__name__}: {error}; texts: {shown(texts)}"
            ) from error
        if found.shape != (len(texts),):
            raise BadInput(
                f"{self.name} gave {found.shape} numbers for {len(texts)} texts; it must give one for each"
            )
        for text, number in zip(texts, found.tolist(), strict=True):
            self.check(text, number)
        return found

    def check(self, text: str, number: float) -> None:
        if math.isnan(number) or number == math.inf:
            raise BadInput(
                f"{self.name} gave {number} for {text!r}; a reward is a finite number, or -inf to exclude a text"
            )
        if self.most is not None and number > self.most + 1e-9:
            raise BadInput(f"{self.name} gave {number} for {text!r}, above its declared limit most={self.most}")
        if self.least is not None and -math.inf < number < self.least - 1e-9:
            raise BadInput(f"{self.name} gave {number} for {text!r}, below its declared limit least={self.least}")


def _none(texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> list[float]:
    raise RunFailed("the searched model's own log-probability is no function of the text alone")


LOGPROB = Reward(_none, most=0.0, name="logprob", own=True)  # with lam = alpha - 1 the target is p^alpha


def shown(texts: Sequence[str], most: int = 3) -> str:
    """A few of these texts, for a message."""
    listed = ", ".join(repr(text) for text in texts[:most])
    return listed + (f" and {len(texts) - most} more" if len(texts) > most else "")
