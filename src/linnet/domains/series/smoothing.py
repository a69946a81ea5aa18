"""Exponential smoothing without, with, and with damped trend, fitted to many series at once.

    error  = y - (level + phi * trend)
    level' = level + phi * trend + alpha * error
    trend' = phi * trend + beta * error

The errors are linear in the first level and the first trend, so for given (alpha, beta, phi) the best first state
is a least-squares solution, and only the three numbers are searched: on a grid, then by steps that shrink. The
criterion is the mean squared error of one step ahead.
Legend: n = series, sorted by length (longest first); P = candidates of a series; H = horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

LEAST = 4  # shorter histories keep their last value
ALPHA, SHARE, PHI = (1e-4, 0.9999), (1e-4, 1.0), (0.8, 0.98)  # beta is a share of alpha
ROUNDS = 12
BLOCK = 512  # series that are fitted together


@dataclass(frozen=True)
class Smoothed:
    """Forecasts [n, H], their standard deviations, and the last of alpha, beta and phi, [n] each."""

    mean: np.ndarray
    deviation: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    phi: np.ndarray


@dataclass(frozen=True)
class _Padded:
    """Series as columns of steps, longest first, less their first value and divided by their spread."""

    values: np.ndarray  # [T, n]
    lengths: np.ndarray
    offset: np.ndarray
    unit: np.ndarray

    def active(self) -> Sequence[int]:
        """[T]: how many series still run at each step."""
        return np.searchsorted(-self.lengths, -np.arange(len(self.values)), side="left").tolist()


def _padded(histories: Sequence[np.ndarray]) -> _Padded:
    lengths = np.array([len(history) for history in histories])
    offset = np.array([history[0] for history in histories])
    unit = np.array([float(np.std(history)) or 1.0 for history in histories])
    values = np.zeros((int(lengths.max()), len(histories)))
    for column, history in enumerate(histories):
        values[: len(history), column] = (history - offset[column]) / unit[column]
    return _Padded(values, lengths, offset, unit)


@dataclass(frozen=True)
class _Fit:
    """What one pass over the series gives, [n, P] each: the squared errors and the state after the last value."""

    loss: np.ndarray
    level: np.ndarray
    trend: np.ndarray

    def of(self, best: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.arange(len(best))
        return self.loss[rows, best], self.level[rows, best], self.trend[rows, best]


def _fit(padded: _Padded, parameters: np.ndarray, trended: bool) -> _Fit:
    """The best first states under these parameters [3, n, P], by the sums of a least-squares solution."""
    alpha, beta, phi = parameters
    # state[i] is [2, n, P]: level and trend from the data, from a first level of 1, and from a first trend of 1
    state = np.zeros((3, 2, *alpha.shape))
    state[1, 0], state[2, 1] = 1, 1 if trended else 0
    sums = np.zeros((3, 3, *alpha.shape))
    gains = np.stack([alpha, beta])
    for step, active in enumerate(padded.active()):
        now, shrink = state[:, :, :active], phi[:active]
        now[:, 1] *= shrink
        now[:, 0] += now[:, 1]
        errors = -now[:, 0]
        errors[0] += padded.values[step, :active, None]
        now += gains[:, :active] * errors[:, None]
        for one in range(3):
            sums[one, : one + 1, :active] += errors[one] * errors[: one + 1]
    return _solved(sums, state, trended)


def _solved(sums: np.ndarray, state: np.ndarray, trended: bool) -> _Fit:
    """From the sums of products of the three error series to the best first state."""
    ee, ue, uu, ve, vu, vv = sums[0, 0], sums[1, 0], sums[1, 1], sums[2, 0], sums[2, 1], sums[2, 2]
    if trended:
        vv = vv + 1e-9 * (1 + vv)
        uu = uu + 1e-9 * (1 + uu)
        determinant = uu * vv - vu * vu
        level, trend = (vu * ve - vv * ue) / determinant, (vu * ue - uu * ve) / determinant
    else:
        level, trend = -ue / uu, np.zeros_like(uu)
    loss = ee + level * ue + trend * ve
    last = state[0] + level * state[1] + trend * state[2]
    return _Fit(np.maximum(loss, 0), last[0], last[1])


def _parameters(points: np.ndarray) -> np.ndarray:
    """Alpha, beta and phi [3, n, P] from points [3, n, P] of the unit cube."""
    alpha = ALPHA[0] + points[0] * (ALPHA[1] - ALPHA[0])
    beta = alpha * (SHARE[0] + points[1] ** 2 * (SHARE[1] - SHARE[0]))
    return np.stack([alpha, beta, PHI[0] + points[2] * (PHI[1] - PHI[0])])


def _shaped(parameters: np.ndarray, trend: bool, damped: bool) -> np.ndarray:
    """Parameters of a method without trend have beta 0, those of an undamped one phi 1."""
    alpha, beta, phi = parameters
    return np.stack([alpha, beta if trend else 0 * beta, phi if trend and damped else np.ones_like(phi)])


def smooth(
    histories: Sequence[np.ndarray], horizon: int, *, trend: bool = False, damped: bool = False
) -> Smoothed:
    """Forecasts of complete histories (no missing values); fitted in blocks of series of similar length."""
    order = np.argsort([-len(history) for history in histories], kind="stable")
    found = np.empty((2, len(histories), horizon)), np.empty((3, len(histories)))
    for first in range(0, len(order), BLOCK):
        chosen = order[first : first + BLOCK]
        forecasts, parameters = _smooth_block([histories[row] for row in chosen], horizon, trend, damped)
        found[0][:, chosen], found[1][:, chosen] = forecasts, parameters
    return Smoothed(*found[0], *found[1])


def _smooth_block(
    histories: Sequence[np.ndarray], horizon: int, trend: bool, damped: bool
) -> tuple[np.ndarray, np.ndarray]:
    padded = _padded(histories)
    parameters = _search(padded, trend, damped)
    loss, level, slope = _fit(padded, parameters, trend).of(np.zeros(len(histories), int))
    alpha, beta, phi = parameters[..., 0]
    powers = np.cumsum(phi[:, None] ** np.arange(1, horizon + 1), -1)  # phi + ... + phi^h
    mean = level[:, None] + slope[:, None] * powers
    free = np.maximum(padded.lengths - (1 + trend) * 2 - (trend and damped), 1)
    responses = alpha[:, None] + beta[:, None] * np.concatenate([np.zeros_like(powers[:, :1]), powers[:, :-1]], -1)
    growth = 1 + np.concatenate([np.zeros_like(powers[:, :1]), np.cumsum(responses[:, 1:] ** 2, -1)], -1)
    deviation = np.sqrt((loss / free)[:, None] * growth)
    mean, deviation = mean * padded.unit[:, None] + padded.offset[:, None], deviation * padded.unit[:, None]
    for row, history in enumerate(histories):
        if len(history) < LEAST:
            mean[row], deviation[row] = history[-1], float(np.std(history))
    return np.stack([mean, deviation]), parameters[..., 0]


def _search(padded: _Padded, trend: bool, damped: bool) -> np.ndarray:
    """The parameters [3, n, 1] of the least squared error: the best of a grid, then of ever smaller steps."""
    axes = 1 + trend + (trend and damped)
    grids = [np.linspace(0.02, 0.98, 12 if axes == 1 else 7), np.linspace(0, 0.9, 6), np.linspace(0, 1, 4)][:axes]
    grid = np.zeros((3, int(np.prod([len(one) for one in grids]))))
    grid[:axes] = np.array(list(product(*grids))).T
    points = np.broadcast_to(grid[:, None], (3, len(padded.lengths), grid.shape[1]))
    best = _best(padded, points, trend, damped)
    moves = np.zeros((3, 3**axes))
    moves[:axes] = np.array(list(product((0, -1, 1), repeat=axes))).T
    step = np.full(len(padded.lengths), 0.08)
    for _ in range(ROUNDS):
        points = np.clip(best[..., None] + moves[:, None] * step[:, None], 0, 1)
        moved = _best(padded, points, trend, damped)
        step = np.where((moved == best).all(0), step / 3, step)
        best = moved
    return _shaped(_parameters(best[..., None]), trend, damped)


def _best(padded: _Padded, points: np.ndarray, trend: bool, damped: bool) -> np.ndarray:
    """[3, n]: of these points [3, n, P] the one with the least squared error of each series."""
    loss = _fit(padded, _shaped(_parameters(points), trend, damped), trend).loss
    chosen = loss.argmin(-1)
    return np.take_along_axis(points, chosen[None, :, None], -1)[..., 0]
