"""Interchange interventions: does a model hold a variable where a hypothesis says, and use it so?

A hypothesis gives a variable for each prompt, and the answer for each value of it. What a tap holds at one step of
a base prompt is replaced, within a subspace, by what it holds there for a source prompt; the model should then
answer as if the base had the variable of the source. Subspaces of 1 to d/2 dimensions are learned on some pairs
and scored on others (distributed alignment search, Geiger et al. 2024). Beside them stand a random subspace of the
same size, the whole space, and a subspace learned in the network with fresh weights.
Legend: n = pairs, T = steps, W = width of the tap, d = dimensions of the subspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.errors import BadInput
from linnet.intervals import wilson
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.probing.cases import differentiating
from linnet.probing.probes import refuse_other_axes

RIDGE = 1e-4  # of the mean change of a channel, where directions are compared


@dataclass(frozen=True)
class Pairs:
    """Base and source prompts [n, T], the step [n] whose prediction is read, and the ids expected there.

    `own` is right for the base as it is, `wanted` for the base with the variable of the source.
    """

    base: Tensor
    source: Tensor
    step: int
    own: Tensor
    wanted: Tensor

    @property
    def differing(self) -> Tensor:
        """bool [n]: where the variable of the source changes the answer."""
        return self.own != self.wanted

    def select(self, chosen: Tensor | slice) -> Pairs:
        return Pairs(self.base[chosen], self.source[chosen], self.step, self.own[chosen], self.wanted[chosen])


@dataclass(frozen=True)
class Settings:
    dimensions: tuple[int, ...] = (1, 2, 4)
    steps: int = 150
    batch: int = 64
    lr: float = 0.05
    seed: int = 0
    share: float = 0.5  # of the pairs that subspaces are learned on


@dataclass(frozen=True)
class InterchangeResult:
    """Shares of scored pairs answered as the hypothesis says; `changed`: of those whose answer has to change."""

    subspace: str  # learned, random, whole, untrained
    dimensions: int
    value: float
    low: float
    high: float
    changed: float


def swapped(source: Tensor, step: int, basis: Tensor) -> Callable[[Tensor], Tensor]:
    """An edit: within the subspace of this basis [W, d], the values at one step become those of the source."""

    def edit(values: Tensor) -> Tensor:
        flat = values.flatten(2)
        here = flat[:, step]
        change = (source - here) @ basis @ basis.T
        flat = torch.cat((flat[:, :step], (here + change)[:, None], flat[:, step + 1 :]), 1)
        return flat.view(values.shape)

    return edit


def held(model: Model, ids: Tensor, tap: str, step: int) -> Tensor:
    """What a tap holds at one step, [n, W]."""
    with evaluating(model):
        kept = model(ids.to(model.device), keep=(tap,)).kept[tap]
    return kept.flatten(2)[:, step].clone()


def logits_after(model: Model, pairs: Pairs, tap: str, step: int, basis: Tensor, source: Tensor) -> Tensor:
    """Logits [n, V] at the step that is read, with the subspace swapped at step `step`."""
    hidden = model(pairs.base.to(model.device), edit=((tap, swapped(source, step, basis)),)).hidden
    return model.head(hidden[:, pairs.step])


def interchange(
    model: Model, pairs: Pairs, tap: str, step: int, settings: Settings = Settings(), fresh: Model | None = None
) -> list[InterchangeResult]:
    """Every size of subspace with its controls; `fresh` is the network before it was trained.

    In that one only the largest subspace is learned, which can do whatever a smaller one can.
    """
    width = _checked(model, pairs, tap, step, settings)
    cut = round(settings.share * len(pairs.base))
    learning, scored = pairs.select(slice(None, cut)), pairs.select(slice(cut, None))
    found = [_scored(model, scored, tap, step, torch.eye(width), "whole")]
    for size in settings.dimensions:
        found.append(
            _scored(model, scored, tap, step, learned(model, learning, tap, step, size, settings), "learned")
        )
        found.append(_scored(model, scored, tap, step, random_basis(width, size, settings.seed), "random"))
    if fresh is not None:
        basis = learned(fresh, learning, tap, step, max(settings.dimensions), settings)
        found.append(_scored(fresh, scored, tap, step, basis, "untrained"))
    return found


def _checked(model: Model, pairs: Pairs, tap: str, step: int, settings: Settings) -> int:
    """The width of the tap, after what cannot be asked is refused."""
    refuse_other_axes(model, tap, "values of single positions can be exchanged")
    if pairs.base.shape != pairs.source.shape:
        raise BadInput(
            f"base prompts have {pairs.base.shape[1]} tokens and source prompts {pairs.source.shape[1]}; "
            "what is exchanged has to stand at the same step"
        )
    if not 0 <= step < pairs.base.shape[1]:
        raise BadInput(f"there is no step {step}; steps are counted from 0 to {pairs.base.shape[1] - 1}")
    width = held(model, pairs.base[:1], tap, step).shape[1]
    most = max(1, width // 2)
    if wrong := [size for size in settings.dimensions if not 1 <= size <= most]:
        raise BadInput(f"a subspace of {tap} has 1 to {most} dimensions (half of its {width}), not {wrong[0]}")
    return width


def _scored(model: Model, pairs: Pairs, tap: str, step: int, basis: Tensor, name: str) -> InterchangeResult:
    source = held(model, pairs.source, tap, step)
    with evaluating(model):
        predicted = logits_after(model, pairs, tap, step, basis.to(model.device), source).argmax(-1).cpu()
    right = predicted == pairs.wanted
    low, high = wilson(int(right.sum()), len(right))
    changed = float(right[pairs.differing].float().mean()) if pairs.differing.any() else float("nan")
    size = basis.shape[1]
    return InterchangeResult(name, size, float(right.float().mean()), low, high, changed)


def random_basis(width: int, size: int, seed: int) -> Tensor:
    """An orthonormal basis [W, d] of a random subspace."""
    random = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, size, generator=random))[0]


def first_basis(change: Tensor, differing: Tensor, size: int) -> Tensor:
    """Where learning starts: directions [W, d] that change where answers differ and stay where they do not.

    A random start would get no gradient from a model whose answers are saturated.
    """
    spread = [(part.T @ part).double() / max(1, len(part)) for part in (change[differing], change[~differing])]
    floor = RIDGE * torch.trace(spread[0] + spread[1]) / len(spread[0]) + 1e-12
    still = torch.linalg.cholesky(spread[1] + floor * torch.eye(len(spread[1]), dtype=torch.float64))
    whitened = torch.linalg.solve_triangular(still, spread[0], upper=False)
    whitened = torch.linalg.solve_triangular(still, whitened.T, upper=False)
    _, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    directions = torch.linalg.solve_triangular(still.T, vectors[:, -size:].flip(1), upper=True)
    return torch.linalg.qr(directions)[0].float()


def learned(model: Model, pairs: Pairs, tap: str, step: int, size: int, settings: Settings) -> Tensor:
    """The basis of a subspace whose exchange makes the wanted answers likeliest; weights do not move."""
    source = held(model, pairs.source, tap, step)
    free = first_basis((source - held(model, pairs.base, tap, step)).cpu(), pairs.differing, size)
    free = free.to(model.device).requires_grad_()
    optim = torch.optim.Adam([free], lr=settings.lr)
    random = torch.Generator().manual_seed(settings.seed)
    with differentiating(model):
        for number in range(settings.steps):
            chosen = torch.randint(len(pairs.base), (settings.batch,), generator=random)
            basis = torch.linalg.qr(free)[0]
            logits = logits_after(model, pairs.select(chosen), tap, step, basis, source[chosen])
            loss = F.cross_entropy(logits.float(), pairs.wanted[chosen].to(model.device))
            for group in optim.param_groups:
                group["lr"] = settings.lr * (1 - number / settings.steps)
            optim.zero_grad()
            loss.backward()
            optim.step()
    return torch.linalg.qr(free.detach())[0]
