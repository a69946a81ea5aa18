"""What the members of the classifier share: normalisation over a batch, edges of a window, fixed filters.

Legend: B = windows, T = steps, C = channels of a series, W = width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.1
TINY = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation of [B, W, T] whose running mean and variance are stored with the weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and x.shape[0] * x.shape[2] > 1
        return F.batch_norm(
            x, self.mean.data, self.variance.data, self.weight, self.bias, training, MOMENTUM, TINY
        )


def fixed_filters(lengths: tuple[int, ...]) -> list[Tensor]:
    """[3, 1, length] each: a rise, a fall and a peak, of zero mean and unit norm."""
    found = []
    for length in lengths:
        steps = torch.linspace(-1, 1, length)
        rise = torch.sign(steps)
        peak = 1 - steps.abs()
        filters = torch.stack([rise, -rise, peak - peak.mean()])
        found.append((filters / filters.norm(dim=1, keepdim=True).clamp(min=TINY))[:, None])
    return found


def centred(x: Tensor, length: int, dilation: int = 1) -> Tensor:
    """Zeros on both sides, so that filters of this length stand around their step."""
    around = (length - 1) * dilation
    return F.pad(x, (around // 2, around - around // 2))


def with_lengths(values: Tensor, triples: int) -> Tensor:
    """[B, C, T] from windows [B, T, C]: the channels, and the lengths of this many triples of them."""
    x = values.transpose(1, 2)
    if not triples:
        return x
    lengths = x.unflatten(1, (triples, 3)).square().sum(2).add(TINY).sqrt()
    return torch.cat([x, lengths], 1)
