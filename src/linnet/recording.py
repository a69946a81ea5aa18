"""Work of a GPU as CUDA graphs: recorded by shape, and launched at once whenever the shape comes again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Graphs:
    """Steps of a GPU by shape: the first of a shape is run, the second recorded, and all others are repeated.

    Elsewhere, and where recording fails, steps are run one by one.
    """

    def __init__(self, device: torch.device) -> None:
        self.recording = device.type == "cuda"
        self.problem = ""  # why nothing is recorded
        self._met: set[Hashable] = set()
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        """Run the step, whose tensors are the same ones whenever the shape is."""
        if self.recording and shape in self._met and shape not in self._recorded:
            self._record(shape, step)
        if shape in self._recorded:
            self._recorded[shape].replay()
        else:
            self._met.add(shape)
            step()

    def _record(self, shape: Hashable, step: Callable[[], None]) -> None:
        try:
            self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
            graph = torch.cuda.CUDAGraph()
            # Other threads go on: they make batches and pin them.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            self.recording, self.problem = False, (str(error).splitlines() or ["unknown"])[0]
        else:
            self._recorded[shape] = graph
