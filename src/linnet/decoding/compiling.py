"""Whether a generation is long enough to pay for one compiled graph of a step.

Compiling costs seconds for each layer, once a machine: torch keeps what it compiled on disk, and later
processes read it in a fraction of the time. What it took is remembered beside it, so that the choice rests on a
measurement.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from linnet.decoding.products import Weights
from linnet.errors import BadInput
from linnet.files import write_atomically
from linnet.machine import graph_cache
from linnet.model.config import ModelConfig
from linnet.model.kernels import WIDE
from linnet.untrusted import read_object

COLD_SECONDS = 5.0  # for each layer, where nothing is known yet
WARM_SECONDS = 1.0  # for each layer, where the compiled graph lies on disk
SAVED_SECONDS = 0.0005  # for each layer and step: what python and small kernels cost outside of a graph
SAVED_ON_A_GPU = 0.00003  # where steps are recorded anyway, it is only the small kernels (dev/LOG.md)
FEW_ROWS = 8  # with more of them, products are all that matters on a processor without AVX-512 (dev/LOG.md)


@dataclass(frozen=True)
class Compiling:
    """Compiled steps of such a model: for one row or for many, which are different graphs."""

    config: ModelConfig
    weights: Weights
    device: str
    rows: int

    @classmethod
    def of(cls, config: ModelConfig, weights: Weights, device: str, requests: int, rows: int) -> Compiling:
        """Compiled steps for this many requests, of which so many rows are computed together."""
        if "gru" in config.mixers:
            raise BadInput("a recurrent mixer is one call of torch already; its steps are not compiled")
        return cls(config, weights, device, max(1, min(requests, rows)))

    @classmethod
    def choose(
        cls, config: ModelConfig, weights: Weights, device: str, requests: int, rows: int, tokens: int
    ) -> Compiling | None:
        """Compiled steps where the generation is long enough to repay them; else None."""
        if "gru" in config.mixers or not requests or shutil.which("g++") is None:
            return None
        candidate = cls.of(config, weights, device, requests, rows)
        return candidate if candidate.pays(-(-requests // rows) * tokens) else None

    @property
    def single(self) -> bool:
        return self.rows == 1

    @property
    def mark(self) -> Path:
        """Where it is remembered that this graph was compiled on this machine."""
        key = [self.config.model_dump_json(), self.weights, torch.__version__, self.device, self.single]
        name = hashlib.blake2b(json.dumps(key).encode(), digest_size=12).hexdigest()
        return graph_cache() / "linnet" / f"{name}.json"

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
        saved = SAVED_SECONDS if self.device == "cpu" else SAVED_ON_A_GPU
        return steps * self.config.depth * saved > self.expected_seconds()

    def remember(self, seconds: float) -> None:
        """The first time is that of an empty cache; from the second on it is what the next process will take."""
        stored = {"first": seconds}
        if self.mark.exists():
            stored["again"] = seconds
        write_atomically(self.mark, json.dumps(stored).encode())
