"""The classifier: filters along time, pooled over a window, averaged over members.

Fixed filters find rises, falls and peaks of several lengths and have no parameters; free ones learn. Dilated
layers mix steps within a channel first and channels after it, which takes few parameters.
Legend: M = members, B = windows, T = steps, C = channels of a series, W = width, K = classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.data import NEXT
from linnet.domains.series.filters import BatchNorm, centred, fixed_filters, invariants, with_invariants
from linnet.domains.series.proportions import Proportions
from linnet.domains.series.settings import ConvolutionConfig
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.inputs import Inputs, Output
from linnet.model.layers import Dropout
from linnet.model.taps import Edit, Taps

MAPS = ("row", "channel", "step")


class Stem(nn.Module):
    """Fixed and free filters over the channels of a series, side by side."""

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.inputs = config.inputs + invariants(config.triples)
        self.fixed, self.kernels, self.stride = config.fixed, config.kernels, config.steps_between
        for number, filters in enumerate(fixed_filters(config.fixed)):
            self.register_buffer(f"fixed_{number}", filters.repeat(self.inputs, 1, 1), persistent=False)
        free = [
            nn.Conv1d(self.inputs, config.width, length, config.steps_between, bias=False)
            for length in config.kernels
        ]
        self.free = nn.ModuleList(free)
        whole = config.width * len(config.kernels) + 3 * self.inputs * len(config.fixed)
        self.norm = BatchNorm(whole)
        self.mix = nn.Conv1d(whole, config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, W, T / stride] from [B, C, T]."""
        parts = [filters(centred(x, length)) for filters, length in zip(self.free, self.kernels, strict=True)]
        for number, length in enumerate(self.fixed):
            filters = self.get_buffer(f"fixed_{number}")
            parts.append(F.conv1d(centred(x, length), filters, stride=self.stride, groups=self.inputs))
        mixed: Tensor = self.mix(F.relu(self.norm(torch.cat(parts, 1))))
        return mixed


class DilatedLayer(nn.Module):
    """x + a filter along time of each channel, then a mixture of channels."""

    def __init__(self, config: ConvolutionConfig, dilation: int) -> None:
        super().__init__()
        width, self.kernel, self.dilation = config.width, config.kernel, dilation
        self.norm = BatchNorm(width)
        self.along = nn.Conv1d(width, width, config.kernel, dilation=dilation, groups=width, bias=False)
        self.across = nn.Conv1d(config.width, config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.along(centred(F.relu(self.norm(x)), self.kernel, self.dilation))
        return x + self.across(mixed)


class Classifier(nn.Module):
    """Logits [B, K] of one member."""

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.stem = Stem(config)
        self.layers = nn.ModuleList(DilatedLayer(config, 2 ** (layer + 1)) for layer in range(config.depth))
        self.norm = BatchNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(2 * config.width, config.classes)

    def forward(self, x: Tensor, observed: Tensor, taps: Taps, name: str) -> Tensor:
        """From channels [B, C, T], and marks of the steps that were observed [B, T]."""
        inside = observed[:, None]
        x = self.stem(x * inside)
        inside = inside[..., :: self.stem.stride]
        x = taps.at(f"{name}.stem", x * inside)
        for number, layer in enumerate(self.layers):
            x = taps.at(f"{name}.layers.{number}", layer(x) * inside)
        x = F.relu(self.norm(x))
        mean = (x * inside).sum(2) / inside.sum(2).clamp(min=1)
        most = x.masked_fill(inside == 0, 0.0).amax(2)
        logits: Tensor = self.out(self.dropout(torch.cat([mean, most], 1)))
        return taps.at(f"{name}.logits", logits)


class Convolution(Network):
    """Members with weights of their own; probabilities are the mean of theirs, at a temperature fitted to it."""

    config: ConvolutionConfig
    temperature: nn.Parameter

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.config = config
        members: list[nn.Module] = [Classifier(config) for _ in range(config.members)]
        self.members = nn.ModuleList(members + [Proportions(config)] * bool(config.proportions))
        self.temperature = nn.Parameter(torch.ones(1), requires_grad=False)

    def taps(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for member in range(self.config.members):
            found[f"members.{member}.stem"] = MAPS
            found |= {f"members.{member}.layers.{layer}": MAPS for layer in range(self.config.depth)}
            found[f"members.{member}.logits"] = ("row", "class")
        if self.config.proportions:
            found[f"members.{self.config.members}.shares"] = ("row", "share")
            found[f"members.{self.config.members}.logits"] = ("row", "class")
        return found

    def groups(self) -> Groups:
        return grouped(self, embedding_tables(self), {})

    def forward(
        self,
        inputs: Inputs | Tensor | Batch,
        state: Any = None,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> Output:
        """`hidden` [M, B, K] has the log-probabilities of each member."""
        assert isinstance(inputs, Mapping), "the classifier reads batches of windows"
        taps = Taps(self.taps, keep, edit)
        x, observed = with_invariants(inputs["values"], self.config.triples), inputs["observed"]
        logits = [member(x, observed, taps, f"members.{n}") for n, member in enumerate(self.members)]
        return Output(torch.stack(logits).float().log_softmax(-1), None, taps.kept)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Nats of the classes, smoothed and summed over members while training; of their mean when judged."""
        smoothing = self.config.smoothing if self.training else 0.0
        found = output.hidden if self.training else mean_of_members(output.hidden)[None]
        targets = batch[NEXT + "class"]
        right = -found.gather(-1, targets.expand(len(found), -1)[..., None])[..., 0]
        nats = (1 - smoothing) * right - smoothing * found.mean(-1)
        return (nats.sum(0) * batch["weights"]).sum()


def mean_of_members(found: Tensor) -> Tensor:
    """[B, K]: the log of the mean probability, from log-probabilities [M, B, K]."""
    return found.logsumexp(0) - torch.log(torch.tensor(float(len(found)), device=found.device))
