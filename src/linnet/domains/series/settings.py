"""The choices that make networks of series. Sizes are 0 until the data are known.

`residual` forecasts: members that each see a history of their own length, averaged. `convolution` names classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from linnet.model.config import NetworkConfig, Part
from linnet.model.costs import Costs

if TYPE_CHECKING:
    from torch import nn

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
Level = Annotated[float, Field(gt=0, lt=1)]


class LabelConfig(Part):
    """Windows with a label."""

    length: int = Field(0, ge=0, description="steps of a window; 0: whole series")
    stride: int = Field(0, ge=0, description="steps between windows; 0: half their length")
    units: Literal["series", "training", "triples"] = Field(
        "series",
        description="a window is scaled by itself, as the training part, or as triples of its channels (axes)",
    )
    validation: float = Field(
        0.2, ge=0, lt=1, description="share of groups (people, machines), or of series, that only validation sees"
    )

    turn: float = Field(
        0.0, ge=0, le=180, description="degrees by which training turns each three channels, as one turns a sensor"
    )

    @property
    def step(self) -> int:
        """Steps between windows; 0 where whole series are windows."""
        return (self.stride or max(1, self.length // 2)) if self.length else 0


class SyntheticConfig(Part):
    """Training windows of series that are drawn, or mixed of the series at hand. 0 switches an item off."""

    share: float = Field(0.0, ge=0, le=1, description="of the windows of each batch")
    first: float = Field(0.0, ge=0, le=1, description="share of the steps that learn from drawn windows alone")
    count: int = Field(2000, ge=1, description="series that are drawn")
    mixed: float = Field(0.5, ge=0, le=1, description="share of them that are mixtures of the series at hand")

    @property
    def used(self) -> bool:
        return bool(self.share or self.first)


class SeriesNetworkConfig(NetworkConfig):
    """What networks of series share: their operations are few and large, and nobody else has them."""

    @property
    def eager_reason(self) -> str:
        return "its operations are few and large, so a compiler has little to join"

    @property
    def only_here(self) -> str:
        return "its network reads windows of numbers, and other programs read ids of one vocabulary"


class ResidualConfig(SeriesNetworkConfig):
    """Blocks of linear layers; each takes its part out of the history and adds its part to the forecast."""

    kind: Literal["residual"] = Field("residual", description="which network")
    lengths: tuple[int, ...] = Field((), description="steps that members see; empty: from the data")
    outputs: int = Field(0, ge=0, description="steps of a forecast; 0: from the data")
    seeds: int = Field(1, ge=1, le=100, description="members for each length")
    blocks: int = Field(3, ge=1, le=1000, description="of a member")
    layers: int = Field(2, ge=1, le=100, description="of a block")
    width: int = Field(256, ge=1, description="channels of a layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of values that training zeroes")
    quantiles: tuple[Level, ...] = Field(LEVELS, description="levels, 0.5 among them")
    median_weight: float = Field(
        0.5, ge=0, le=1, description="of the median in the loss; the other levels share the rest"
    )

    @model_validator(mode="after")
    def _in_order(self) -> ResidualConfig:
        levels = list(self.quantiles)
        if levels != sorted(set(levels)) or 0.5 not in levels:
            raise ValueError(f"quantiles must rise and hold 0.5, and {levels} do not")
        return self

    @property
    def channels(self) -> int:
        return self.width

    def costs(self, *, rows: int = 1, ema: bool = False) -> Costs | None:
        if not (self.lengths and self.outputs):
            return None
        from linnet.domains.series.residual import Residual

        return counted_costs(Residual, self, ema, max(self.lengths))


class ConvolutionConfig(SeriesNetworkConfig):
    """Fixed and free filters of several lengths, then dilated convolutions that mix steps and channels apart."""

    kind: Literal["convolution"] = Field("convolution", description="which network")
    inputs: int = Field(0, ge=0, description="channels of the series; 0: from the data")
    classes: int = Field(0, ge=0, description="0: from the data")
    window: int = Field(0, ge=0, description="steps of it; 0: from the data")
    kernels: tuple[Annotated[int, Field(ge=1)], ...] = Field((40, 20, 10), description="lengths of free filters")
    fixed: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (2, 4, 8, 16, 32), description="lengths of filters that find rises, falls and peaks"
    )
    stride: int = Field(0, ge=0, description="of the first filters; 0: 1 for windows of up to 100 steps, else 2")
    width: int = Field(32, ge=1, description="channels of a layer")
    depth: int = Field(2, ge=0, le=100, description="dilated layers; each doubles the dilation of the one before")
    kernel: int = Field(9, ge=1, description="length of their filters")
    members: int = Field(1, ge=1, le=100, description="networks whose probabilities are averaged")
    proportions: int = Field(
        0, ge=0, description="shares of steps above thresholds that a further member reads; 0: no such member"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="share of pooled values that training zeroes")
    smoothing: float = Field(0.1, ge=0, lt=1, description="share of a target that is spread over all classes")
    norms: bool = Field(
        True,
        description="read what no turn of a sensor changes, too: lengths of each three channels, and angles",
    )

    @property
    def channels(self) -> int:
        return self.width

    @property
    def steps_between(self) -> int:
        """The stride that is meant."""
        return self.stride or (1 if self.window <= 100 else 2)

    @property
    def triples(self) -> int:
        """Channels come in threes: the axes of an accelerometer, of a gyroscope."""
        return self.inputs // 3 if self.norms and self.inputs % 3 == 0 else 0

    def costs(self, *, rows: int = 1, ema: bool = False) -> Costs | None:
        if not (self.inputs and self.classes and self.window):
            return None
        from linnet.domains.series.convolution import Convolution

        return counted_costs(Convolution, self, ema, self.window)


def counted_costs(network: Callable[[Any], nn.Module], config: NetworkConfig, ema: bool, context: int) -> Costs:
    """Costs of a network that reads a row at once: parameters, a product with each of them, and their memory."""
    import torch

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in network(config).parameters())
    return Costs(count, 2 * count // context, 0, count * (20 if ema else 16), context)
