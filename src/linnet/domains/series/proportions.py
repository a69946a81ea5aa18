"""A member that learns no filters: how often fixed dilated filters exceed thresholds, and one linear layer.

The filters, and the proportion of steps above a threshold as what is read of each, are those of MiniRocket
(Dempster, Schmidt and Webb, 2021). Thresholds are the mean over training batches of quantiles of what a filter
gives, so that they need no pass over the data of their own, and are stored with the weights.
Legend: B = windows, C = channels, T = steps, P = filters, D = dilations, N = thresholds of a filter, K = classes.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.domains.series.filters import BatchNorm, centred, invariants
from linnet.domains.series.settings import ConvolutionConfig
from linnet.model.layers import Dropout
from linnet.model.taps import Taps

TAPS = 9
PATTERNS = tuple(combinations(range(TAPS), 3))  # taps with the weight 2; all others have -1
GOLDEN = (5**0.5 - 1) / 2
SIZE = 4.0  # of all shares together, in units of their deviations: how fast the linear layer learns
SAMPLE = 512  # values of a batch that quantiles of a filter are taken from


def dilations(window: int) -> list[int]:
    """Powers of two, as long as a filter is no longer than a window; 1 for any window."""
    found = [1]
    while (TAPS - 1) * 2 * found[-1] < window:
        found.append(2 * found[-1])
    return found


def dilated_filters(channels: int, dilation: int) -> Tensor:
    """[P, C, TAPS]: every pattern over some of the channels, drawn by the dilation alone."""
    patterns = torch.full((len(PATTERNS), TAPS), -1.0)
    patterns[torch.arange(len(PATTERNS))[:, None], torch.tensor(PATTERNS)] = 2.0
    random = torch.Generator().manual_seed(dilation)
    counts = (channels + 1.0) ** torch.rand(len(PATTERNS), generator=random)
    order = torch.rand(len(PATTERNS), channels, generator=random).argsort(1)
    read = (order < counts.long()[:, None]).float()
    return read[:, :, None] * patterns[:, None]


def quantile_levels(count: int) -> Tensor:
    """[P, N]: levels between 0 and 1, at equal distances for a filter and other ones for the next."""
    shift = (torch.arange(1, len(PATTERNS) + 1, dtype=torch.float64) * GOLDEN) % 1
    return ((torch.arange(count) + shift[:, None]) / count).float()


class Proportions(nn.Module):
    """Logits [B, K] from shares of steps above thresholds."""

    thresholds: nn.Parameter
    batches: nn.Parameter

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.dilations, self.stride = dilations(config.window), config.steps_between
        count = max(1, config.proportions // (len(PATTERNS) * len(self.dilations)))
        for number, dilation in enumerate(self.dilations):
            filters = dilated_filters(config.inputs + invariants(config.triples), dilation)
            self.register_buffer(f"filters_{number}", filters, persistent=False)
        self.register_buffer("levels", quantile_levels(count), persistent=False)
        shape = (len(self.dilations), len(PATTERNS), count)
        self.thresholds = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.batches = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.width = shape[0] * shape[1] * shape[2]
        self.norm = BatchNorm(self.width)
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(self.width, config.classes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, observed: Tensor, taps: Taps, name: str) -> Tensor:
        """From channels [B, C, T], and marks of the steps that were observed [B, T]."""
        with torch.no_grad():
            shares = self.shares(x * observed[:, None], observed)
        shares = taps.at(f"{name}.shares", shares)
        unit = self.norm(shares[..., None])[..., 0] * (SIZE * self.width**-0.5)
        logits: Tensor = self.out(self.dropout(unit))
        return taps.at(f"{name}.logits", logits)

    def shares(self, x: Tensor, observed: Tensor) -> Tensor:
        """[B, D * P * N]; in training the thresholds move to the quantiles of this batch first."""
        inside = observed[:, :: self.stride] > 0
        if self.training:
            self.batches.add_(1)
        parts = []
        for number, dilation in enumerate(self.dilations):
            filters = self.get_buffer(f"filters_{number}")
            found = F.conv1d(centred(x, TAPS, dilation), filters, stride=self.stride, dilation=dilation)
            if self.training:
                self.follow(number, found)
            found = found.masked_fill(~inside[:, None], -torch.inf)
            thresholds = self.thresholds[number]
            above = [(found > level[:, None]).sum(2) for level in thresholds.unbind(1)]
            parts.append(torch.stack(above, 2).flatten(1))
        return torch.cat(parts, 1) / inside.sum(1, keepdim=True).clamp(min=1)

    def follow(self, number: int, found: Tensor) -> None:
        """Move the thresholds of a dilation to the mean of the quantiles of all batches."""
        values = found.transpose(0, 1).flatten(1)
        values = values[:, :: max(1, values.shape[1] // SAMPLE)].sort(1).values
        index = (self.get_buffer("levels") * values.shape[1]).long().clamp(max=values.shape[1] - 1)
        moved = values.gather(1, index) - self.thresholds[number]
        self.thresholds[number].add_(moved / self.batches)
