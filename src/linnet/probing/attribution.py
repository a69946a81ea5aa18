"""Direct attribution: what each part adds to a logit, behind the final norm as it is (frozen).

A norm whose scale is frozen is linear, so the parts add up to the logit; before a softcap, where there is one.
Legend: P = parts, B = cases, T = tokens, A = tokens of an answer, W = width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.probing.cases import Cases
from linnet.probing.parts import BIAS, EMBED, writer_taps, writers, written

POSITIONS = "positions"


@dataclass(frozen=True)
class Attribution:
    """`values` [P, B, A] of parts with these names add up to `logits` [B, A]."""

    names: tuple[str, ...]
    values: Tensor
    logits: Tensor


def attribute(model: Model, cases: Cases) -> Attribution:
    """The parts of the answer's logits; of differences to the wrong answer's where there is one."""
    parts = tuple(part for part in writers(model.config) if part.kind != EMBED)
    with evaluating(model):
        kept = run(model, cases)
        adds = [*embeddings(kept), *written(model, kept, parts)]
        final = stream_of(model, kept)
        bias = final - torch.stack(adds).sum(0)  # what nobody above has written: biases of outputs
        direction, constant = directions(model, cases)
        scale, shift = frozen_norm(model.final_norm, final)
        values = torch.stack([cases.at(linear(scale, shift, add)) for add in (*adds, bias)])
        found = (values * direction).sum(-1)
        found[-1] += constant
        if isinstance(model.final_norm, nn.LayerNorm) and model.final_norm.bias is not None:
            found[-1] += (model.final_norm.bias * direction).sum(-1)
        logits = logits_of(model, kept, cases)
    own = (EMBED, POSITIONS) if "hook_pos_embed" in kept else (EMBED,)
    return Attribution((*own, *(part.name for part in parts), BIAS), found, logits)


def run(model: Model, cases: Cases) -> Mapping[str, Tensor]:
    last = f"blocks.{model.config.depth - 1}.hook_resid_post"
    first = tuple(name for name in ("hook_embed", "hook_pos_embed") if name in model.taps())
    keep = (*first, *writer_taps(model.config), last, "ln_final.hook_normalized")
    return model(cases.ids, keep=keep).kept


def embeddings(kept: Mapping[str, Tensor]) -> list[Tensor]:
    return [kept[name] for name in ("hook_embed", "hook_pos_embed") if name in kept]


def stream_of(model: Model, kept: Mapping[str, Tensor]) -> Tensor:
    return kept[f"blocks.{model.config.depth - 1}.hook_resid_post"]


def frozen_norm(norm: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """What the norm multiplies each channel of x [B, T, W] by, and whether it takes off the mean before."""
    weight = norm.get_parameter("weight")
    if isinstance(norm, nn.LayerNorm):
        return weight * (x.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt(), True
    assert isinstance(norm, nn.RMSNorm) and norm.eps is not None
    return weight * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt(), False


def linear(scale: Tensor, shift: bool, part: Tensor) -> Tensor:
    """A part of the residual stream behind the frozen norm."""
    return scale * (part - part.mean(-1, keepdim=True) if shift else part)


def directions(model: Model, cases: Cases) -> tuple[Tensor, Tensor]:
    """The rows of the head that make the measure [B, A, W], and its biases [B, A]."""
    weight, bias = model.head.weight, model.head.bias
    direction = weight[cases.targets]
    constant = torch.zeros_like(direction[..., 0]) if bias is None else bias[cases.targets]
    if cases.wrong is None:
        return direction, constant
    other = torch.zeros_like(constant) if bias is None else bias[cases.wrong]
    return direction - weight[cases.wrong], constant - other


def logits_of(model: Model, kept: Mapping[str, Tensor], cases: Cases) -> Tensor:
    """[B, A]: what is attributed, as the model computes it, before a softcap."""
    hidden = cases.at(kept["ln_final.hook_normalized"])
    direction, constant = directions(model, cases)
    return (hidden * direction).sum(-1) + constant
