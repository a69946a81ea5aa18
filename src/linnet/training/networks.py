"""Which network a run trains, what it costs, and the loss that is differentiated."""

from __future__ import annotations

from torch import Tensor, nn

from linnet.errors import BadInput
from linnet.model.costs import costs
from linnet.model.inputs import Inputs
from linnet.model.losses import LossConfig
from linnet.model.model import Model
from linnet.model.places.config import CopyConfig
from linnet.model.places.published import CopyModel
from linnet.model.places.scorer import Scorer
from linnet.training.run import Run

Network = Model | CopyModel | Scorer


def new_network(run: Run) -> Network:
    """A fresh network with the sizes of a resolved run."""
    if run.next_place is None:
        return Model(run.model)
    return CopyModel(run.next_place) if isinstance(run.next_place, CopyConfig) else Scorer(run.next_place)


def parameters(run: Run) -> int:
    """Trainable numbers."""
    if run.next_place is None:
        return costs(run.model).parameters
    return sum(parameter.numel() for parameter in new_network(run).parameters())


def decoder(network: Network) -> Model:
    """The network as the model that reads and writes tokens; a network of places is none."""
    if not isinstance(network, Model):
        raise BadInput("this run names places: use predict and eval; it has no tokens to generate or to look into")
    return network


class Objective(nn.Module):
    """From a batch to the weighted sum of losses: the one function that is differentiated, compiled and shared."""

    def __init__(self, network: Network, config: LossConfig) -> None:
        super().__init__()
        self.network, self.config = network, config

    def forward(self, inputs: Inputs, targets: Tensor, weights: Tensor) -> Tensor:
        if isinstance(self.network, Model):
            inputs = inputs.twice() if self.config.passes == 2 else inputs
            return self.network.head.loss(self.network(inputs).hidden, targets, weights, self.config)
        return self.network.loss(inputs, targets, weights)
