"""A run: everything that decides what training does, as one frozen value.

Recipes make runs, settings change them (`linnet.training.settings`), and the resolved run is written before the
first step. Its data and its network are settings of the domain that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

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

    kind: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of its products; auto: what is fast here
    schedule: Schedule = Cosine()
    clip: float = Field(1.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)


class TrainingConfig(Part):
    """Length, batches, and what is done on the way. `batch` counts all rows of one step."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch: int = Field(64, ge=1)
    accumulation: int = Field(1, ge=1)
    packing: Literal["padded", "packed", "apart"] = "padded"  # apart: packed, and no row sees another
    eval_every: int | None = Field(None, ge=1)  # steps; None: see evals_per_epoch
    evals_per_epoch: float | None = Field(None, gt=0)  # None and no eval_every: ten validations in all
    patience: int | None = Field(None, ge=1)  # validations without a better loss; None: never stop early
    keep: int = Field(2, ge=1)  # newest checkpoints that stay, beside the best
    compile: Literal["auto", "on", "off"] = "auto"
    log_every: int = Field(0, ge=0)  # steps between looks at the device (each is logged); 0: 1, on a GPU 10
    prefetch: int = Field(4, ge=1)
    most_parameters: int | None = Field(None, ge=1)  # a larger network is refused before it trains
    eval_batch: int = Field(256, ge=1)
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.accumulation > self.batch:
            raise ValueError(f"a batch of {self.batch} rows cannot be cut into {self.accumulation} parts")
        return self


class Augmentation(Part):
    """Changes to the training data alone, which some challenges forbid. 0 switches an item off."""

    mask: float = Field(0.0, ge=0, lt=1)  # share of input tokens that are replaced by random ones
    drop: float = Field(0.0, ge=0, lt=1)  # share of rows (documents) that an epoch does not learn from


class Run(Part):
    format: int = FORMAT
    recipe: str
    seed: int = Field(1, ge=0, lt=1 << 63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    threads: int = Field(0, ge=0, le=4096)  # 0: as many as torch finds; stored, because sums depend on it
    data: SerializeAsAny[Domain]
    model: SerializeAsAny[NetworkConfig]
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    augment: Augmentation = Augmentation()

    def unused(self) -> Mapping[str, str]:
        """Settings that change nothing in this run, by dotted key, each with the reason."""
        kind, reasons = self.optim.kind, {}
        if kind != "muon":
            for name in ("muon_lr", "muon_momentum", "muon_precision"):
                reasons[f"optim.{name}"] = f"optim.kind is {kind}"
        if kind == "sgd":
            reasons |= dict.fromkeys(("optim.betas", "optim.eps"), "optim.kind is sgd")
        return reasons | dict(self.data.unused(self))
