"""Speed of forecasts: many and one at a time, and of training beside the same network in plain PyTorch.

    python -m bench.series_speed --data FILE [--recipe forecast] [--threads 2] [--repeats 7] [--set KEY=VALUE]

The weights are fresh: they cost what trained ones do. Before steps are timed, both must give the same loss and the
same gradients from the same weights and batches; then they take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.data import NEXT, Batch
from linnet.domains.contract import Material
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.data import forecast_rows
from linnet.domains.series.forecasts import forecast
from linnet.domains.series.settings import ResidualConfig
from linnet.errors import RunFailed
from linnet.machine import one_line
from linnet.training.distributed import Processes
from linnet.training.learner import Learner
from linnet.training.resolve import complete, parameters, settle
from linnet.training.run import Run
from linnet.workbench.train import prepare

MANY = 4096
STEPS = 6  # of each system in a turn


class PlainBlock(nn.Module):
    def __init__(self, config: ResidualConfig, length: int) -> None:
        super().__init__()
        sizes = [2 * length + 1, *[config.width] * config.layers]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True))
        self.back = nn.Linear(config.width, length)
        self.ahead = nn.Linear(config.width, config.outputs * len(config.quantiles))

    def forward(self, left: Tensor, mask: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([left, mask, level[:, None]], 1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return self.back(hidden), self.ahead(hidden)


class PlainMember(nn.Module):
    """One doubly residual network over the last steps of a window."""

    def __init__(self, config: ResidualConfig, length: int) -> None:
        super().__init__()
        self.config, self.length = config, length
        self.blocks = nn.ModuleList(PlainBlock(config, length) for _ in range(config.blocks))

    def forward(self, values: Tensor, observed: Tensor, level: Tensor) -> Tensor:
        left, mask = values[:, -self.length :], observed[:, -self.length :]
        free = torch.zeros(())
        for block in self.blocks:
            back, ahead = block(left, mask, level)
            left, free = (left - back) * mask, free + ahead
        free = free.reshape(len(values), self.config.outputs, -1)
        middle = self.config.quantiles.index(0.5)
        median, steps = free[..., middle, None], F.softplus(free - 1)
        below = torch.cumsum(steps[..., :middle].flip(-1), -1).flip(-1)
        above = torch.cumsum(steps[..., middle + 1 :], -1)
        growth = torch.arange(1, self.config.outputs + 1).sqrt()[:, None]
        return torch.cat([median - below, median, median + above], -1) * growth


class Plain(nn.Module):
    """Members and their loss, without taps, settings or a contract."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        lengths = [length for length in config.lengths for _ in range(config.seeds)]
        self.members = nn.ModuleList(PlainMember(config, length) for length in lengths)

    def loss(self, batch: Batch) -> Tensor:
        found = torch.stack([m(batch["values"], batch["observed"], batch["level"]) for m in self.members])
        levels = torch.tensor(self.config.quantiles)
        middle = self.config.quantiles.index(0.5)
        shares = torch.full_like(levels, (1 - self.config.median_weight) / (len(levels) - 1))
        shares[middle] = 0
        truth, known = batch[NEXT + "values"], batch[NEXT + "observed"]
        above = truth[..., None] - found
        pinball = 2 * torch.where(above > 0, levels * above, (levels - 1) * above)
        level = batch[NEXT + "level"][:, None]
        relative, scaled = batch[NEXT + "relative"][:, None], batch[NEXT + "scaled"][:, None]
        unit = ((relative / level.abs().clamp(min=1e-6)).clamp(max=20.0) + scaled) / 2
        median, error = found[..., middle], (truth - found[..., middle]).abs()
        size = ((level + truth).abs() + (level + median).abs()).clamp(min=1e-6)
        exact = (2 * error / size * relative + error * scaled) / 2
        steps = (pinball * shares).sum(-1) * unit + self.config.median_weight * exact
        rows = (steps * known).sum(-1) / known.sum(-1).clamp(min=1)
        return (rows.sum(0) * batch["weights"]).sum() / batch["weights"].sum()


class PlainTraining:
    """AdamW, clipping, and nothing else."""

    def __init__(self, run: Run, learner: Learner) -> None:
        assert isinstance(run.model, ResidualConfig)
        self.network, self.clip = Plain(run.model), run.optim.clip
        with torch.no_grad():
            for mine, theirs in zip(self.network.parameters(), learner.network.parameters(), strict=True):
                mine.copy_(theirs)
        optim = run.optim
        self.optim = torch.optim.AdamW(
            self.network.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )

    def step(self, batch: Batch) -> float:
        loss = self.network.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip or float("inf"))
        self.optim.step()
        self.optim.zero_grad()
        return float(loss.detach())


def resolved(arguments: argparse.Namespace) -> tuple[Run, Material]:
    options = [*arguments.set, "model.dropout=0"]  # so that both compute the same
    run = settle(prepare(arguments.recipe, data=[arguments.data], settings=options, seed=1))
    material = run.data.load(run.seed)
    return complete(run, material), material


def same_work(learner: Learner, plain: PlainTraining, batch: Batch) -> None:
    """Refuse to time two systems that compute different things."""
    learner.network.train()
    ours = learner.network.loss(learner.network(batch), batch) / batch["weights"].sum()
    theirs = plain.network.loss(batch)
    mine = torch.autograd.grad(ours, list(learner.network.parameters()), materialize_grads=True)
    other = torch.autograd.grad(theirs, list(plain.network.parameters()), materialize_grads=True)
    apart = max(float((a - b).norm() / (b.norm() + 1e-6)) for a, b in zip(mine, other, strict=True))
    left, right = float(ours.detach()), float(theirs.detach())
    if abs(left - right) > 1e-4 * right or apart > 1e-3:
        raise RunFailed(f"losses {left:.6f} and {right:.6f}, gradients {apart:.2e} apart: not timed")


def both(run: Run, material: Material) -> tuple[Learner, PlainTraining]:
    """Ours and the plain network, with the same weights."""
    learner = Learner(run, material.codec, torch.device("cpu"), Processes())
    for parameter in learner.network.parameters():  # heads begin at zero, which would hide what is before them
        nn.init.normal_(parameter, std=0.05)
    return learner, PlainTraining(run, learner)


def training(run: Run, material: Material, repeats: int) -> str:
    """Windows a second of ours and of the plain network, in turns."""
    plan = run.data.plan(material.train.rows, run)
    learner, plain = both(run, material)
    batches = [plan.batch(step) for step in range(STEPS)]
    same_work(learner, plain, batches[0])
    ratios, speeds = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for step, batch in enumerate(batches):
            float(learner.step(batch, step, 1000).loss)
        middle = time.perf_counter()
        for batch in batches:
            plain.step(batch)
        ended = time.perf_counter()
        ratios.append((ended - middle) / (middle - began))
        speeds.append(STEPS * run.training.batch / (middle - began))
    ratios, speeds = sorted(ratios[1:]), sorted(speeds[1:])
    ratio = f"ours / plain PyTorch {statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
    return f"training: {statistics.median(speeds):,.0f} windows/s; {ratio}, {parameters(run):,} parameters"


def predictions(run: Run, material: Material, repeats: int) -> Sequence[str]:
    """Forecasts a second in batches, and milliseconds of one, from histories to quantiles in units of the file."""
    codec = material.codec
    assert isinstance(codec, SeriesCodec)
    rows = forecast_rows(material.train.rows)
    chosen = np.linspace(0, len(rows) - 1, MANY).astype(int)
    windows = rows.histories(chosen, max(codec.histories))
    network = run.data.network(run.model, codec).eval()
    many, single = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        forecast(network, codec, windows, 256, nullcontext)
        many.append(MANY / (time.perf_counter() - began))
    used = time.process_time()
    for row in range(20 * repeats):
        began = time.perf_counter()
        forecast(network, codec, windows[row : row + 1], 1, nullcontext)
        single.append(1000 * (time.perf_counter() - began))
    used = 1000 * (time.process_time() - used) / len(single)
    many, single = sorted(many[1:]), sorted(single[5:])
    return (
        f"predict, batches of 256: {statistics.median(many):,.0f} forecasts/s ({many[0]:,.0f} .. {many[-1]:,.0f})",
        f"predict, one: {statistics.median(single):.2f} ms (90 % within {single[int(0.9 * len(single))]:.2f} ms; "
        f"{used:.2f} ms of processor time)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="forecast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    run, material = resolved(arguments)
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.recipe}, {arguments.threads} threads, {one_line()}")
    for line in (*predictions(run, material, arguments.repeats), training(run, material, arguments.repeats)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
