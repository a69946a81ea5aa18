"""Values of a window in its own units: centred on the last value, divided by the mean absolute step.

Both are known when a forecast is made, so nothing looks ahead. A window that never moves has the scale 0:
whatever is predicted, its forecast is its value. A window with a single value shows no step and takes the typical
relative step of the training series. Arithmetic is in float64, so a level of 1e9 costs no digits.
Legend: B = windows, L = history, H = horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOISE = 1e-13  # steps below this share of the level are rounding
LEAST = 1e-30  # of a step; networks compute in float32
FARTHEST = 1e18  # steps of a target from the last value; the square of more is infinite in float32


@dataclass(frozen=True)
class Scaled:
    """`values` are 0 where nothing was observed."""

    values: np.ndarray  # float64 [B, L]
    observed: np.ndarray  # bool [B, L]
    centre: np.ndarray  # float64 [B]
    scale: np.ndarray  # float64 [B]

    @property
    def inputs(self) -> np.ndarray:
        """float32 [B, L]: an inverse hyperbolic sine, so that one far value does not drown the others."""
        return np.arcsinh(self.values).astype(np.float32)

    @property
    def level(self) -> np.ndarray:
        """float32 [B]: how many steps away from 0 the window is, on the same curve."""
        return np.arcsinh(self.centre / np.where(self.scale > 0, self.scale, 1)).astype(np.float32)

    def there(self, targets: np.ndarray) -> np.ndarray:
        """Targets [B, H] in units of the window; 0 for windows that never move."""
        divisor = np.where(self.scale > 0, self.scale, np.inf)[:, None]
        return np.clip((targets - self.centre[:, None]) / divisor, -FARTHEST, FARTHEST)

    def back(self, found: np.ndarray) -> np.ndarray:
        """Predictions [B, H, ...] in units of the files."""
        shape = (-1,) + (1,) * (found.ndim - 1)
        return found.astype(np.float64) * self.scale.reshape(shape) + self.centre.reshape(shape)


def scaled(windows: np.ndarray, typical: float) -> Scaled:
    """Windows [B, L], right-aligned, NaN where there is no value; each holds one value at least."""
    observed = np.isfinite(windows)
    rows, length = windows.shape
    last = length - 1 - observed[:, ::-1].argmax(1)
    centre = np.where(observed.any(1), windows[np.arange(rows), last], 0.0)
    steps = np.abs(np.diff(windows, axis=1))
    pairs = np.isfinite(steps)
    counts = pairs.sum(1)
    scale = np.where(pairs, steps, 0.0).sum(1) / np.maximum(counts, 1)
    scale = np.where(counts > 0, scale, typical * np.abs(centre))
    scale = np.where(scale > np.maximum(NOISE * np.abs(centre), LEAST), scale, 0.0)
    moved = (windows - centre[:, None]) / np.where(scale > 0, scale, 1)[:, None]
    return Scaled(np.where(observed, moved, 0.0), observed, centre, scale)


def typical_step(values: np.ndarray, starts: np.ndarray) -> float:
    """The median over series of the mean absolute step over the mean absolute value."""
    found = []
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        one = values[first:last]
        steps, size = np.abs(np.diff(one)), np.nanmean(np.abs(one))
        steps = steps[np.isfinite(steps)]
        if len(steps) and size > 0:
            found.append(float(steps.mean() / size))
    return float(np.median(found)) if found else 0.0
