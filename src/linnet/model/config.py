"""The choices that make a model. What can be derived is derived, so every field here is a decision."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from linnet.model.costs import Costs


class Part(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkConfig(Part):
    """The settings of a network: the `[model]` part of a run. Sizes that follow from the data are 0 until then."""

    changeable: ClassVar[tuple[str, ...]] = ("dropout",)  # what trained weights do not depend on

    @property
    @abstractmethod
    def channels(self) -> int:
        """The width of its matrix products, which decides the precision that pays."""

    @property
    @abstractmethod
    def eager_reason(self) -> str:
        """Why the network is not compiled; empty where it may be."""

    @property
    @abstractmethod
    def only_here(self) -> str:
        """Why no other program has networks of this kind; empty where one may."""

    @abstractmethod
    def costs(self, *, rows: int = 1, ema: bool = False) -> Costs | None:
        """What it costs when `rows` rows are computed at once; None while sizes are open."""


class LossConfig(Part):
    """Terms of the training loss beside the nats of the targets. 0 switches an item off. Scores are plain nats."""

    smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of every target that is spread over the whole vocabulary"
    )
    z_loss: float = Field(0.0, ge=0, description="times the squared log of the sum over exponentiated logits")
    r_drop: float = Field(0.0, ge=0, description="times the divergence of two passes that drop different values")

    @property
    def passes(self) -> int:
        return 2 if self.r_drop else 1


class IdColumn(Part):
    """A column of ids beside the tokens: its vectors are added to those of the tokens."""

    kind: Literal["ids"] = Field("ids", description="of the column")
    size: int = Field(ge=1, description="of its vocabulary")
    predicted: bool = Field(False, description="the next value is a target of its own")
    weight: float = Field(1.0, gt=0, description="of its loss")


class NumberColumn(Part):
    """A column of numbers: it enters through a linear layer, and leaves through a head where it is predicted.

    `mean` is trained by squared error, `quantiles` by the pinball loss, `bins` by nats over bins of one width.
    """

    kind: Literal["numbers"] = Field("numbers", description="of the column")
    width: int = Field(1, ge=1, description="numbers a step")
    head: Literal["none", "mean", "quantiles", "bins"] = Field("none", description="how it is predicted")
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), description="levels of its head"
    )
    bins: int = Field(64, ge=2, description="of its head")
    low: float = Field(-4.0, description="of the bins; values beyond belong to the outermost")
    high: float = Field(4.0, description="of the bins")
    weight: float = Field(1.0, gt=0, description="of its loss")

    @model_validator(mode="after")
    def _in_order(self) -> NumberColumn:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        if list(self.quantiles) != sorted(set(self.quantiles)) or not self.quantiles:
            raise ValueError(f"quantiles must rise, and {list(self.quantiles)} do not")
        return self

    @property
    def predicted(self) -> bool:
        return self.head != "none"


Column = Annotated[IdColumn | NumberColumn, Field(discriminator="kind")]


class RotaryScaling(Part):
    """How the angles of a model that was trained on `context` tokens were slowed down for longer rows.

    `linear` slows every rate by `factor`. `llama3` slows those that turn less than `low` times in the context,
    leaves those that turn more than `high` times, and blends in between.
    """

    kind: Literal["linear", "llama3"]
    factor: float = Field(gt=0)
    low: float = Field(1.0, gt=0)
    high: float = Field(4.0, gt=0)
    context: int = Field(8192, ge=1)

    @model_validator(mode="after")
    def _low_is_below_high(self) -> RotaryScaling:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        return self


class AttentionConfig(Part):
    heads: int = Field(4, ge=1, description="of each layer")
    kv_heads: int | None = Field(None, ge=1, description="None: as many as heads")
    head_width: int | None = Field(None, ge=1, description="None: width / heads")
    causal: bool = Field(True, description="a step sees only those before it")
    qk_norm: bool = Field(False, description="normalise queries and keys")
    bias: bool | Literal["qkv"] = Field(
        False, description="qkv: of queries, keys and values, and not of what comes out"
    )
    rotary_base: float = Field(10_000.0, gt=1, description="slowest turn of rotary positions")
    rotary_width: int | None = Field(None, ge=2, description="how much of each head turns; None: all of it")
    rotary_scaling: RotaryScaling | None = Field(None, description="for rows longer than those of training")
    value_embeddings: Literal["none", "alternate", "all"] = Field(
        "none", description="layers whose values are also looked up by token"
    )


class FeedForwardConfig(Part):
    kind: Literal["gelu", "gelu_tanh", "geglu", "geglu_tanh", "swiglu", "relu2"] = Field(
        "swiglu", description="tanh: approximate"
    )
    width: int | None = Field(
        None, ge=1, description="None: 4 x width, or the whole part of 8/3 x width when gated"
    )
    multiple: int = Field(
        32, ge=1, description="the derived width of a gated one is rounded up to a multiple of this"
    )
    bias: bool = Field(False, description="of both products")


class NormConfig(Part):
    kind: Literal["rms", "layer"] = Field("rms", description="of every layer")
    bias: bool = Field(False, description="layer norm only")
    eps: float = Field(1e-6, gt=0, description="added to the variance")

    @model_validator(mode="after")
    def _rms_has_no_bias(self) -> NormConfig:
        if self.kind == "rms" and self.bias:
            raise ValueError("an rms norm has no bias; use kind=layer")
        return self


class HeadConfig(Part):
    tied: bool = Field(True, description="the head shares the weight of the embedding")
    bias: bool = Field(False, description="of the logits")
    softcap: float | None = Field(None, gt=0, description="logits stay below this")


Mixer = Literal["attention", "gru"]


class ModelConfig(NetworkConfig):
    """The decoder. `vocabulary` (of the tokens) and `context` are 0 until the codec and the data are known."""

    changeable = ("dropout", "loss", "context")

    vocabulary: int = Field(0, ge=0, description="0: from the codec")
    context: int = Field(0, ge=0, description="most steps of a row; 0: from the data")
    width: int = Field(128, ge=1, description="channels of the residual stream")
    depth: int = Field(4, ge=1, le=1000, description="layers")
    mixer: Mixer | tuple[Mixer, ...] = Field("attention", description="of each layer, or of all")
    positions: Literal["rotary", "sinusoidal", "learned", "none"] = Field(
        "rotary", description="how a step knows where it is"
    )
    attention: AttentionConfig = AttentionConfig()
    feedforward: FeedForwardConfig = FeedForwardConfig()
    norm: NormConfig = NormConfig()
    head: HeadConfig = HeadConfig()
    dropout: float = Field(0.0, ge=0, lt=1, description="share of values that training zeroes")
    columns: dict[str, Column] = Field(default_factory=dict, description="beside the tokens")
    loss: LossConfig = LossConfig()
    embedding_scale: float = Field(
        1.0, gt=0, description="what the vectors of ids are multiplied by when they are read"
    )
    init_std: float = Field(0.02, gt=0, description="of fresh matrices")
    scaled_residual: bool = Field(
        True, description="shrink what writes into the residual stream by sqrt(2 x depth)"
    )
    parallel: bool = Field(
        False, description="the mixer and the feed-forward of a layer read the same residual stream"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        heads, kv_heads = self.attention.heads, self.kv_heads
        if self.attention.head_width is None and self.width % heads:
            raise ValueError(f"width {self.width} does not divide into {heads} heads; set attention.head_width")
        if heads % kv_heads:
            raise ValueError(f"{heads} heads cannot share {kv_heads} key-value heads evenly")
        if self.positions == "rotary" and "attention" in self.mixers:
            if self.rotary_width % 2:
                raise ValueError(f"rotary positions need an even head width, not {self.rotary_width}")
            if self.rotary_width > self.head_width:
                raise ValueError(f"rotary_width {self.rotary_width} is more than a head of {self.head_width} has")
        if len(self.mixers) != self.depth:
            raise ValueError(f"{len(self.mixers)} mixers are named for a depth of {self.depth}")
        if "ids" in self.columns:
            raise ValueError('the column "ids" holds the tokens; model.vocabulary is its size')
        if self.loss.r_drop and not self.dropout:
            raise ValueError("loss.r_drop compares two passes with different dropout, and model.dropout is 0")
        return self

    @property
    def channels(self) -> int:
        return self.width

    @property
    def eager_reason(self) -> str:
        return "recurrent layers gain nothing from it" if "gru" in self.mixers else ""

    @property
    def only_here(self) -> str:
        return ""  # the family that is written says what it has no setting for

    def costs(self, *, rows: int = 1, ema: bool = False) -> Costs | None:
        if not self.context or not (self.vocabulary or self.columns):
            return None
        from linnet.model.costs import costs

        return costs(self, batch_tokens=rows * self.context, ema=ema)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """The mixer of each layer."""
        return (self.mixer,) * self.depth if isinstance(self.mixer, str) else self.mixer

    @property
    def value_layers(self) -> tuple[int, ...]:
        """The attention layers with a table of values; `alternate` takes every other one, the last among them."""
        step = {"none": 0, "alternate": 2, "all": 1}[self.attention.value_embeddings]
        return tuple(
            layer
            for layer, mixer in enumerate(self.mixers)
            if step and mixer == "attention" and (self.depth - 1 - layer) % step == 0
        )

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads or self.attention.heads

    @property
    def head_width(self) -> int:
        return self.attention.head_width or self.width // self.attention.heads

    @property
    def rotary_width(self) -> int:
        return self.attention.rotary_width or self.head_width

    @property
    def gated(self) -> bool:
        return self.feedforward.kind in ("geglu", "geglu_tanh", "swiglu")

    @property
    def feedforward_width(self) -> int:
        if self.feedforward.width is not None:
            return self.feedforward.width
        multiple = self.feedforward.multiple
        return -(-(self.width * 8 // 3) // multiple) * multiple if self.gated else 4 * self.width
