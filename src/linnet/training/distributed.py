"""Several processes under `torchrun`: each takes its share of the rows of every batch.

Every process plans the same whole batch, so the token counts that weigh the loss are known everywhere without
asking, and the mean over processes is exactly the gradient of one process. Without torchrun there is one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from linnet.data import Batch


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """The group that torchrun started, or this process alone."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            if device == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(dist.get_rank(), world)

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def agree(self, value: float, device: torch.device) -> float:
        """What the first process says."""
        if self.world == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(told, 0)
        return told.item()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process raised the flag."""
        if self.world == 1:
            return flag
        raised = torch.tensor(int(flag), device=device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def share(self, batch: Batch) -> Batch:
        """The rows of a micro-batch that this process computes; one row without weight when there are too few."""
        if self.world == 1:
            return batch
        rows = batch.rows
        first, last = rows * self.rank // self.world, rows * (self.rank + 1) // self.world
        if first < last:
            return batch.slice(slice(first, last))
        spare = batch.slice(slice(0, 1))
        return spare.replaced(weights=torch.zeros_like(spare["weights"]))
