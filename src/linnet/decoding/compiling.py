"""One step of all rows as one compiled graph, and when a generation is long enough to pay for it.

Compiling costs seconds for each layer, once a machine: torch keeps what it compiled on disk, and later processes
read it in a fraction of the time. What it took is remembered beside it, so that the choice rests on a measurement.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from linnet.decoding.engine import Step, plain
from linnet.errors import BadInput
from linnet.model.attention import WIDE
from linnet.model.model import Model
from linnet.model.state import State

COLD_SECONDS = 5.0  # for each layer, where nothing is known yet
WARM_SECONDS = 1.0  # for each layer, where the compiled graph lies on disk
SAVED_SECONDS = 0.0005  # for each layer and step: what python and small kernels cost outside of a graph
FEW_ROWS = 8  # with more of them, products are all that matters on a processor without AVX-512 (dev/LOG.md)
SPAN = 128  # on CUDA, where each graph is recorded for one shape, as many slots are read as fill such pieces


@dataclass(frozen=True)
class Compiled:
    """A compiled step of this model for one row or for many; the two are different graphs."""

    model: Model
    rows: int

    @property
    def mark(self) -> Path:
        """Where it is remembered that this graph was compiled on this machine."""
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        kinds = [type(module).__name__ for module in self.model.modules()]
        said = [
            self.model.config.model_dump_json(),
            *kinds,
            torch.__version__,
            str(self.model.device),
            self.rows == 1,
        ]
        name = hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()
        return Path(cache_dir()) / "linnet" / f"{name}.json"

    def expected_seconds(self) -> float:
        """What compiling is going to take: as measured, or by the number of layers."""
        depth = self.model.config.depth
        try:
            stored = json.loads(self.mark.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return COLD_SECONDS * depth
        again = stored.get("again")
        return float(again) if isinstance(again, int | float) else WARM_SECONDS * depth

    def pays(self, steps: int) -> bool:
        """Whether this many steps save more time than compiling takes."""
        if self.rows > FEW_ROWS and self.model.device.type == "cpu" and not WIDE:
            return False
        return steps * self.model.config.depth * SAVED_SECONDS > self.expected_seconds()

    def step(self) -> Step:
        """The step itself; its first call compiles."""
        cuda = self.model.device.type == "cuda"
        run = torch.compile(plain(self.model), dynamic=not cuda, mode="reduce-overhead" if cuda else None)
        first = True

        def timed(ids: Tensor, state: State) -> tuple[Tensor, State]:
            nonlocal first
            if cuda:
                state = state.reading(state.filled // SPAN * SPAN + SPAN - 1)
            if not first:
                return run(ids, state)
            first, began = False, time.perf_counter()
            found = run(ids, state)
            self._remember(time.perf_counter() - began)
            return found

        return timed

    def _remember(self, seconds: float) -> None:
        """The first time is that of an empty cache; from the second on it is what the next process will take."""
        stored = {"first": seconds}
        if self.mark.exists():
            stored["again"] = seconds
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        beside = self.mark.with_suffix(".part")
        beside.write_text(json.dumps(stored), encoding="utf-8")
        beside.replace(self.mark)


def choose(model: Model, asks: int, rows: int, max_tokens: int, *, asked: bool = False) -> Step | None:
    """A compiled step where it is asked for or the generation is long enough to repay it; else None."""
    if "gru" in model.config.mixers:
        if asked:
            raise BadInput("a recurrent mixer is one call of torch already; its steps are not compiled")
        return None
    candidate = Compiled(model, min(asks, rows))
    steps = -(-asks // rows) * max_tokens
    worth = asked or (candidate.pays(steps) and shutil.which("g++") is not None)
    return candidate.step() if worth else None
