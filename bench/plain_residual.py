"""A small doubly residual MLP written in plain PyTorch: the rival that a forecaster of ours has to reach.

One network of 6 blocks of 3 x 256 reads a year and a half, and learns half sMAPE and half MASE (each divided by
that of the naive forecast) with AdamW for 1,200 steps of 256 windows from the last 20 horizons of each series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.domains.series.metrics import mase, scales_of, smape


class Block(nn.Module):
    def __init__(self, lags: int, horizon: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [2 * lags] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True))
        self.back, self.ahead = nn.Linear(width, lags), nn.Linear(width, horizon)

    def forward(self, left: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([left, mask], -1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return self.back(hidden), self.ahead(hidden)


class PlainResidual(nn.Module):
    """Point forecasts [B, H] in units of the window, from values and marks of what was observed, [B, L] each."""

    def __init__(self, lags: int, horizon: int, *, blocks: int = 6, width: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(lags, horizon, width, layers) for _ in range(blocks))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        total = torch.zeros(())
        for block in self.blocks:
            back, ahead = block(values, mask)
            values, total = (values - back) * mask, total + ahead
        return total


@dataclass(frozen=True)
class Windows:
    """Windows in units of their own mean absolute step, around their last value."""

    values: np.ndarray  # [B, L]
    mask: np.ndarray
    last: np.ndarray  # [B]
    step: np.ndarray

    @classmethod
    def cut(cls, histories: Sequence[np.ndarray], lags: int) -> Windows:
        values, mask = np.zeros((2, len(histories), lags))
        last, step = np.zeros((2, len(histories)))
        for row, history in enumerate(histories):
            window = history[-lags:]
            last[row] = window[-1]
            step[row] = max(
                np.abs(np.diff(window)).mean() if len(window) > 1 else 0.0, 1e-6 * abs(last[row]), 1e-9
            )
            values[row, lags - len(window) :] = (window - last[row]) / step[row]
            mask[row, lags - len(window) :] = 1
        return cls(np.sign(values) * np.log1p(np.abs(values)), mask, last, step)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = (self.values, self.mask, self.last[:, None], self.step[:, None])
        return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)  # type: ignore[return-value]


@dataclass(frozen=True)
class Drawn:
    histories: Sequence[np.ndarray]
    futures: np.ndarray
    scales: np.ndarray


def batches(histories: Sequence[np.ndarray], horizon: int, steps: int, seed: int) -> Iterator[Drawn]:
    rng = np.random.default_rng(seed)
    long = [row for row, history in enumerate(histories) if len(history) > horizon + 1]
    scales = scales_of(histories)
    for _ in range(steps):
        rows = rng.choice(long, 256)
        past, ahead = [], np.empty((256, horizon))
        for place, row in enumerate(rows):
            latest = len(histories[row]) - horizon
            end = int(rng.integers(max(2, latest - 20 * horizon), latest + 1))
            past.append(histories[row][:end])
            ahead[place] = histories[row][end : end + horizon]
        yield Drawn(past, ahead, scales[rows])


def fit(
    histories: Sequence[np.ndarray], horizon: int, lags: int, *, steps: int = 1200, seed: int = 0
) -> PlainResidual:
    """Train one network on these histories; nothing beyond their ends is read."""
    torch.manual_seed(seed)
    network = PlainResidual(lags, horizon)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    held = [history[:-horizon] for history in histories if len(history) > horizon + 1]
    ahead = np.stack([history[-horizon:] for history in histories if len(history) > horizon + 1])
    flat = np.repeat([[history[-1]] for history in held], horizon, 1)
    naive = float(np.nanmean(smape(ahead, flat))), float(np.nanmean(mase(ahead, flat, scales_of(held))))
    for drawn in batches(histories, horizon, steps, seed):
        values, mask, last, step = Windows.cut(drawn.histories, lags).tensors()
        truth = torch.from_numpy(drawn.futures.astype(np.float32))
        scale = torch.from_numpy(drawn.scales.astype(np.float32))[:, None].clamp(min=1e-6)
        found = last + step * network(values, mask)
        apart = (found - truth).abs()
        relative = 200 * apart / (found.abs() + truth.abs()).clamp(min=1e-6)
        loss = (relative.mean() / naive[0] + (apart / scale).mean() / naive[1]) / 2
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network


@torch.inference_mode()
def predict(network: PlainResidual, histories: Sequence[np.ndarray], lags: int) -> np.ndarray:
    values, mask, last, step = Windows.cut(histories, lags).tensors()
    found: np.ndarray = (last + step * network(values, mask)).numpy().astype(np.float64)
    return found
