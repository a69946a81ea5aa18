"""What a run on series keeps beside its weights: rhythm, sizes, classes, and how values are scaled."""

from __future__ import annotations

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
        for name, values in (("means", codec.means), ("deviations", codec.deviations)):
            if values and len(values) != len(codec.channels):
                raise BadInput(f"{name} has {len(values)} values for {counted(len(codec.channels), 'channel')}")
        return codec
