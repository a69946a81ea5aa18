"""The temperature at which probabilities are honest, fitted on cases that nothing was learned from.

Legend: n = cases, A = answers of all cases, K = classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Log-probabilities of all answers of each case, end to end. `best` and `true` are those of the first answer
    and of the truth."""

    starts: np.ndarray  # int64 [n + 1]
    logp: np.ndarray  # float64 [A]
    best: np.ndarray  # float64 [n]
    true: np.ndarray  # float64 [n]

    @classmethod
    def of_classes(cls, logp: np.ndarray, truth: np.ndarray) -> Spread:
        """From a table [n, K] of log-probabilities, none infinite, and the true classes [n]."""
        starts = np.arange(len(logp) + 1, dtype=np.int64) * logp.shape[1]
        return cls(starts, logp.ravel(), logp.max(1), logp[np.arange(len(logp)), truth])

    def at(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """[n] each: the probability of the first answer, and the nats of the truth, at this temperature."""
        scaled, begins = self.logp / temperature, self.starts[:-1]
        top = np.maximum.reduceat(scaled, begins)
        whole = np.add.reduceat(np.exp(scaled - np.repeat(top, np.diff(self.starts))), begins)
        norm = top + np.log(whole)
        return np.exp(self.best / temperature - norm), norm - self.true / temperature

    def fitted(self) -> float:
        """The temperature of least nats, by golden-section search over its logarithm."""
        low, high, step = -1.5, 1.5, (5**0.5 - 1) / 2
        while high - low > 1e-3:
            left, right = high - step * (high - low), low + step * (high - low)
            if self.at(np.exp(left))[1].mean() < self.at(np.exp(right))[1].mean():
                high = right
            else:
                low = left
        return float(np.exp((low + high) / 2))


def warmed(logp: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities [n, K] at this temperature."""
    scaled = logp / temperature
    top = scaled.max(1, keepdims=True)
    return np.asarray(scaled - top - np.log(np.exp(scaled - top).sum(1, keepdims=True)))


def calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, over bins of equal numbers of cases."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    gaps = [
        len(part) * abs(float(confidence[part].mean()) - float(hit[part].mean())) for part in parts if len(part)
    ]
    return sum(gaps) / max(len(confidence), 1)
