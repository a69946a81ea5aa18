"""What is moved by training: the model, its optimisers, averaged weights and the loss scale; and one step of it.

All randomness of a step is a function of (seed, step, micro-batch), so none of it has to be saved, and the number
of processes changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linnet.codecs import Codec
from linnet.data import Batch
from linnet.machine import autocast
from linnet.model.contract import Network, Objective
from linnet.model.costs import refuse_too_large
from linnet.model.dropping import Part, drawing_for, nothing_dropped
from linnet.training.checkpoint import Checkpoint, LoopState, load_weights, weights_of
from linnet.training.compiling import Function, Steps
from linnet.training.distributed import Processes
from linnet.training.optim import Average, keep_rates, load_state_tensors, optimizers, set_rate, state_tensors
from linnet.training.recorded import Moved, RecordedSteps
from linnet.training.run import Run


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
            idle = self.network.idle_parameters
            self.objective = DistributedDataParallel(self.objective, find_unused_parameters=idle)
        self.steps = Steps(self.objective, run.training.compile)
        self.recorded = RecordedSteps(device) if self._recordable() else None
        if self.recorded is not None:
            keep_rates(self.optims, device)
        self.rate = 0.0  # of AdamW or sgd, in the last step

    def _recordable(self) -> bool:
        """Whether a step of this run needs nothing from the host: a seed of its own for each part, or a scale."""
        run = self.run
        alone = self.processes.world == 1 and run.training.accumulation == 1
        fixed = run.optim.kind != "sgd" and not self.scaler.is_enabled()
        return self.device.type == "cuda" and run.training.compile != "off" and alone and fixed

    def step(self, batch: Batch, step: int, steps: int) -> Moved:
        """One optimiser step on this batch, cut into micro-batches whose tokens all weigh the same."""
        self.network.train()
        factor = self.run.optim.schedule.factor(step, steps)
        self.rate = self.run.optim.lr * factor
        set_rate(self.optims, factor)
        self._seed(step, 0)
        if self.recorded is None:
            moved = self._move(step, batch, counted_tokens(batch))
        else:
            moved = self.recorded.run(batch, counted_tokens(batch), functools.partial(self._move, step))
        if self.ema is not None:
            self.ema.updates += 1
        return moved

    def _move(self, step: int, batch: Batch, counted: float | Tensor) -> Moved:
        """All of a step that the device does."""
        config = self.run.optim
        loss = self._gradients(batch, step, counted)
        for optim in self.optims:
            self.scaler.unscale_(optim)
        limit = config.clip if config.clip else float("inf")
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
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
        self._seed(step, 0)
        return self._gradients(batch, step, counted_tokens(batch))

    def _gradients(self, batch: Batch, step: int, counted: float | Tensor) -> Tensor:
        world, parts = self.processes.world, micro_batches(batch, self.run.training.accumulation)
        nats = torch.zeros((), device=self.device)
        for part, micro in enumerate(parts):
            if part:
                self._seed(step, part)
            with self._quiet(part < len(parts) - 1):
                # DDP takes the mean over processes; times their number it is the sum again.
                nats += self._learn(self.steps, micro, step, part, world / counted)
        return self.processes.total(nats) / counted

    def _seed(self, step: int, part: int) -> None:
        torch.manual_seed(draw(self.run.seed, step, part, 0))

    def _learn(self, objective: Function, micro: Batch, step: int, part: int, scale: float | Tensor) -> Tensor:
        """Add the gradients of this process's rows of a micro-batch, times `scale`; returns their nats."""
        share = self.processes.share(micro).to(self.device)
        with drawing_for(self._rows(micro)), autocast(self.device, self.run.precision):
            loss = objective(dict(share))
            self.scaler.scale(loss * scale).backward()
        return loss.detach()

    def _rows(self, micro: Batch) -> Part | None:
        """The rows of this micro-batch whose dropout is drawn here; None in a process alone."""
        if self.processes.world == 1:
            return None
        first, last = self.processes.bounds(micro.rows)
        counted = functools.partial(self.processes.among, counts=first < last, device=self.device)
        return Part(first, last, micro.rows, counted)

    def check(self, batch: Batch, step: int) -> str:
        """Why the first compiled step cannot be used, so that all steps are eager; empty where it can be."""
        if not self.steps.unchecked:
            return ""
        micro = micro_batches(batch, self.run.training.accumulation)[0]
        counted = counted_tokens(micro)
        self.network.train()

        def learn(objective: Function) -> Tensor:
            self._seed(step, 0)
            with nothing_dropped():
                return self._learn(objective, micro, step, 0, 1 / counted) / counted

        problem = self.steps.first_problem(self.network, learn, self.run.precision)
        if self.processes.any(bool(problem), self.device):
            self.steps.stay_eager(problem or "in another process they are wrong")
        return self.steps.problem

    def unrecorded(self) -> str:
        """Why steps are not launched at once although this run asks for it; told once, else empty."""
        graphs = None if self.recorded is None else self.recorded.graphs
        problem = "" if graphs is None else graphs.problem
        if graphs is not None:
            graphs.problem = ""
        return problem

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
        load_state_tensors(self.network, self.optims, checkpoint.optim, source)
        if self.ema is not None and checkpoint.ema is not None:
            load_weights(self.ema.network, checkpoint.ema, source)
            self.ema.updates = checkpoint.loop.ema_updates
        if self.scaler.is_enabled() and checkpoint.loop.scaler:
            self.scaler.load_state_dict(checkpoint.loop.scaler)
        if checkpoint.loop.eager:
            self.steps.stay_eager(checkpoint.loop.eager)


def counted_tokens(batch: Batch) -> float:
    """Asked on the host, where batches are made, so that nothing waits for the device."""
    return max(1.0, float(batch["weights"].sum()))


def micro_batches(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` slices of nearly equal numbers of rows; a short batch makes fewer."""
    rows = batch.rows
    bounds = [rows * part // parts for part in range(parts + 1)]
    return [batch.slice(slice(*pair)) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
