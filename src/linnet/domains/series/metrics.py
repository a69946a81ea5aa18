"""Measures of forecasts and of labels, each as sums over units that can be drawn again.

A unit is what an interval is drawn over: a series, or a person with all of their windows. A measure is kept as
what each unit adds to it, so the same draws of units give the interval of every measure and of every difference.
Legend: n = series, H = horizon, Q = levels, U = units, K = classes, R = draws of units, B = bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15


def smape(truth: np.ndarray, forecast: np.ndarray) -> np.ndarray:
    """[n]: the symmetric percentage error of M4, 200 |y - f| / (|y| + |f|), where two zeros agree.

    Missing truths are left out; a series without any has no value (NaN).
    """
    size = np.abs(truth) + np.abs(forecast)
    errors = 200 * np.abs(truth - forecast) / np.where(size == 0, 1, size)
    return _mean_of_known(errors, truth)


def scale_of(history: np.ndarray, season: int = 1) -> float:
    """The mean absolute difference at one season's distance; NaN where the history is constant or too short."""
    apart = np.abs(history[season:] - history[:-season]) if len(history) > season else np.empty(0)
    apart = apart[np.isfinite(apart)]
    return float(apart.mean()) if len(apart) and apart.any() else float("nan")


def scales_of(histories: Sequence[np.ndarray], season: int = 1) -> np.ndarray:
    """[n]: `scale_of` of each history."""
    return np.array([scale_of(np.asarray(history, np.float64), season) for history in histories])


def mase(truth: np.ndarray, forecast: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[n]: the mean absolute error in units of the history's own seasonal steps; NaN where there are none."""
    return _mean_of_known(np.abs(truth - forecast), truth) / scales


def _mean_of_known(errors: np.ndarray, truth: np.ndarray) -> np.ndarray:
    known = np.isfinite(truth)
    counts = known.sum(-1)
    sums = np.where(known, errors, 0.0).sum(-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Ratio:
    """A measure that is sum(sums) / sum(counts), each [U] or [Q, U]; several ratios [Q] are averaged."""

    sums: np.ndarray
    counts: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """[R]: the measure under each row of weights [R, U]; NaN where nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = (weights @ np.atleast_2d(self.sums).T) / (weights @ np.atleast_2d(self.counts).T)
        return np.asarray(ratios.mean(-1))

    @property
    def value(self) -> float:
        return float(self(np.ones((1, self.counts.shape[-1])))[0])


def mean_of(values: np.ndarray) -> Ratio:
    """The mean over units; those without a value (NaN) are left out."""
    known = np.isfinite(values)
    return Ratio(np.where(known, values, 0.0), known.astype(np.float64))


@dataclass(frozen=True)
class Relative:
    """The overall weighted average of M4: both errors are averaged over series, then divided, then averaged."""

    smape: Ratio
    mase: Ratio
    reference_smape: Ratio
    reference_mase: Ratio

    @classmethod
    def of(cls, ours: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> Relative:
        """From sMAPE and MASE [n] of a method and of the reference, which is Naive2 in M4."""
        return cls(mean_of(ours[0]), mean_of(ours[1]), mean_of(reference[0]), mean_of(reference[1]))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = (
                self.smape(weights) / self.reference_smape(weights),
                self.mase(weights) / self.reference_mase(weights),
            )
        return np.asarray((parts[0] + parts[1]) / 2)

    @property
    def value(self) -> float:
        return float(self(np.ones((1, self.smape.counts.shape[-1])))[0])


def quantile_loss(truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> Ratio:
    """The weighted quantile loss: per level 2 * pinball loss over all values / sum |y|, then the mean over levels.

    `quantiles` is [n, H, Q], in the order of `levels`.
    """
    known = np.isfinite(truth)
    above = np.where(known, truth, 0.0)[..., None] - np.where(known[..., None], quantiles, 0.0)
    order = np.asarray(levels, np.float64)
    losses = 2 * np.maximum(order * above, (order - 1) * above).sum(1).T  # [Q, n]
    size = np.where(known, np.abs(truth), 0.0).sum(-1)
    return Ratio(losses, np.broadcast_to(size, losses.shape))


def coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> Ratio:
    """The share of true values within their interval."""
    known = np.isfinite(truth)
    return Ratio(
        ((truth >= low) & (truth <= high) & known).sum(-1).astype(np.float64), known.sum(-1).astype(np.float64)
    )


def msis(
    truth: np.ndarray, interval: tuple[np.ndarray, np.ndarray], scales: np.ndarray, level: float = 0.95
) -> np.ndarray:
    """[n]: the scaled interval score of M4: the width, and 2 / (1 - level) times what lies outside."""
    low, high = interval
    outside = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return _mean_of_known(high - low + 2 / (1 - level) * outside, truth) / scales


# Labels


@dataclass(frozen=True)
class MacroF1:
    """The mean over classes of F1, from confusions [U, K, K] (truth, prediction) of each unit.

    Classes that neither occur nor are predicted are left out of the mean.
    """

    confusion: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray, units: np.ndarray, classes: int) -> MacroF1:
        """From classes [n] and the unit of each case."""
        count = int(units.max(initial=-1)) + 1
        flat = (units * classes + truth) * classes + predicted
        return cls(
            np.bincount(flat, minlength=count * classes**2).reshape(count, classes, classes).astype(np.float64)
        )

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        drawn = np.tensordot(weights, self.confusion, 1)  # [R, K, K]
        both = drawn.sum(-1) + drawn.sum(-2)
        right = np.diagonal(drawn, axis1=-2, axis2=-1)
        f1 = np.where(both > 0, 2 * right / np.where(both > 0, both, 1), 0)
        return np.asarray(f1.sum(-1) / np.maximum((both > 0).sum(-1), 1))

    @property
    def value(self) -> float:
        return float(self(np.ones((1, len(self.confusion))))[0])

    @property
    def accuracy(self) -> Ratio:
        right = np.trace(self.confusion, axis1=1, axis2=2)
        return Ratio(right, self.confusion.sum((1, 2)))


@dataclass(frozen=True)
class CalibrationError:
    """How far the confidence of the chosen class is from accuracy, over bins of equal width; sums are [U, B]."""

    confidence: np.ndarray
    right: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls, probabilities: np.ndarray, truth: np.ndarray, units: np.ndarray, bins: int = BINS
    ) -> CalibrationError:
        """From probabilities [n, K], true classes [n] and the unit of each case."""
        confidence = probabilities.max(-1)
        right = (probabilities.argmax(-1) == truth).astype(np.float64)
        slot = units * bins + np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        size = (int(units.max(initial=-1)) + 1) * bins
        sums = [
            np.bincount(slot, values, size).reshape(-1, bins) for values in (confidence, right, np.ones(len(slot)))
        ]
        return cls(*sums)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        apart = np.abs(weights @ self.confidence - weights @ self.right)
        return np.asarray(apart.sum(-1) / np.maximum((weights @ self.counts).sum(-1), 1e-300))

    @property
    def value(self) -> float:
        return float(self(np.ones((1, len(self.counts))))[0])
