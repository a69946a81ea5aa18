"""What a run on series keeps beside its weights: rhythm, sizes, classes, and how values are scaled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from linnet.codecs import Encoded
from linnet.errors import BadInput, counted
from linnet.untrusted import LARGEST, checked

NO_TOKENS = "series of numbers have no tokens here: use predict and eval, or train the recipe forecast-tokens"

Size = Annotated[int, Field(ge=1, le=LARGEST)]


@dataclass(frozen=True)
class SeriesCodec:
    """`classes` are empty in a run that forecasts. Means and deviations are those of the training part."""

    task: Literal["forecast", "classes"]
    channels: tuple[str, ...]
    frequency: str = ""
    season: Size = 1
    cycle: Size = 1
    horizon: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    histories: tuple[Size, ...] = ()
    typical: float = 0.0  # relative step of a series with a single value
    naive_smape: float = 1.0  # errors of the last value as a forecast: the units of the loss
    naive_mase: float = 1.0
    classes: tuple[str, ...] = ()
    length: Annotated[int, Field(ge=0, le=LARGEST)] = 0  # steps of a window with a label
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    begin: None = None
    end: None = None
    pieces: None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.classes

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ()

    def encode(self, value: str) -> Encoded:
        raise BadInput(NO_TOKENS)

    def decode(self, ids: Iterable[int]) -> str:
        raise BadInput(NO_TOKENS)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        raise BadInput(NO_TOKENS)

    def settled(self, ids: Sequence[int]) -> int:
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in asdict(self).items() if name not in ("begin", "end", "pieces")}
        return {"kind": "series", **fields}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SeriesCodec:
        if stored.get("kind") != "series":
            raise BadInput(f"the codec of a run on series is of the kind series, not {stored.get('kind')!r}")
        codec = cast(SeriesCodec, checked(cls, {k: v for k, v in stored.items() if k != "kind"}, ""))
        codec.refuse_unfit_parts()
        return codec

    def refuse_unfit_parts(self) -> None:
        """What a program wrote has every part that its task needs, and parts that fit together."""
        width = counted(len(self.channels), "channel")
        for name, values in (("means", self.means), ("deviations", self.deviations)):
            if len(values) != (len(self.channels) if self.means else 0):
                raise BadInput(f"{name} has {len(values)} values for {width}")
        numbers = {"typical": self.typical, "naive_smape": self.naive_smape, "naive_mase": self.naive_mase}
        wrong = [name for name, value in numbers.items() if not 0 <= value < math.inf]
        wrong += ["means"] * any(not math.isfinite(value) for value in self.means)
        wrong += ["deviations"] * any(not 0 < value < math.inf for value in self.deviations)
        if self.task == "classes":
            wrong += ["classes"] * (not self.classes or len(set(self.classes)) < len(self.classes))
            needed = {"channels": self.channels, "length": self.length}
        else:
            needed = {"channels": self.channels, "horizon": self.horizon, "histories": self.histories}
        wrong += [name for name, value in needed.items() if not value]
        if wrong:
            raise BadInput(f"{wrong[0]} is missing or not what a run of the task {self.task} needs")
