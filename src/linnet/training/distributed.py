"""Several processes under `torchrun`: each takes its share of the rows of every batch.

Every process plans the same whole batch, so the token counts that weigh the loss are known everywhere without
asking, and the mean over processes is exactly the gradient of one process. Without torchrun there is one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from linnet.data import Batch
from linnet.domains.contract import Part


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
        """The value of the first process."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return shared.item()

    def sum(self, value: float, device: torch.device) -> float:
        """The sum of the values of all processes."""
        return self.total(torch.tensor(value, dtype=torch.float64, device=device)).item()

    def own_rows(self, part: Part) -> Part:
        """Every row of a part whose number falls to this process."""
        if self.world == 1:
            return part
        return replace(part, rows=part.rows.select(np.arange(self.rank, len(part.rows), self.world)))

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

    def among(self, values: int, *, counts: bool, device: torch.device) -> tuple[int, int]:
        """Where the values of this process begin among those of all in their order, and how many all have.

        Those of a process that does not count are taken for the first ones of all.
        """
        sizes = torch.zeros(self.world, dtype=torch.int64, device=device)
        sizes[self.rank] = values if counts else 0
        sizes = self.total(sizes)
        first = int(sizes[: self.rank].sum()) if counts else 0
        return first, max(int(sizes.sum()), values)

    def bounds(self, rows: int) -> tuple[int, int]:
        """First and one past the last of these rows that this process computes; equal where there are too few."""
        return rows * self.rank // self.world, rows * (self.rank + 1) // self.world

    def share(self, batch: Batch) -> Batch:
        """The rows of a micro-batch that this process computes; one row without weight when there are too few."""
        if self.world == 1:
            return batch
        first, last = self.bounds(batch.rows)
        if first < last:
            return batch.slice(slice(first, last))
        spare = batch.slice(slice(0, 1))
        return spare.replaced(weights=torch.zeros_like(spare["weights"]))
