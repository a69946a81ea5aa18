"""Compiled steps: when they pay, and whether they are right.

A compiled step that is wrong trains on, so the first one of every process is compared with an eager one: the loss
and the gradients of every part of the network. Where they differ, or where the compiler fails, the run goes on
eagerly, its log says so, and its checkpoints keep that choice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnet.machine import compiler_at_hand, graph_cache
from linnet.model.layers import Dropout
from linnet.rows import RowSource
from linnet.training.run import Run

# Compiling takes about this long and then saves about this share of every step (measured: dev/LOG.md).
COMPILE_SECONDS = 30.0
COMPILE_GAIN = {"float32": 0.15, "bfloat16": 0.25, "float16": 0.25}
EAGER_FLOPS = {  # what is reached without it, a channel of width and at most; on CUDA a guess, measured nowhere
    ("cpu", "float32"): (0.75e9, 150e9),
    ("cpu", "bfloat16"): (1.2e9, 450e9),
    ("cuda", "float32"): (30e9, 15e12),
    ("cuda", "bfloat16"): (100e9, 50e12),
    ("cuda", "float16"): (100e9, 50e12),
}
SMALL_STEP = 1e12  # FLOPs of a step below which launches take longer than arithmetic on a large GPU, about

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}  # of the norm of a part of the network
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
LEAST = 0.01  # of the norm of all gradients: smaller parts are compared with this
DROPPING = 0.5  # tolerance of norms where both steps drop other values
Function = Callable[[dict[str, Tensor]], Tensor]


def choice(run: Run, rows: RowSource) -> str:
    """`graphs` where steps wait for launches, `on` where compiling is estimated to pay, else `off`."""
    if launch_bound(run):
        return "graphs"
    return "on" if saved_by_compiling(run, rows) > COMPILE_SECONDS else "off"


def step_flops(run: Run) -> float:
    costs = run.model.costs()
    assert costs is not None, "sizes are known"
    return 3.0 * costs.flops_per_token * run.training.batch * costs.context * costs.passes


def launch_bound(run: Run) -> bool:
    """Whether a step on this device waits for launches rather than for arithmetic, and can be launched at once."""
    if run.device != "cuda" or run.model.eager_reason or run.model.costs() is None:
        return False
    return run.training.accumulation == 1 and step_flops(run) < SMALL_STEP


def saved_by_compiling(run: Run, rows: RowSource) -> float:
    """Seconds of the whole run, by estimate, before those that compiling takes; 0 where nothing is compiled.

    Compiled rows are padded to the context.
    """
    costs = run.model.costs()
    if run.model.eager_reason or costs is None or not compiler_at_hand(run.device):
        return 0.0
    channel, most = EAGER_FLOPS[run.device, run.precision]
    seconds = step_flops(run) / min(channel * run.model.channels, most)
    mean_length = rows.steps / len(rows) if run.training.packing == "padded" else costs.context
    saved = seconds * (COMPILE_GAIN[run.precision] - (costs.context / mean_length - 1))
    return max(0.0, saved * (run.training.steps or 0))


def compiling_in_words(run: Run, rows: RowSource) -> str:
    """Whether this run is compiled, and what speaks for it."""
    chosen = f"compile {run.training.compile}"
    if run.model.eager_reason:
        return f"{chosen}: {run.model.eager_reason}"
    if launch_bound(run):
        return f"{chosen}: steps of this size wait for launches, and graphs launches each step at once"
    if not compiler_at_hand(run.device):
        return f"{chosen}: there is no C++ compiler here"
    saved = saved_by_compiling(run, rows)
    return f"{chosen}: by estimate it saves {saved:,.0f} s of the whole run and takes {COMPILE_SECONDS:.0f}"


class Steps:
    """The objective of a run as a function of a batch: compiled where the run asks for it and that is right."""

    def __init__(self, objective: nn.Module, compile: str) -> None:
        self.eager: Function = objective
        self.function: Function = objective
        self.problem = ""  # why nothing is compiled although the run asks for it
        self.unchecked = compile == "on"
        if self.unchecked:
            graph_cache()
            self.function = torch.compile(objective, dynamic=False)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return self.function(batch)

    def stay_eager(self, problem: str) -> None:
        self.problem, self.unchecked, self.function = problem, False, self.eager

    def first_problem(self, network: nn.Module, learn: Callable[[Function], Tensor], precision: str) -> str:
        """Compare one pass and its gradients, made by `learn`, compiled and eager; empty where they agree."""
        self.unchecked = False
        expected = measured(network, learn, self.eager)
        try:
            found = measured(network, learn, self.function)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler or what it made; the eager pass has just succeeded
            network.zero_grad(set_to_none=True)
            lines = [
                line.strip() for line in str(error).partition("Set TORCHDYNAMO")[0].splitlines() if line.strip()
            ]
            return f"compiling failed: {' '.join(lines[:2]) or type(error).__name__}"
        return difference(expected, found, precision, exact=comparable(network))


def measured(network: nn.Module, learn: Callable[[Function], Tensor], objective: Function) -> dict[str, Tensor]:
    """The loss, as the part `loss`, and the gradients of all parameters."""
    network.zero_grad(set_to_none=True)
    found = {"loss": learn(objective).clone()}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    network.zero_grad(set_to_none=True)
    return found


def comparable(network: nn.Module) -> bool:
    """Whether two passes drop the same values: none, where something can be dropped on a processor."""
    drops = any(isinstance(module, Dropout) and module.share for module in network.modules())
    return not drops or next(network.parameters()).device.type == "cpu"


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], precision: str, *, exact: bool) -> str:
    """In words where a pass is not what was expected; empty where it is. Parts are modules of the network."""
    loss, other = float(expected["loss"]), float(found["loss"])
    if not abs(loss - other) <= (LOSS_TOLERANCE[precision] if exact else DROPPING) * abs(loss):
        return f"the loss of the first step is {other:.5g}, and {loss:.5g} eagerly"
    if missing := set(expected) ^ set(found):
        return f"only one of two first steps has a gradient of {min(missing)}"
    squares: defaultdict[str, list[Any]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name in [name for name in expected if name != "loss"]:
        one, two = expected[name].double(), found[name].double()
        sums = squares[name.rpartition(".")[0]]
        for index, part in enumerate((one, two, two - one)):
            sums[index] = sums[index] + part.square().sum()
    norms = {name: [float(value) ** 0.5 for value in sums] for name, sums in squares.items()}
    least = LEAST * sum(one**2 for one, _, _ in norms.values()) ** 0.5
    off = {
        name: (apart if exact else abs(two - one)) / max(one, least, 1e-30)
        for name, (one, two, apart) in norms.items()
    }
    worst = max(off, key=lambda name: math.inf if math.isnan(off[name]) else off[name])
    if off[worst] <= (TOLERANCE[precision] if exact else DROPPING):
        return ""
    return f"the gradients of {worst} in the first step are off by {off[worst]:.1%}"
