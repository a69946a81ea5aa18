"""What the members of the classifier share: normalisation over a batch, edges of a window, fixed filters.

Legend: B = windows, T = steps, C = channels of a series, W = width.
"""

from __future__ import annotations

from itertools import combinations

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


def with_invariants(values: Tensor, triples: int) -> Tensor:
    """[B, C + invariants, T] from windows [B, T, C]: the channels, and what no turn of a sensor changes.

    That is the length of each triple of channels, the length of its moving average, and for each two triples how
    far the average of the second goes along the average of the first: of an accelerometer and a gyroscope the
    rate of turning about the vertical, with and without its sign.
    """
    x = values.transpose(1, 2)
    if not triples:
        return x
    vectors = x.unflatten(1, (triples, 3))
    smooth = moving_average(x).unflatten(1, (triples, 3))
    lengths, smooth_lengths = length(vectors), length(smooth)
    parts = [x, lengths, smooth_lengths]
    for one, other in combinations(range(triples), 2):
        along = (smooth[:, one] * smooth[:, other]).sum(1) / smooth_lengths[:, one]
        parts += [along[:, None], along.abs()[:, None]]
    return torch.cat(parts, 1)


def invariants(triples: int) -> int:
    """How many channels `with_invariants` adds."""
    return 2 * triples + triples * (triples - 1)


def length(vectors: Tensor) -> Tensor:
    """[B, N, T] of [B, N, 3, T]."""
    return vectors.square().sum(2).add(TINY).sqrt()


def moving_average(x: Tensor) -> Tensor:
    """Of [B, C, T] over a quarter of the window around each step; at the edges over what there is."""
    wide = x.shape[2] // 8
    return F.avg_pool1d(x, 2 * wide + 1, 1, wide, count_include_pad=False)
