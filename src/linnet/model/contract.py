"""The contract of networks: what training, decoding, probing and export may ask of any of them.

Subclasses are final. Nothing outside the folder of a network asks which class it has.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnet.errors import RunFailed
from linnet.model.config import NetworkConfig
from linnet.model.costs import Costs
from linnet.model.inputs import Inputs, Output
from linnet.model.taps import Edit

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Groups:
    """Parameters by the role that decides how they are moved.

    Matrices decay, and Muon moves them; embeddings and vectors (norms, biases) do neither. `joined` names the
    matrices that hold several maps of one input, with the rows of each.
    """

    matrices: Sequence[tuple[str, nn.Parameter]]
    embeddings: Sequence[tuple[str, nn.Parameter]]
    vectors: Sequence[tuple[str, nn.Parameter]]
    joined: Mapping[Tensor, Sequence[int]] = field(default_factory=dict)


class Network(nn.Module, ABC):
    """A module that reads columns and predicts columns.

    `passes` is how often each row of a batch is read for one loss; R-Drop compares two passes. With
    `idle_parameters` some parameters may have no gradient in a step, since a batch lacks what they are for.
    """

    config: NetworkConfig
    passes: int = 1
    idle_parameters: bool = False

    @abstractmethod
    def forward(
        self,
        inputs: Inputs | Tensor | Batch,
        state: Any = None,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> Output:
        """Hidden vectors of these rows. `keep` and `edit` name taps; both cost nothing when empty."""

    @abstractmethod
    def loss(self, output: Output, batch: Batch) -> Tensor:
        """The weighted sum over all targets of the predicted columns of what training minimises."""

    def costs(self) -> Costs:
        """Parameters, FLOPs and memory of one row."""
        found = self.config.costs()
        assert found is not None, "a network has no open sizes"
        return found

    @abstractmethod
    def taps(self) -> Mapping[str, tuple[str, ...]]:
        """The names that `keep` and `edit` take, with the names of their axes, in the order of the pass."""

    @abstractmethod
    def groups(self) -> Groups:
        """Which parameters decay, which ones Muon moves."""

    def remarks(self, *, compiled: bool) -> tuple[str, ...]:
        """What the log of a run says about this network."""
        return ()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Objective(nn.Module):
    """From a batch to the weighted sum of losses: the one function that is differentiated, compiled and shared."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        rows = batch if self.network.passes == 1 else {name: torch.cat((t, t)) for name, t in batch.items()}
        return self.network.loss(self.network(rows), batch)


def grouped(network: nn.Module, embeddings: Iterable[Tensor], joined: Mapping[Tensor, Sequence[int]]) -> Groups:
    """Groups by shape: everything of one axis is a vector, and these tables are embeddings."""
    tables = {id(parameter) for parameter in embeddings}
    roles: dict[str, list[tuple[str, nn.Parameter]]] = {"matrices": [], "embeddings": [], "vectors": []}
    for name, parameter in network.named_parameters():
        role = "vectors" if parameter.ndim < 2 else "embeddings" if id(parameter) in tables else "matrices"
        roles[role].append((name, parameter))
    return Groups(roles["matrices"], roles["embeddings"], roles["vectors"], joined)


def embedding_tables(network: nn.Module) -> Iterator[Tensor]:
    return (module.weight for module in network.modules() if isinstance(module, nn.Embedding))


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Without gradients and dropout inside, and as before outside."""
    trained = network.training
    if trained:  # telling every module takes longer than a step of a small model
        network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if trained:
            network.train()


def fault(network: nn.Module) -> str:
    """Why what a network computes may not be numbers: the first weight that is none, if there is one."""
    for name, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            return f"{name} holds weights that are not finite numbers"
    return "activations overflow"


def refuse_nan(network: nn.Module, *values: np.ndarray) -> None:
    """What a network says of a file is not shown where it is no number."""
    if any(np.isnan(each).any() for each in values):
        raise RunFailed(f"what the network computes is not a number (NaN): {fault(network)}")


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
