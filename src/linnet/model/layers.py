"""Norms, positions and feed-forwards.

Legend: B = rows, T = tokens, W = model width, F = feed-forward width, D = head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model import dropping, kernels
from linnet.model.config import ModelConfig, RotaryScaling
from linnet.model.taps import Taps


def norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The norm that this model uses, over the model width unless told otherwise."""
    size = config.width if width is None else width
    if config.norm.kind == "rms":
        return nn.RMSNorm(size, eps=config.norm.eps)
    return nn.LayerNorm(size, eps=config.norm.eps, bias=config.norm.bias)


class Embedding(nn.Embedding):
    """A table of vectors."""

    def forward(self, ids: Tensor) -> Tensor:
        return kernels.embed(self.weight, ids)


class Dropout(nn.Module):
    """Zero a share of the values in training, and scale up the rest; `entries` as in `dropping.drop`."""

    def __init__(self, share: float, *, entries: bool = False) -> None:
        super().__init__()
        self.share, self.entries = share, entries

    def forward(self, x: Tensor) -> Tensor:
        return dropping.drop(x, self.share, self.training, entries=self.entries)


def rotation(
    positions: Tensor, width: int, base: float, scaling: RotaryScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., T, 2, R / 2] of the rotary angles at these positions [..., T], R = `width`.

    The sines of the first half have the other sign, so that both halves add theirs.
    """
    # In the order of operations that other toolkits use too: the angles of far positions magnify each rounding.
    rates = 1.0 / base ** (torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    if scaling is not None:
        rates = slowed(rates, scaling)
    return kernels.angles(positions, torch.stack((-rates, rates)))


def slowed(rates: Tensor, scaling: RotaryScaling) -> Tensor:
    """Rotary rates for rows longer than those of training, in the way that `scaling` says."""
    slow = rates / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.context * rates / (2 * math.pi)  # in the context of training
    share = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - share) * slow + share * rates


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + R/2) of x [B, H, T, D] by its angle.

    The tables [1 or B, 1, T, 2, R/2] are those of `rotation`. What lies beyond the first R of D values stays.
    """
    turning = 2 * cosines.shape[-1]
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    if turning == x.shape[-1]:
        return kernels.turned(x, cosines, sines)
    return torch.cat((kernels.turned(x[..., :turning], cosines, sines), x[..., turning:]), dim=-1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """The fixed position vectors [..., W]: sines in the first half, cosines in the second."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000.0) / half))
    angles = positions.to(torch.float32)[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :width]


class Joined(nn.Linear):
    """Several maps of one input, made by one product: each has its own rows of the weight."""

    def __init__(self, width: int, widths: Sequence[int], bias: bool) -> None:
        super().__init__(width, sum(widths), bias=bias)
        self.widths = tuple(widths)


class FeedForward(nn.Module):
    """W -> F -> W, gated or not; the gate and the value come from one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.feedforward.kind
        self.gated = config.gated
        self.approximate = "tanh" if self.kind.endswith("_tanh") else "none"
        hidden, bias = config.feedforward_width, config.feedforward.bias
        self.up = Joined(config.width, (hidden, hidden) if self.gated else (hidden,), bias)
        self.down = nn.Linear(hidden, config.width, bias=bias)

    def forward(self, x: Tensor, taps: Taps, name: str) -> Tensor:
        post = self._gated(x, taps, name) if self.gated else self._plain(x, taps, name)
        return self.down(taps.at(f"{name}.hook_post", post))

    def _plain(self, x: Tensor, taps: Taps, name: str) -> Tensor:
        pre = taps.at(f"{name}.hook_pre", self.up(x))
        if self.kind == "relu2":
            return F.relu(pre).square()
        return F.gelu(pre, approximate=self.approximate)

    def _gated(self, x: Tensor, taps: Taps, name: str) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        gate, value = taps.at(f"{name}.hook_pre", gate), taps.at(f"{name}.hook_pre_linear", value)
        return (F.silu(gate) if self.kind == "swiglu" else F.gelu(gate, approximate=self.approximate)) * value
