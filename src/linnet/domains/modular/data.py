"""Sums modulo p: `a+b=c` with one token for each number and one for the equals sign.

All p x p problems exist; a share of them, drawn by the seed of the run, is trained on, and the rest is the
validation part. The published setting has p = 113, a share of 0.3, no norms and plain ReLU; the decoder here has
norms and squared ReLU.
Legend: pairs = problems, p = the modulus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import Field

from linnet.codecs import Codec, Encoded, known
from linnet.domains.contract import Material, Part, Region, Scored
from linnet.domains.tokens import TokenDomain
from linnet.errors import BadInput
from linnet.intervals import wilson
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig
from linnet.records import Baseline, Score
from linnet.rows import Rows
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import Constant
from linnet.untrusted import checked

if TYPE_CHECKING:
    from linnet.evaluation import Units
    from linnet.model.model import Model

_TEXT = re.compile(r"\s*([0-9]+)\s*\+\s*([0-9]+)\s*=?\s*([0-9]*)\s*")
LENGTH = 4  # tokens of a row: a, b, =, c


@dataclass(frozen=True)
class ModularCodec(Codec):
    """The id of a number is the number; the id of `=` is p. `+` has no token."""

    p: int

    @property
    def tokens(self) -> tuple[str, ...]:
        return (*map(str, range(self.p)), "=")

    def encode(self, value: str) -> Encoded:
        found = _TEXT.fullmatch(value)
        if found is None:
            raise BadInput(f"{value[:40]!r} is no sum; a right one is 3+4=")
        numbers = [int(text[:9]) for text in found.groups() if text]
        wrong = next((number for number in numbers if number >= self.p), None)
        if wrong is not None:
            raise BadInput(f"{value[:40]!r} has the number {wrong}; numbers go from 0 to {self.p - 1}")
        return Encoded(np.array([*numbers[:2], self.p, *numbers[2:]], np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        names = [self.tokens[i] for i in known(ids, self.p + 1)]
        first, rest = "+".join(names[:2]), "".join(names[2:])
        return first + rest

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        return self.decode([*prompt, *ids])[len(self.decode(prompt)) :]

    def settled(self, ids: Sequence[int]) -> int:
        return 0

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ("has one token for each number",)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "modular", **asdict(self)}


class ModularData(TokenDomain):
    """The `[data]` part of a run on sums modulo p."""

    domain: Literal["modular"] = Field("modular", description="kind of sequences")
    p: int = Field(59, ge=2, le=1000, description="the modulus")
    share: float = Field(0.4, gt=0, lt=1, description="of all p x p sums that is trained on")

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return cast(ModularCodec, checked(ModularCodec, stored, ""))

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        train, rest = self.parted(seed)
        return Material(ModularCodec(self.p), Part(self.rows(train)), Part(self.rows(np.sort(rest))))

    def parted(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the sums that are trained on, and of all others, in an order that is drawn."""
        order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(self.p**2)
        count = max(1, min(self.p**2 - 1, round(self.share * self.p**2)))
        return order[:count], order[count:]

    def held_out(self, codec: Codec, split: str | None, n: int, seed: int) -> Part:
        if split not in (None, "test"):
            raise BadInput(f'sums modulo a number have no split "{split}"; leave --split out')
        return Part(self.rows(np.sort(self.parted(seed)[1][:n])))

    def rows(self, pairs: np.ndarray) -> Rows:
        """The sums with these numbers, a * p + b."""
        first, second = np.divmod(pairs, self.p)
        columns = (first, second, np.full(len(pairs), self.p), (first + second) % self.p)
        starts = np.arange(len(pairs) + 1, dtype=np.int64) * LENGTH
        scored = np.tile(np.arange(LENGTH) == LENGTH - 1, len(pairs))
        return Rows.of_ids(np.stack(columns, 1).ravel().astype(np.uint16), starts, scored)

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        raise BadInput("sums modulo a number are never read from files: all of them are known")

    def further_scores(
        self, model: Model, codec: Codec, rows: Rows, units: Units, beaten: Baseline, *, batch: int, region: Region
    ) -> Scored:
        """The share of right answers."""
        import torch

        from linnet.model.contract import evaluating

        ids = torch.from_numpy(np.asarray(rows.ids[:]).astype(np.int64)).view(-1, LENGTH).to(model.device)
        with evaluating(model), region():
            answers = model.head(model(ids[:, :-1]).hidden[:, -1]).argmax(-1)
        right = int((answers == ids[:, -1]).sum())
        low, high = wilson(right, len(ids))
        guess = Baseline(name="guessing", value=1 / self.p)
        return Scored(
            (Score(name="accuracy", value=right / len(ids), n=len(ids), low=low, high=high, baseline=guess),)
        )


def modular() -> Run:
    """Small, with strong weight decay: training loss falls at once, validation loss thousands of steps later."""
    return Run(
        recipe="modular",
        data=ModularData(),
        model=ModelConfig(
            width=128,
            depth=1,
            positions="learned",
            attention=AttentionConfig(heads=4),
            feedforward=FeedForwardConfig(kind="relu2", width=512),
            head=HeadConfig(tied=False),
        ),
        optim=OptimConfig(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), schedule=Constant(warmup=10)),
        training=TrainingConfig(steps=8000, batch=512, eval_every=200, snapshots="log"),
    )
