"""Test windows that stand in another series' history: a model that has read that series has seen the answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STEPS = 6
TOLERANCE = 0.05  # of the mean size of the steps: values are often rounded to a few digits


def relative_steps(values: np.ndarray) -> np.ndarray:
    """The change from each value to the next as a share of it; not a number where the value is zero or missing."""
    values = np.asarray(values, np.float64)
    before = np.where(values[:-1] == 0, np.nan, values[:-1])
    return np.asarray(values[1:] / before - 1)


def copied(
    histories: Sequence[np.ndarray],
    futures: Sequence[np.ndarray],
    *,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """[n]: for each series another one whose history holds the first relative steps of this future, or -1.

    Steps agree within a share of their mean size. A constant future tells nothing and is never called copied.
    """
    parts = [relative_steps(history) for history in histories]
    parts = [
        np.append(part, np.full(steps, np.nan)) for part in parts
    ]  # no window runs from one series into the next
    flat, owner = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    windows = np.lib.stride_tricks.sliding_window_view(flat, steps)
    found = np.full(len(histories), -1)
    for row, future in enumerate(futures):
        wanted = relative_steps(future)[:steps]
        if len(wanted) < steps or not np.isfinite(wanted).all() or not wanted.any():
            continue
        apart = tolerance * np.abs(wanted).mean()
        near = np.flatnonzero((np.abs(windows[:, 0] - wanted[0]) < apart) & (owner[: len(windows)] != row))
        near = near[(np.abs(windows[near] - wanted) < apart).all(-1)]
        if len(near):
            found[row] = owner[near[0]]
    return found
