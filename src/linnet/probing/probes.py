"""Probes: whether a label can be read from the values at a tap by a linear map, and what that would be worth.

A probe is trained on some rows and scored on others. Beside its accuracy stand: what the majority class reaches;
what a table over (token, position) reaches, which reads no model at all; and the same probe on a control task
(Hewitt and Liang 2019), where every token type has a random label of its own: a probe that is as good there has
memorised. Intervals are over rows, since the steps of a row are not independent.
Legend: N = rows, T = steps, M = labelled steps, C = channels, K = classes, k = channels of a sparse probe.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.errors import BadInput, refuse_unknown
from linnet.intervals import ratio_interval
from linnet.model.contract import Network, evaluating

UNLABELLED = -1
STEPS = 60  # of L-BFGS
CHUNK = 64  # rows that are read together


@dataclass(frozen=True)
class Labelled:
    """Rows of ids [N, T] and a label 0 .. K-1 at each step, -1 where there is none."""

    ids: Tensor
    labels: Tensor
    names: tuple[str, ...]  # of the classes
    lengths: Tensor | None = None  # int64 [N]; None = all T steps

    @property
    def classes(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Settings:
    """How probes are trained and on what share of the rows; the rest scores them."""

    share: float = 0.7
    penalty: float = 1e-3  # times the squared weights, in nats a step
    sparse: tuple[int, ...] = (1, 4, 16)
    seed: int = 0


@dataclass(frozen=True)
class Accuracy:
    """Over the labelled steps of the scored rows, with a 95 % interval over rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ProbeResult:
    """One tap. `chance` is what guesses with the probe's own frequencies would reach."""

    tap: str
    linear: Accuracy
    control: Accuracy
    sparse: Mapping[int, Accuracy]
    chance: float
    channels: tuple[int, ...]  # of the sparsest probe

    @property
    def selectivity(self) -> float:
        return self.linear.value - self.control.value


@dataclass(frozen=True)
class Baselines:
    majority: Accuracy
    token: Accuracy
    token_and_position: Accuracy


@dataclass(frozen=True)
class Split:
    """The labelled steps of the trained and of the scored rows."""

    data: Labelled
    steps: Tensor  # bool [N, T]
    train: Tensor  # bool [M]

    @classmethod
    def of(cls, data: Labelled, settings: Settings) -> Split:
        """Rows are parted at random; a part in which all labels are the same is refused."""
        count = len(data.ids)
        if data.classes < 2:
            raise BadInput(f"a probe needs two classes or more, and all labels are {data.names[0]!r}")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[order[: max(1, round(settings.share * count))]] = True
        steps = data.labels != UNLABELLED
        split = cls(data, steps, chosen[:, None].expand_as(steps)[steps])
        for name, labels in (("trained", split.labels[split.train]), ("scored", split.labels[~split.train])):
            if len(labels.unique()) < 2:
                found = f"all labels are {data.names[int(labels[0])]!r}" if len(labels) else "there is no label"
                raise BadInput(f"in the {name} rows {found}: a probe needs two classes there; give more rows")
        return split

    @property
    def labels(self) -> Tensor:
        return self.data.labels[self.steps]

    @property
    def tokens(self) -> Tensor:
        return self.data.ids[self.steps]

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.steps.shape[1]).expand_as(self.steps)[self.steps]

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.steps))[:, None].expand_as(self.steps)[self.steps]

    def accuracy(self, predicted: Tensor, labels: Tensor | None = None) -> Accuracy:
        """Of what was predicted at the scored steps."""
        wanted = (self.labels if labels is None else labels)[~self.train]
        right = (predicted == wanted).double().numpy()
        rows = self.rows[~self.train].numpy()
        sums, counts = np.bincount(rows, right), np.bincount(rows)
        low, high = ratio_interval(sums[counts > 0], counts[counts > 0].astype(float))
        return Accuracy(float(right.mean()), max(0.0, low), min(1.0, high))


def values_at(network: Network, data: Labelled, taps: Sequence[str], head: int | None = None) -> dict[str, Tensor]:
    """What these taps hold at the labelled steps, [M, C]; of one head where the tap has heads."""
    for tap in taps:
        refuse_other_axes(network, tap, "a probe reads values of single positions")
    marks = data.labels != UNLABELLED
    found: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    with evaluating(network):
        for rows, wanted in zip(data.ids.split(CHUNK), marks.split(CHUNK), strict=True):
            kept = network(rows.to(network.device), keep=tuple(taps)).kept
            for tap in taps:
                found[tap].append(_of_head(kept[tap].float().cpu(), head, tap)[wanted])
    return {tap: torch.cat(parts) for tap, parts in found.items()}


def refuse_other_axes(network: Network, tap: str, words: str) -> None:
    """Refuse what is no tap, and one without a value for each position."""
    table = network.taps()
    refuse_unknown(tap, table, "this model has no tap")
    if table[tap][:2] != ("row", "position"):
        raise BadInput(f"{tap} has the axes {', '.join(table[tap])}; {words}")


def _of_head(values: Tensor, head: int | None, tap: str) -> Tensor:
    if values.ndim == 3:
        if head is not None:
            raise BadInput(f"{tap} has no heads; a head can be chosen of attn.hook_z, attn.hook_q and so on")
        return values
    if head is None:
        return values.flatten(2)
    if not 0 <= head < values.shape[2]:
        raise BadInput(f"{tap} has no head {head}; heads are counted from 0 to {values.shape[2] - 1}")
    return values[:, :, head]


def baselines(split: Split) -> Baselines:
    """What can be predicted without a model."""
    labels, train = split.labels, split.train
    majority = int(labels[train].mode().values)
    constant = torch.full((int((~train).sum()),), majority)
    return Baselines(
        split.accuracy(constant),
        split.accuracy(_table(split, (split.tokens,))),
        split.accuracy(_table(split, (split.tokens, split.positions), (split.tokens,))),
    )


def _table(split: Split, *keys: tuple[Tensor, ...]) -> Tensor:
    """The most common label of each key in the trained rows, by the first kind of key that was seen there."""
    labels, train = split.labels.tolist(), split.train.tolist()
    predicted = [int(split.labels[split.train].mode().values)] * len(labels)
    for kind in reversed(keys):
        named = list(zip(*(part.tolist() for part in kind), strict=True))
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for name, label, known in zip(named, labels, train, strict=True):
            if known:
                counts[name][label] += 1
        predicted = [
            counts[name].most_common(1)[0][0] if name in counts else old
            for name, old in zip(named, predicted, strict=True)
        ]
    return torch.tensor(predicted)[~split.train]


def control_labels(split: Split, seed: int) -> Tensor:
    """A label of its own for every token type, drawn with the frequencies of the true ones."""
    random = torch.Generator().manual_seed(seed)
    labels = split.labels[torch.randint(len(split.labels), (int(split.tokens.max()) + 1,), generator=random)]
    return labels[split.tokens]


def shuffled(data: Labelled, seed: int) -> Labelled:
    """The same labels at other labelled steps: nothing can be read from these."""
    marks = data.labels != UNLABELLED
    found = data.labels[marks]
    labels = data.labels.clone()
    labels[marks] = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))]
    return Labelled(data.ids, labels, data.names, data.lengths)


def probe(split: Split, tap: str, values: Tensor, settings: Settings = Settings()) -> ProbeResult:
    """Train probes on these values [M, C] and score them."""
    classes, labels = split.data.classes, split.labels
    predicted = fitted(values, labels, split.train, classes, settings.penalty)
    control = control_labels(split, settings.seed)
    memorised = fitted(values, control, split.train, classes, settings.penalty)
    order = most_different(values[split.train], labels[split.train], classes)
    sparse = {
        k: split.accuracy(fitted(values[:, order[:k]], labels, split.train, classes, settings.penalty))
        for k in settings.sparse
        if k < values.shape[1]
    }
    wanted = labels[~split.train]
    shares = [torch.bincount(part, minlength=classes) / len(part) for part in (predicted, wanted)]
    channels = tuple(order[: min(settings.sparse, default=0)].tolist())
    return ProbeResult(
        tap,
        split.accuracy(predicted),
        split.accuracy(memorised, control),
        sparse,
        float(shares[0] @ shares[1]),
        channels,
    )


def fitted(values: Tensor, labels: Tensor, train: Tensor, classes: int, penalty: float) -> Tensor:
    """What a linear map says at the scored steps, after multinomial regression on the trained ones."""
    middle, scale = values[train].mean(0), values[train].std(0).clamp(min=1e-6)
    values = (values - middle) / scale
    weight = torch.zeros(classes, values.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optim = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")
    inputs, wanted = values[train], labels[train]

    def loss() -> Tensor:
        optim.zero_grad()
        nats = F.cross_entropy(F.linear(inputs, weight, bias), wanted) + penalty * weight.square().sum()
        nats.backward()
        return nats

    optim.step(loss)
    with torch.no_grad():
        return F.linear(values[~train], weight, bias).argmax(-1)


def most_different(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The channels by how much of their variance lies between classes, the most first."""
    middle = values.mean(0)
    between = torch.zeros_like(middle)
    for label in range(classes):
        own = values[labels == label]
        if len(own):
            between += len(own) * (own.mean(0) - middle).square()
    total = (values - middle).square().sum(0)
    return (between / total.clamp(min=1e-12)).argsort(descending=True)
