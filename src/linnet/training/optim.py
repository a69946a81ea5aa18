"""Optimisers, their parameter groups, averaged weights, and their state as plain tensors.

Groups: `matrices` decay, `embeddings` and `vectors` (norms, biases) do not. With Muon the matrices of the hidden
layers are orthogonalised and the rest goes to AdamW.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from linnet.errors import BadInput
from linnet.model.contract import Network
from linnet.training.muon import Muon
from linnet.training.run import OptimConfig


def optimizers(model: Network, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW alone, Muon for the matrices and AdamW for the rest, or plain gradient descent."""
    roles = model.groups()
    groups = {"matrices": roles.matrices, "embeddings": roles.embeddings, "vectors": roles.vectors}
    if config.kind == "sgd":
        every = [parameter for named in groups.values() for _, parameter in named]
        settings = {"params": every, "name": "all", "peak": config.lr}
        return [torch.optim.SGD([settings], lr=config.lr, weight_decay=config.weight_decay)]
    adam_roles = ("matrices", "embeddings", "vectors") if config.kind == "adamw" else ("embeddings", "vectors")
    adam = torch.optim.AdamW(
        [
            {
                "params": [parameter for _, parameter in groups[role]],
                "name": role,
                "weight_decay": config.weight_decay if role == "matrices" else 0.0,
                "peak": config.lr,
            }
            for role in adam_roles
            if groups[role]
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
        capturable=next(model.parameters()).device.type == "cuda",  # which counts steps there in any case
    )
    if config.kind == "adamw":
        return [adam]
    muon = Muon(
        [{"params": [p for _, p in groups["matrices"]], "name": "matrices", "peak": config.muon_lr}],
        dtype=torch.bfloat16 if config.muon_precision == "bfloat16" else torch.float32,
        joined=roles.joined,
        lr=config.muon_lr,
        momentum=config.muon_momentum,
        weight_decay=config.weight_decay,
    )
    return [muon, adam]


def set_rate(optims: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Every group at this share of its own peak rate."""
    for optim in optims:
        for group in optim.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["peak"] * factor)
            else:
                group["lr"] = group["peak"] * factor


def keep_rates(optims: Sequence[torch.optim.Optimizer], device: torch.device) -> None:
    """Hold the rates in tensors on the device, where recorded steps read them."""
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)


def overwrite(into: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for own, value in zip(into, values, strict=True):
        own.copy_(value)


class Average:
    """Weights that follow those of a network, as an exponential moving average; the first are a copy.

    Whoever lets them follow counts the updates: a recorded step repeats what the device did, and no count.

    torch's AveragedModel gives the same numbers, and asks the device at every step how many there were.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network, self.updates = copy.deepcopy(network), 0
        self._move = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def follow(self, network: Network) -> None:
        mine, theirs = list(self.network.parameters()), list(network.parameters())
        if self.updates:
            self._move(mine, theirs, self.updates)
        else:
            overwrite(mine, theirs)
        overwrite(self.network.buffers(), network.buffers())


SLOTS: Mapping[str, Mapping[str, bool]] = {  # of each parameter, and whether they have its shape
    "adamw": {"step": False, "exp_avg": True, "exp_avg_sq": True},
    "muon": {"momentum_buffer": True},
    "sgd": {},
}


def refuse_other_state(wanted: Mapping[str, torch.Size], stored: Mapping[str, Tensor], source: str) -> None:
    """Name what is not the state of these optimisers. A parameter that had no gradient yet has no state at all."""
    begun = {key.rpartition("/")[0] for key in stored}
    problems = [f"unknown {key}" for key in sorted(stored) if key not in wanted]
    problems += [f"missing {key}" for key in wanted if key not in stored and key.rpartition("/")[0] in begun]
    problems += [
        f"{key} has the shape {list(stored[key].shape)}, not {list(shape)}"
        for key, shape in wanted.items()
        if key in stored and stored[key].shape != shape
    ]
    if problems:
        raise BadInput(
            f"the optimiser state in {source} is not that of this run: {'; '.join(problems[:3])}; remove that "
            "checkpoint, and the one before it is used"
        )


def state_tensors(model: Network, optims: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimiser state, named `<optimiser>/<parameter>/<slot>`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{type(optim).__name__.lower()}/{names[id(parameter)]}/{slot}": value
        for optim in optims
        for parameter, slots in optim.state.items()
        for slot, value in slots.items()
    }


def load_state_tensors(
    model: Network, optims: Sequence[torch.optim.Optimizer], stored: Mapping[str, Tensor], source: str
) -> None:
    """Put the state back, exactly as it was saved."""
    parameters = dict(model.named_parameters())
    by_name = {type(optim).__name__.lower(): optim for optim in optims}
    moved = {
        (kind, id(parameter))
        for kind, optim in by_name.items()
        for group in optim.param_groups
        for parameter in group["params"]
    }
    wanted = {
        f"{kind}/{name}/{slot}": parameter.shape if shaped else torch.Size()
        for name, parameter in parameters.items()
        for kind in by_name
        if (kind, id(parameter)) in moved
        for slot, shaped in SLOTS[kind].items()
    }
    refuse_other_state(wanted, stored, source)
    for key, value in stored.items():
        kind, name, slot = key.split("/")
        parameter = parameters[name]
        # Counters stay where torch keeps them; everything else lies beside its parameter.
        device = value.device if value.ndim == 0 and parameter.device.type == "cpu" else parameter.device
        by_name[kind].state[parameter][slot] = value.to(device)
