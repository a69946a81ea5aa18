"""Muon in the number format that the device multiplies fast, with matrices of one shape orthogonalised together.

torch's own Muon always multiplies in bfloat16, which a processor without such instructions does a hundred times
slower than float32; everything else is torch's, and the tests compare the two.
Legend: N = matrices of one shape, R = the shorter side, C = the longer side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0, and within 0.3 of 1 after five rounds
ROUNDS = 5
LEAST_NORM = 1e-7


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of these [N, R, C], by Newton-Schulz iteration."""
    a, b, c = QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Muon):
    """torch.optim.Muon with Nesterov momentum, whose products are made in `dtype`.

    A parameter that is named in `joined` holds several matrices, with so many rows each; every one of them is
    made orthogonal by itself.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        dtype: torch.dtype,
        joined: Mapping[Tensor, Sequence[int]] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        super().__init__(params, **settings)
        self.dtype = dtype
        self.joined = joined

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rows = self.joined.get(parameter, parameter.shape[:1])
                    wanted = self._momentum(parameter, group["momentum"]).to(self.dtype)
                    for matrix, update in zip(parameter.split(rows), wanted.split(rows), strict=True):
                        by_shape[matrix.shape].append((matrix, update))
            for moves in by_shape.values():
                self._move(moves, group)
        return loss

    def _move(self, moves: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """All matrices of one shape, each with the update that is to be made orthogonal."""
        rows, columns = moves[0][0].shape
        tall = rows > columns
        updates = torch.stack([update for _, update in moves])
        found = orthogonalized(updates.mT if tall else updates)
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        for (matrix, _), update in zip(moves, found.mT if tall else found, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.sub_(update.to(matrix.dtype) * rate)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum_buffer"], momentum)
