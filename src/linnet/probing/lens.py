"""What a model would predict after each of its layers: the logit lens, and the tuned lens.

The logit lens reads the residual stream after each layer through the final norm and the head. The tuned lens
(Belrose et al. 2023) first maps it by an affine translator of each layer. Translators start from the least-squares
map to the last layer and are then trained to predict what the model predicts.
Legend: L = layers, N = tokens, T = steps, W = width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.probing.cases import differentiating

RIDGE = 1e-3  # of the least-squares map, times the mean square of the residual stream
CHUNK = 1 << 22  # logits that exist at once


@dataclass(frozen=True)
class Training:
    """How translators are trained."""

    steps: int = 150
    batch: int = 256  # tokens of a step
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Translators:
    """An affine map [W, W] and [W] of each residual tap but the last."""

    maps: Mapping[str, tuple[Tensor, Tensor]]

    def __call__(self, tap: str, residual: Tensor) -> Tensor:
        if tap not in self.maps:
            return residual
        weight, bias = self.maps[tap]
        return residual @ weight + bias


IDENTITY = Translators({})


@dataclass(frozen=True)
class Lens:
    """Log-probabilities [L + 1, T, V] of one row, before the first layer and after each."""

    taps: tuple[str, ...]
    logprobs: Tensor

    def divergence(self) -> Tensor:
        """Nats [L + 1, T] from the last prediction to that of each layer."""
        last = self.logprobs[-1]
        return (last.exp() * (last - self.logprobs)).sum(-1).clamp(min=0)  # rounding may go below

    def entropy(self) -> Tensor:
        """Nats [L + 1, T]."""
        return torch.special.entr(self.logprobs.exp()).sum(-1)


def residual_taps(model: Model) -> tuple[str, ...]:
    """The residual stream before the first layer and after each."""
    return ("blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.config.depth)))


def read(model: Model, residual: Tensor) -> Tensor:
    """Log-probabilities of this residual stream [..., W], through the final norm and the head."""
    return model.head(model.final_norm(residual)).float().log_softmax(-1)


def lens(model: Model, ids: Tensor, translators: Translators = IDENTITY) -> Lens:
    """The lens of one row of ids [T]."""
    taps = residual_taps(model)
    with evaluating(model):
        kept = model(ids[None].to(model.device), keep=taps).kept
        found = [read(model, translators(tap, kept[tap][0].float())).cpu() for tap in taps]
    return Lens(taps, torch.stack(found))


def residuals(model: Model, ids: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """The residual stream [N, W] at the counted steps of these rows [B, T]."""
    taps, found = residual_taps(model), dict[str, list[Tensor]]()
    with evaluating(model):
        for rows, marks in zip(ids.split(32), counted.split(32), strict=True):
            kept = model(rows.to(model.device), keep=taps).kept
            for tap in taps:
                found.setdefault(tap, []).append(kept[tap].float()[marks.to(model.device)])
    return {tap: torch.cat(parts) for tap, parts in found.items()}


def divergences(model: Model, streams: Mapping[str, Tensor], translators: Translators = IDENTITY) -> list[float]:
    """Mean nats over tokens from the model's own prediction to that of each tap."""
    *_, last = streams
    rows = max(1, CHUNK // model.config.vocabulary)
    found = []
    with evaluating(model):
        for tap, stream in streams.items():
            total = 0.0
            for here, final in zip(stream.split(rows), streams[last].split(rows), strict=True):
                own, predicted = read(model, final), read(model, translators(tap, here))
                total += float((own.exp() * (own - predicted)).sum())
            found.append(total / len(stream))
    return found


def tuned(model: Model, streams: Mapping[str, Tensor], training: Training = Training()) -> Translators:
    """Translators of these residual streams, least squares first and then by the divergence."""
    *taps, last = streams
    count = len(streams[last])
    if count < 2 * model.config.width:
        raise BadInput(f"a tuned lens needs at least {2 * model.config.width} tokens to learn from, not {count}")
    maps = {tap: _least_squares(streams[tap], streams[last]) for tap in taps}
    leaves = [leaf.requires_grad_() for pair in maps.values() for leaf in pair]
    optim = torch.optim.Adam(leaves, lr=training.lr)
    random = torch.Generator().manual_seed(training.seed)
    with differentiating(model):
        for step in range(training.steps):
            chosen = torch.randint(count, (training.batch,), generator=random)
            for group in optim.param_groups:
                group["lr"] = training.lr * (1 - step / training.steps)
            _move(model, {tap: streams[tap][chosen] for tap in streams}, Translators(maps), optim)
    return Translators({tap: (weight.detach(), bias.detach()) for tap, (weight, bias) in maps.items()})


def _move(
    model: Model, streams: Mapping[str, Tensor], translators: Translators, optim: torch.optim.Optimizer
) -> None:
    *taps, last = streams
    with torch.no_grad():
        own = read(model, streams[last])
    for tap in taps:
        predicted = read(model, translators(tap, streams[tap]))
        ((own.exp() * (own - predicted)).sum(-1).mean()).backward()
    optim.step()
    optim.zero_grad(set_to_none=True)


def _least_squares(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map [W, W], [W] from inputs to what is wanted [N, W], shrunk towards the identity."""
    inputs, wanted = inputs.double(), wanted.double()
    middle, target = inputs.mean(0), wanted.mean(0)
    centred = inputs - middle
    width = inputs.shape[1]
    ridge = RIDGE * float(centred.square().mean()) * len(inputs)
    gram = centred.T @ centred + ridge * torch.eye(width, dtype=torch.float64, device=inputs.device)
    change = torch.linalg.solve(gram, centred.T @ (wanted - target - centred))
    weight = torch.eye(width, dtype=torch.float64, device=inputs.device) + change
    return weight.float(), (target - middle @ weight).float()
