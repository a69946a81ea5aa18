"""The choices that make a model of the next place. Sizes are 0 until the data are known.

`copy` is the family of the two published networks: a recurrent or attentive encoder of the last week, a copy
distribution, counts and recency, and a gate. `scorer` scores candidate visits over everything that is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from linnet.model.config import Part

LEVELS = 3  # cell levels, coarse to fine


class CopyConfig(Part):
    """Defaults are the published GRU network of 620,808 parameters."""

    kind: Literal["copy"] = "copy"
    encoder: Literal["gru", "transformer"] = "gru"
    places: int = Field(0, ge=0)  # ids of places, 0 for padding and 1 for unseen ones among them
    cells: tuple[int, int, int] = (0, 0, 0)
    users: int = Field(0, ge=0)
    width: int = Field(96, ge=4)
    place_width: int = Field(48, ge=1)
    cell_widths: tuple[int, int, int] = (24, 24, 32)
    narrow: int = Field(48, ge=1)  # of the recurrent state and of the generator
    heads: int = Field(4, ge=1)
    depth: int = Field(1, ge=1)
    dropout: float = Field(0.25, ge=0, lt=1)
    level_weights: tuple[float, float, float, float] = (0.05, 0.10, 0.15, 0.70)  # cells coarse to fine, place
    levels: Literal["heads", "tree"] = "heads"  # tree: a cell's probability is the sum over its places
    smoothing: float = Field(0.0, ge=0, lt=1)
    focal: float = Field(0.0, ge=0)  # the loss weighs (1 - p) ** focal: less where the network is sure
    filter: Literal["none", "hard", "soft"] = "none"  # what cells may do to places when predicting
    filter_level: int = Field(0, ge=0, lt=LEVELS)  # which cells: the coarse ones of the recurrent network
    alpha: float = Field(0.1, ge=0)  # of the soft filter: p(place) * p(cell) ** alpha

    def sized(self, needed: tuple[int, ...], users: int) -> CopyConfig:
        """Tables as large as asked for, and larger where the data need more."""
        cells = (*needed[:-1], *[2] * (LEVELS - len(needed) + 1))[:LEVELS]
        wanted = tuple(max(given, size) for given, size in zip(self.cells, cells, strict=True))
        sizes = {"places": max(self.places, needed[-1]), "users": max(self.users, users), "cells": wanted}
        return self.model_copy(update=sizes)


class ScorerConfig(Part):
    """`kernels` ways to weigh a past visit, and a small network over what they add up to for each candidate."""

    kind: Literal["scorer"] = "scorer"
    kernels: int = Field(32, ge=1)
    hidden: int = Field(64, ge=1)
    members: int = Field(1, ge=1)  # scorers whose probabilities are averaged
    dropout: float = Field(0.15, ge=0, lt=1)
    legacy_weight: float = Field(0.5, ge=0)  # of the loss in which unseen places are one class


PlaceModelConfig = Annotated[CopyConfig | ScorerConfig, Field(discriminator="kind")]
