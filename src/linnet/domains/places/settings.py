"""The choices that make a model of the next place. Sizes are 0 until the data are known.

`copy` is the family of the two published networks: a recurrent or attentive encoder of the last week, a copy
distribution, counts and recency, and a gate. `scorer` scores candidate visits over everything that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from linnet.model.config import NetworkConfig
from linnet.model.costs import Costs

if TYPE_CHECKING:
    from torch import nn

LEVELS = 3  # cell levels, coarse to fine
FULL_IS_NOT_READ = (
    "data.information=full changes the rules that count, and them alone: this network reads the history of a "
    "sample and nothing earlier, so its own scores are those of data.information=same"
)


class VisitNetworkConfig(NetworkConfig):
    """What both kinds of networks share: they run eagerly, and nowhere but here."""

    @property
    def eager_reason(self) -> str:
        return "networks of places read rows of many lengths, which a compiler would compile one by one"

    @property
    def only_here(self) -> str:
        return "its network points at past visits, and other programs draw ids from one vocabulary"


class CopyConfig(VisitNetworkConfig):
    """Defaults are the published GRU network of 620,808 parameters."""

    changeable = ("dropout", "level_weights", "smoothing", "focal", "filter", "filter_level", "alpha")

    kind: Literal["copy"] = Field("copy", description="which network")
    encoder: Literal["gru", "transformer"] = Field("gru", description="of the history")
    places: int = Field(0, ge=0, description="ids of places, 0 for padding and 1 for unseen ones among them")
    cells: tuple[int, int, int] = Field((0, 0, 0), description="how many of each level; 0: from the data")
    users: int = Field(0, ge=0, description="how many; 0: from the data")
    width: int = Field(96, ge=4, description="channels")
    place_width: int = Field(48, ge=1, description="channels of a place")
    cell_widths: tuple[int, int, int] = Field((24, 24, 32), description="channels of cells, coarse to fine")
    narrow: int = Field(48, ge=1, description="of the recurrent state and of the generator")
    heads: int = Field(4, ge=1, description="of attention over the history")
    depth: int = Field(1, ge=1, le=1000, description="layers of the encoder")
    dropout: float = Field(0.25, ge=0, lt=1, description="share of values that training zeroes")
    level_weights: tuple[float, float, float, float] = Field(
        (0.05, 0.10, 0.15, 0.70), description="cells coarse to fine, place"
    )
    levels: Literal["heads", "tree"] = Field(
        "heads", description="tree: a cell's probability is the sum over its places"
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of a target that is spread over all places")
    focal: float = Field(0.0, ge=0, description="the loss weighs (1 - p) ** focal: less where the network is sure")
    filter: Literal["none", "hard", "soft"] = Field(
        "none", description="what cells may do to places when predicting"
    )
    filter_level: int = Field(
        0, ge=0, lt=LEVELS, description="which cells: the coarse ones of the recurrent network"
    )
    alpha: float = Field(0.1, ge=0, description="of the soft filter: p(place) * p(cell) ** alpha")

    @field_validator("level_weights", mode="before")
    @classmethod
    def _four_weights(cls, given: Any) -> Any:
        if isinstance(given, str):  # TOML knows no .1
            raise ValueError(
                "a list of four numbers is needed, each with a digit before its point: [0.05, 0.1, 0.15, 0.7]"
            )
        if not isinstance(given, list | tuple) or len(given) != LEVELS + 1:
            raise ValueError(
                "four weights are needed: of three levels of cells, coarse to fine, and of the place, "
                "such as [0.05, 0.1, 0.15, 0.7]"
            )
        return given

    @property
    def channels(self) -> int:
        return self.width

    def costs(self, *, rows: int = 1, ema: bool = False) -> Costs | None:
        if not (self.places and all(self.cells) and self.users):
            return None
        from linnet.domains.places.copying import CopyModel

        return parameters_alone(CopyModel, self, ema)

    def sized(self, needed: tuple[int, ...], users: int) -> CopyConfig:
        """Tables as large as asked for, and larger where the data need more."""
        cells = (*needed[:-1], *[2] * (LEVELS - len(needed) + 1))[:LEVELS]
        wanted = tuple(max(given, size) for given, size in zip(self.cells, cells, strict=True))
        sizes = {"places": max(self.places, needed[-1]), "users": max(self.users, users), "cells": wanted}
        return self.model_copy(update=sizes)


class ScorerConfig(VisitNetworkConfig):
    """`kernels` ways to weigh a past visit, and a small network over what they add up to for each candidate."""

    kind: Literal["scorer"] = Field("scorer", description="which network")
    kernels: int = Field(32, ge=1, description="ways to weigh a past visit")
    hidden: int = Field(64, ge=1, description="channels of the network over their sums")
    profile: int = Field(0, ge=0, description="channels of what kind of place a candidate is; 0: not read")
    members: int = Field(1, ge=1, le=100, description="scorers whose probabilities are averaged")
    dropout: float = Field(0.15, ge=0, lt=1, description="share of values that training zeroes")
    legacy_weight: float = Field(0.5, ge=0, description="of the loss in which unseen places are one class")

    @property
    def channels(self) -> int:
        return self.hidden

    def costs(self, *, rows: int = 1, ema: bool = False) -> Costs | None:
        from linnet.domains.places.scorer import Scorer

        return parameters_alone(Scorer, self, ema)


def parameters_alone(network: Callable[[Any], nn.Module], config: NetworkConfig, ema: bool) -> Costs:
    """Costs of a network whose work depends on its rows: parameters, and the memory that they take in training."""
    import torch

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in network(config).parameters())
    return Costs(count, 0, 0, count * (20 if ema else 16))
