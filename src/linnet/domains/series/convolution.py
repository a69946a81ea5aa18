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
from linnet.domains.series.settings import ConvolutionConfig
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.inputs import Inputs, Output
from linnet.model.layers import Dropout
from linnet.model.taps import Edit, Taps

MAPS = ("row", "channel", "step")
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


class Stem(nn.Module):
    """Fixed and free filters over the channels of a series, side by side."""

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.inputs = config.inputs + config.triples
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
        self.triples = config.triples
        self.stem = Stem(config)
        self.layers = nn.ModuleList(DilatedLayer(config, 2 ** (layer + 1)) for layer in range(config.depth))
        self.norm = BatchNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(2 * config.width, config.classes)

    def forward(self, values: Tensor, observed: Tensor, taps: Taps, name: str) -> Tensor:
        x = values.transpose(1, 2)
        if self.triples:
            lengths = x.unflatten(1, (self.triples, 3)).square().sum(2).add(TINY).sqrt()
            x = torch.cat([x, lengths], 1)
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
    """Members with weights of their own; probabilities are the mean of theirs."""

    config: ConvolutionConfig

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Classifier(config) for _ in range(config.members))

    def taps(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for member in range(self.config.members):
            found[f"members.{member}.stem"] = MAPS
            found |= {f"members.{member}.layers.{layer}": MAPS for layer in range(self.config.depth)}
            found[f"members.{member}.logits"] = ("row", "class")
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
        values, observed = inputs["values"], inputs["observed"]
        logits = [member(values, observed, taps, f"members.{n}") for n, member in enumerate(self.members)]
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
