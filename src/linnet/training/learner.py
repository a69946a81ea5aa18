"""What is moved by training: the model, its optimisers, averaged weights and the loss scale; and one step of it.

All randomness of a step is a function of (seed, step, micro-batch), so none of it has to be saved, and the number
of processes changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.codecs import Codec
from linnet.data import Batch
from linnet.machine import autocast
from linnet.model.contract import Network, Objective
from linnet.model.costs import refuse_too_large
from linnet.model.kernels import Part, drawing_for, nothing_dropped
from linnet.training.checkpoint import Checkpoint, LoopState, load_weights, weights_of
from linnet.training.compiling import Function, Steps
from linnet.training.distributed import Processes
from linnet.training.optim import Average, load_state_tensors, optimizers, set_rate, state_tensors
from linnet.training.run import Run


@dataclass(frozen=True)
class Moved:
    """What one step did, still on the device."""

    loss: Tensor  # nats per counted token
    grad_norm: Tensor


def draw(seed: int, step: int, part: int, rank: int) -> int:
    """The seed of one micro-batch: the same on any machine, unrelated between neighbours."""
    digest = hashlib.blake2b(f"{seed}/{step}/{part}/{rank}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def fresh_network(run: Run, codec: Codec) -> Network:
    """The network as the training of this run starts from it: the same weights for the same seed."""
    torch.manual_seed(draw(run.seed, -1, 0, 0))
    refuse_too_large(run.model)
    return run.data.network(run.model, codec)


class Learner:
    """Model, optimisers, averaged weights and loss scale, moved one step at a time."""

    def __init__(self, run: Run, codec: Codec, device: torch.device, processes: Processes) -> None:
        self.run, self.device, self.processes = run, device, processes
        self.network: Network = fresh_network(run, codec).to(device)
        self.optims = optimizers(self.network, run.optim)
        self.ema = Average(self.network, run.optim.ema) if run.optim.ema else None
        scaled = run.precision == "float16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.objective: nn.Module = Objective(self.network)
        if processes.world > 1:
            self.objective = DistributedDataParallel(self.objective)
        self.steps = Steps(self.objective, run.training.compile)

    def step(self, batch: Batch, step: int, steps: int) -> Moved:
        """One optimiser step on this batch, cut into micro-batches whose tokens all weigh the same."""
        config = self.run.optim
        self.network.train()
        loss = self.gradients(batch, step)
        for optim in self.optims:
            self.scaler.unscale_(optim)
        limit = config.clip if config.clip else float("inf")
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        set_rate(self.optims, config.schedule.factor(step, steps))
        for optim in self.optims:
            self.scaler.step(optim)
        self.scaler.update()
        for optim in self.optims:
            optim.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.follow(self.network)
        return Moved(loss, norm)

    def gradients(self, batch: Batch, step: int) -> Tensor:
        """Add up the gradients of all micro-batches; returns nats per counted token of the whole batch."""
        world, parts = self.processes.world, micro_batches(batch, self.run.training.accumulation)
        counted = max(1.0, float(batch["weights"].sum()))  # still on the host, so nothing waits for the device
        nats = torch.zeros((), device=self.device)
        for part, micro in enumerate(parts):
            with self._quiet(part < len(parts) - 1):
                # DDP takes the mean over processes; times their number it is the sum again.
                nats += self._learn(self.steps, micro, step, part, world / counted)
        return self.processes.total(nats) / counted

    def _learn(self, objective: Function, micro: Batch, step: int, part: int, scale: float) -> Tensor:
        """Add the gradients of this process's rows of a micro-batch, times `scale`; returns their nats."""
        share = self.processes.share(micro).to(self.device)
        torch.manual_seed(draw(self.run.seed, step, part, 0))
        with drawing_for(self._rows(micro, step, part)), autocast(self.device, self.run.precision):
            loss = objective(dict(share))
            self.scaler.scale(loss * scale).backward()
        return loss.detach()

    def _rows(self, micro: Batch, step: int, part: int) -> Part | None:
        """The rows of this micro-batch whose dropout is drawn here; None in a process alone."""
        rank, (first, last) = self.processes.rank, self.processes.bounds(micro.rows)
        if self.processes.world == 1 or first == last:
            return None
        own = torch.Generator().manual_seed(draw(self.run.seed, step, part, rank + 1))
        return Part(first, last, micro.rows, own)

    def check(self, batch: Batch, step: int) -> str:
        """Why the first compiled step cannot be used, so that all steps are eager; empty where it can be."""
        if not self.steps.unchecked:
            return ""
        micro = micro_batches(batch, self.run.training.accumulation)[0]
        counted = max(1.0, float(micro["weights"].sum()))
        self.network.train()

        def learn(objective: Function) -> Tensor:
            with nothing_dropped():
                return self._learn(objective, micro, step, 0, 1 / counted) / counted

        problem = self.steps.first_problem(self.network, learn, self.run.precision)
        if self.processes.any(bool(problem), self.device):
            self.steps.stay_eager(problem or "in another process they are wrong")
        return self.steps.problem

    @contextlib.contextmanager
    def _quiet(self, unfinished: bool) -> Iterator[None]:
        """Processes exchange gradients once a step, with the last micro-batch."""
        if unfinished and isinstance(self.objective, DistributedDataParallel):
            with self.objective.no_sync():
                yield
        else:
            yield

    @property
    def averaged(self) -> Network | None:
        """The model with averaged weights; None where the run keeps none."""
        return None if self.ema is None else self.ema.network

    def checkpoint(self, loop: LoopState) -> Checkpoint:
        if self.ema is not None:
            loop.ema_updates = self.ema.updates
        if self.scaler.is_enabled():
            loop.scaler = self.scaler.state_dict()
        loop.eager = self.steps.problem
        ema = None if self.averaged is None else weights_of(self.averaged)
        return Checkpoint(weights_of(self.network), ema, state_tensors(self.network, self.optims), loop)

    def restore(self, checkpoint: Checkpoint, source: str) -> None:
        """Go on from exactly here."""
        load_weights(self.network, checkpoint.weights, source)
        load_state_tensors(self.network, self.optims, checkpoint.optim)
        if self.ema is not None and checkpoint.ema is not None:
            load_weights(self.ema.network, checkpoint.ema, source)
            self.ema.updates = checkpoint.loop.ema_updates
        if self.scaler.is_enabled() and checkpoint.loop.scaler:
            self.scaler.load_state_dict(checkpoint.loop.scaler)
        if checkpoint.loop.eager:
            self.steps.stay_eager(checkpoint.loop.eager)


def micro_batches(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` slices of nearly equal numbers of rows; a short batch makes fewer."""
    rows = batch.rows
    bounds = [rows * part // parts for part in range(parts + 1)]
    return [batch.slice(slice(*pair)) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
