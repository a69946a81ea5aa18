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

from linnet.decoding.engine import Plain
from linnet.decoding.products import Weights
from linnet.errors import BadInput
from linnet.model.attention import WIDE
from linnet.model.config import ModelConfig
from linnet.model.model import Model
from linnet.model.state import State
from linnet.untrusted import read_object

COLD_SECONDS = 5.0  # for each layer, where nothing is known yet
WARM_SECONDS = 1.0  # for each layer, where the compiled graph lies on disk
SAVED_SECONDS = 0.0005  # for each layer and step: what python and small kernels cost outside of a graph
FEW_ROWS = 8  # with more of them, products are all that matters on a processor without AVX-512 (dev/LOG.md)
SPAN = 128  # on CUDA, where each graph is recorded for one shape, as many slots are read as fill such pieces


@dataclass(frozen=True)
class Compiling:
    """Whether steps of such a model are worth compiling: for one row or for many, which are different graphs."""

    config: ModelConfig
    weights: Weights
    device: str
    rows: int

    @property
    def single(self) -> bool:
        return self.rows == 1

    @property
    def mark(self) -> Path:
        """Where it is remembered that this graph was compiled on this machine."""
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        said = [self.config.model_dump_json(), self.weights, torch.__version__, self.device, self.single]
        name = hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()
        return Path(cache_dir()) / "linnet" / f"{name}.json"

    def expected_seconds(self) -> float:
        """What compiling is going to take: as measured, or by the number of layers."""
        depth = self.config.depth
        try:
            stored = read_object(self.mark)
        except BadInput:
            return COLD_SECONDS * depth
        again = stored.get("again")
        return float(again) if isinstance(again, int | float) else WARM_SECONDS * depth

    def pays(self, steps: int) -> bool:
        """Whether this many steps save more time than compiling takes."""
        if self.rows > FEW_ROWS and self.device == "cpu" and not WIDE:
            return False
        return steps * self.config.depth * SAVED_SECONDS > self.expected_seconds()

    def remember(self, seconds: float) -> None:
        """The first time is that of an empty cache; from the second on it is what the next process will take."""
        stored = {"first": seconds}
        if self.mark.exists():
            stored["again"] = seconds
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        beside = self.mark.with_suffix(".part")
        beside.write_text(json.dumps(stored), encoding="utf-8")
        beside.replace(self.mark)


class Compiled:
    """The compiled step of a packed model; the first call compiles."""

    def __init__(self, model: Model, compiling: Compiling) -> None:
        self.compiling, self.plain = compiling, Plain(model)
        self.cuda = model.device.type == "cuda"
        mode = "reduce-overhead" if self.cuda else None
        self.run = torch.compile(self.plain.advance, dynamic=not self.cuda, mode=mode)
        self.head = torch.compile(self.plain.logits, dynamic=False) if compiling.single else self.plain.logits
        self.fresh, self.compiled_in = True, 0.0  # seconds of the first step, which compiles

    def advance(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        if self.cuda:
            state = state.reading(state.filled // SPAN * SPAN + SPAN - 1)
        if not self.fresh:
            return self.run(ids, state)
        self.fresh, began = False, time.perf_counter()
        found = self.run(ids, state)
        self.compiled_in = time.perf_counter() - began
        self.compiling.remember(self.compiled_in)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def choose(model: Model, weights: Weights, asks: int, rows: int, max_tokens: int) -> Compiling | None:
    """Compiled steps where the generation is long enough to repay them; else None."""
    if "gru" in model.config.mixers or shutil.which("g++") is None or not asks:
        return None
    candidate = compiling(model, weights, asks, rows)
    return candidate if candidate.pays(-(-asks // rows) * max_tokens) else None


def compiling(model: Model, weights: Weights, asks: int, rows: int) -> Compiling:
    """Compiled steps for this many asks, of which so many rows are computed together."""
    if "gru" in model.config.mixers:
        raise BadInput("a recurrent mixer is one call of torch already; its steps are not compiled")
    return Compiling(model.config, weights, model.device.type, max(1, min(asks, rows)))
