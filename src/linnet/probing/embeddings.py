"""What the table of token vectors holds: main directions, neighbours, and the frequencies of numbers.

Legend: V = tokens, W = width, p = numbers 0 .. p-1 that have tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput

LEAST_NUMBERS = 4
STRONGEST = 6  # frequencies, where there are more


@dataclass(frozen=True)
class Components:
    """Main directions of centred vectors: each one's share of the variance, and where each token lies."""

    shares: Tensor  # [components]
    coordinates: Tensor  # [V, components]


def components(table: Tensor, count: int = 8) -> Components:
    """PCA of the vectors [V, W]."""
    centred = table.double() - table.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    variance = values.square()
    shares = variance / variance.sum().clamp(min=1e-30)
    count = min(count, len(values))
    return Components(shares[:count].float(), (left * values)[:, :count].float())


def neighbours(table: Tensor, index: int, count: int = 5) -> list[tuple[int, float]]:
    """The tokens whose vectors point in the most similar directions, with their cosines."""
    unit = table / table.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosines = unit @ unit[index]
    cosines[index] = -2
    best = cosines.topk(min(count, len(table) - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def number_tokens(names: Sequence[str]) -> list[int]:
    """The ids of the tokens 0, 1, 2 and so on, as far as they go without a gap."""
    known = {name: index for index, name in reversed(list(enumerate(names)))}
    found: list[int] = []
    while (name := str(len(found))) in known:
        found.append(known[name])
    return found


def fourier_power(table: Tensor) -> Tensor:
    """Shares [p // 2] of the power of number vectors [p, W] at frequencies 1 .. p // 2; the mean is left out."""
    if len(table) < LEAST_NUMBERS:
        raise BadInput(
            f"frequencies need tokens for the numbers 0 to 3 at least, and {len(table)} of them are there"
        )
    waves = torch.fft.rfft(table.double(), dim=0)[1:]
    power = waves.abs().square().sum(1)
    if len(table) % 2 == 0:
        power[-1] /= 2  # every other frequency stands twice in the full spectrum
    return (power / power.sum().clamp(min=1e-30)).float()


def strongest(power: Tensor) -> float:
    """The share of the six strongest frequencies."""
    return float(power.topk(STRONGEST).values.sum())
