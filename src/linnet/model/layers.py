"""Norms, positions and feed-forwards.

Legend: B = rows, T = tokens, W = model width, F = feed-forward width, D = head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.config import ModelConfig
from linnet.model.taps import Taps


def norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The norm that this model uses, over the model width unless told otherwise."""
    size = config.width if width is None else width
    if config.norm.kind == "rms":
        return nn.RMSNorm(size, eps=config.norm.eps)
    return nn.LayerNorm(size, eps=config.norm.eps, bias=config.norm.bias)


def rotation(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., T, D / 2] of the rotary angles at these positions [..., T]."""
    rates = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angles = positions.to(torch.float32)[..., None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of x [B, H, T, D] by its angle; cosines and sines are [1 or B, 1, T, D/2]."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """The fixed position vectors [..., W]: sines in the first half, cosines in the second."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000.0) / half))
    angles = positions.to(torch.float32)[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :width]


class FeedForward(nn.Module):
    """W -> F -> W, gated or not; the gate and the value come from one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.feedforward.kind
        self.gated = config.gated
        hidden, bias = config.feedforward_width, config.feedforward.bias
        self.up = nn.Linear(config.width, 2 * hidden if self.gated else hidden, bias=bias)
        self.down = nn.Linear(hidden, config.width, bias=bias)

    def forward(self, x: Tensor, taps: Taps, name: str) -> Tensor:
        pre = taps.at(f"{name}.hook_pre", self.up(x))
        return self.down(taps.at(f"{name}.hook_post", self._activate(pre)))

    def _activate(self, pre: Tensor) -> Tensor:
        if self.kind == "relu2":
            return F.relu(pre).square()
        if self.kind == "gelu":
            return F.gelu(pre)
        gate, value = pre.chunk(2, dim=-1)
        return (F.silu(gate) if self.kind == "swiglu" else F.gelu(gate)) * value
