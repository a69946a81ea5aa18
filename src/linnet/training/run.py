"""A run: everything that decides what training does, as one frozen value.

Recipes make runs, settings change them (`linnet.training.settings`), and the resolved run is written before the
first step. Its data and its network are settings of the domain that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny, model_validator

from linnet.domains.contract import Domain
from linnet.model.config import NetworkConfig, Part
from linnet.training.schedules import Cosine, Schedule

FORMAT = 2

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class OptimConfig(Part):
    """`muon` moves the hidden matrices with Muon and everything else with AdamW. 0 switches an item off.

    `sgd` is plain gradient descent without momentum: the baseline that some reports measure against.
    """

    kind: Literal["adamw", "muon", "sgd"] = Field("adamw", description="how weights move")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, and of sgd")
    betas: tuple[float, float] = Field(
        (0.9, 0.95), description="decay of the means of the gradient and of its square"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second mean")
    weight_decay: float = Field(0.01, ge=0, description="of matrices")
    muon_lr: float = Field(0.02, gt=0, description="Muon's peak learning rate")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="of Muon's gradient")
    muon_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of its products; auto: what is fast here"
    )
    schedule: Schedule = Cosine()
    clip: float = Field(1.0, ge=0, description="longest gradient; 0: any")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights; 0: none are kept")


class TrainingConfig(Part):
    """Length, batches, and what is done on the way. `batch` counts all rows of one step."""

    steps: int | None = Field(None, ge=1, description="length; excludes epochs")
    epochs: float | None = Field(None, gt=0, description="rounds of the data; excludes steps")
    batch: int = Field(64, ge=1, description="rows of a step, over all processes")
    accumulation: int = Field(1, ge=1, description="parts that a batch is computed in")
    packing: Literal["padded", "packed", "apart"] = Field(
        "padded", description="apart: packed, and no row sees another"
    )
    eval_every: int | None = Field(None, ge=1, description="steps; None: see evals_per_epoch")
    evals_per_epoch: float | None = Field(None, gt=0, description="None and no eval_every: ten validations in all")
    patience: int | None = Field(
        None, ge=1, description="validations without a better loss; None: never stop early"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints that stay, beside the best")
    compile: Literal["auto", "on", "graphs", "off"] = Field(
        "auto",
        description="compiled steps; graphs: not compiled, on a GPU launched at once; auto: what pays by estimate",
    )
    log_every: int = Field(
        0, ge=0, description="steps between looks at the device (each is logged); 0: 1, on a GPU 10"
    )
    prefetch: int = Field(4, ge=1, description="batches that are made ahead")
    most_parameters: int | None = Field(None, ge=1, description="a larger network is refused before it trains")
    eval_batch: int = Field(256, ge=1, description="rows that are scored together")
    snapshots: Literal["none", "log"] | Annotated[int, Field(ge=2)] = Field(
        "none", description="weights kept for inspection; log: 50 at log-spaced steps, or so many"
    )
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="trackers that get each record"
    )

    @property
    def compiled(self) -> bool:
        return self.compile == "on"

    @property
    def one_shape(self) -> bool:
        """Whether all batches get the same shape, which each other one costs a graph."""
        return self.compile in ("on", "graphs")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.accumulation > self.batch:
            raise ValueError(f"a batch of {self.batch} rows cannot be cut into {self.accumulation} parts")
        return self


class Augmentation(Part):
    """Changes to the training data alone, which some challenges forbid. 0 switches an item off."""

    mask: float = Field(0.0, ge=0, lt=1, description="share of input tokens that are replaced by random ones")
    drop: float = Field(0.0, ge=0, lt=1, description="share of rows (documents) that an epoch does not learn from")


class Run(Part):
    format: int = FORMAT
    recipe: str
    start: Path | None = Field(None, description="a run whose network, codec and weights this one begins with")
    seed: int = Field(1, ge=0, lt=1 << 63, description="of everything random")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto: a GPU where there is one"
    )
    precision: Precision = Field(
        "auto", description="numbers of matrix products; auto: bfloat16 where that is fast"
    )
    threads: int = Field(
        0, ge=0, le=4096, description="0: as many as torch finds; stored, because sums depend on it"
    )
    data: SerializeAsAny[Domain]
    model: SerializeAsAny[NetworkConfig]
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    augment: Augmentation = Augmentation()

    @property
    def weights(self) -> str:
        """The file of a checkpoint that holds the weights to use: the averaged ones where there are some."""
        return "ema.safetensors" if self.optim.ema else "weights.safetensors"

    @property
    def rows_at_once(self) -> int:
        return -(-self.training.batch // self.training.accumulation)

    def unused(self) -> Mapping[str, str]:
        """Settings that change nothing in this run, by dotted key, each with the reason."""
        kind, reasons = self.optim.kind, {}
        if kind != "muon":
            for name in ("muon_lr", "muon_momentum", "muon_precision"):
                reasons[f"optim.{name}"] = f"optim.kind is {kind}"
        if kind == "sgd":
            reasons |= dict.fromkeys(("optim.betas", "optim.eps"), "optim.kind is sgd")
        return reasons | dict(self.data.unused(self))
