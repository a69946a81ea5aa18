"""How alike two series sound: distances between the spectra of the numbers in an answer and in its prompt.

Legend: N = numbers of a series, F = frequencies of the grid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from linnet.errors import BadInput
from linnet.search.reward import Bounds, Ids

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
GRID = np.linspace(0.0, 0.5, 33)  # cycles a step; one grid for series of all lengths
SEGMENT = 256
FLOOR = 1e-12


@dataclass(frozen=True)
class Spectral:
    """exp(-distance) of the power spectra of an answer's numbers and of the prompt's; 0 for too few numbers.

    `l1` is the area between the logarithms of the two spectra, `wasserstein` and `kl` compare where their power
    lies, whatever its size. With `before`, the spectrum is that of so many numbers of the prompt's end and the
    answer's after them: a forecast has to go on as the series was, and to begin where it ended.
    """

    metric: Literal["l1", "wasserstein", "kl"] = "l1"
    least: Annotated[int, Field(ge=4)] = 8
    before: Annotated[int, Field(ge=0)] = 0
    reference: str = ""  # numbers to compare with; those of the prompt unless set
    bounds: ClassVar[Bounds] = (0.0, 1.0)

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        wanted = numbers(self.reference or prompt)
        if len(wanted) < self.least:
            where = "its setting reference" if self.reference else "the prompt"
            raise BadInput(
                f"the spectral reward compares with a series, and {where} has {len(wanted)} numbers; "
                f"it needs at least {self.least}"
            )
        target, given = spectrum(wanted), numbers(prompt) if self.before else np.empty(0)
        end = given[len(given) - min(self.before, len(given)) :]
        return np.array([self._reward(end, numbers(text), target) for text in texts])

    def _reward(self, end: np.ndarray, series: np.ndarray, target: np.ndarray) -> float:
        if len(series) < self.least:
            return 0.0
        return float(np.exp(-DISTANCES[self.metric](spectrum(np.concatenate([end, series])), target)))


def numbers(text: str) -> np.ndarray:
    """The numbers of a text in their order; those beyond the range of floats are left out."""
    found = np.array([float(number) for number in NUMBER.findall(text)])
    return found[np.isfinite(found)]


def spectrum(series: np.ndarray) -> np.ndarray:
    """Welch's estimate of the power density [F]: the mean over half-overlapping windows, without their means."""
    size = min(SEGMENT, max(4, len(series) // 2))
    window = np.hanning(size + 2)[1:-1]
    starts = range(0, len(series) - size + 1, max(1, size // 2))
    pieces = np.stack([series[start : start + size] for start in starts])
    pieces = (pieces - pieces.mean(axis=1, keepdims=True)) * window
    power = (np.abs(np.fft.rfft(pieces)) ** 2).mean(axis=0) / (window**2).sum()
    return np.interp(GRID, np.fft.rfftfreq(size), power)


def log_area(one: np.ndarray, other: np.ndarray) -> float:
    """The area between two spectra on a logarithmic scale, by the trapezoidal rule."""
    gap = np.abs(np.log(one + FLOOR) - np.log(other + FLOOR))
    return float((gap[1:] + gap[:-1]).sum() / 2 * (GRID[1] - GRID[0]))


def moved(one: np.ndarray, other: np.ndarray) -> float:
    """How far power has to be moved, in units of the whole range of frequencies (Wasserstein-1)."""
    return float(np.abs(np.cumsum(shares(one)) - np.cumsum(shares(other)))[:-1].mean())


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Kullback-Leibler divergence of the shares of power from those of the other series."""
    first, second = shares(one), shares(other)
    return float((first * np.log(first / second)).sum())


def shares(power: np.ndarray) -> np.ndarray:
    return (power + FLOOR) / (power + FLOOR).sum()


DISTANCES = {"l1": log_area, "wasserstein": moved, "kl": divergence}
