"""Series as tokens: a scale, then one bin a value, so that a forecast can be sampled, scored and searched.

A text such as `12.5 13 NA 14` becomes the scale of its values (their mean absolute value, as an exponent and a
mantissa) and the bin of each value over that scale. The scale is written first, so tokens alone give the numbers
back: within half a bin times the scale, for values within the outermost edges; values beyond them are clipped.
Legend: bins are numbered from 0; `edges` has one more entry than there are bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np

from linnet.codecs import Encoded, known
from linnet.domains.series.tables import as_numbers
from linnet.errors import BadInput
from linnet.untrusted import checked

BEGIN, END, MISSING = 0, 1, 2
FIRST = 3
EXPONENTS = tuple(range(-40, 41))  # powers of 2 of a scale
MANTISSAS = 64  # steps between two of them


@dataclass(frozen=True)
class TokenCodec:
    """`edges` are of the bins, in units of the scale; `quantile` bins hold equal shares of the training values."""

    edges: tuple[float, ...]
    kind_of_bins: Literal["uniform", "quantile"] = "uniform"

    def __post_init__(self) -> None:
        if len(self.edges) < 3 or (np.diff(self.edges) <= 0).any():
            raise BadInput("bins need edges that rise, three at least")

    @classmethod
    def uniform(cls, bins: int, reach: float) -> TokenCodec:
        """Bins of one width from -reach to reach."""
        return cls(tuple(np.linspace(-reach, reach, bins + 1).tolist()))

    @classmethod
    def quantile(cls, values: np.ndarray, bins: int) -> TokenCodec:
        """Bins with equal shares of these scaled values; values that repeat make fewer."""
        edges = np.unique(np.quantile(values[np.isfinite(values)], np.linspace(0, 1, bins + 1)))
        if len(edges) < 3:
            edges = np.array([edges[0] - 1, edges[0], edges[-1] + 1])
        return cls(tuple(edges.tolist()), "quantile")

    begin: int = BEGIN
    end: int = END

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    @cached_property
    def centres(self) -> np.ndarray:
        edges = np.array(self.edges)
        return np.asarray((edges[1:] + edges[:-1]) / 2)

    @property
    def first_mantissa(self) -> int:
        return FIRST + len(EXPONENTS)

    @property
    def first_bin(self) -> int:
        return self.first_mantissa + MANTISSAS

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        exponents = (f"<scale 2^{power}>" for power in EXPONENTS)
        mantissas = (f"<scale x{1 + step / MANTISSAS:g}>" for step in range(MANTISSAS))
        values = (f"{centre:.6g}" for centre in self.centres)
        return ("<begin>", "<end>", "NA", *exponents, *mantissas, *values)

    pieces: None = None

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ("rounds values to bins",)

    def scale_of(self, values: np.ndarray) -> tuple[float, list[int]]:
        """The mean absolute value rounded up to what two tokens can say, and these tokens."""
        found = values[np.isfinite(values)]
        mean = float(np.abs(found).mean()) if len(found) else 0.0
        if mean == 0:
            mean = 1.0
        power = int(np.floor(np.log2(mean)))
        step = int(np.ceil((mean / 2.0**power - 1) * MANTISSAS))
        if step == MANTISSAS:
            power, step = power + 1, 0
        if power not in EXPONENTS:
            raise BadInput(f"a mean absolute value of {mean:g} is beyond what tokens can say (2^-40 to 2^40)")
        return 2.0**power * (1 + step / MANTISSAS), [FIRST + power - EXPONENTS[0], self.first_mantissa + step]

    def bin_ids(self, values: np.ndarray, scale: float) -> np.ndarray:
        """int64: the bin of each value, the outermost for what lies beyond, and MISSING for NaN."""
        bins = np.clip(np.searchsorted(self.edges, values / scale, side="right") - 1, 0, self.bins - 1)
        return np.where(np.isfinite(values), bins + self.first_bin, MISSING).astype(np.int64)

    def encode(self, value: str) -> Encoded:
        words = value.replace(",", " ").split()
        values = as_numbers(words, lambda index: f"value {index + 1} of {value[:40]!r}")
        scale, head = self.scale_of(values)
        return Encoded(np.concatenate([head, self.bin_ids(values, scale)]).astype(np.int64))

    def values(self, ids: Iterable[int]) -> np.ndarray:
        """The numbers of tokens: NaN where a value is missing; nothing where no scale stands before them."""
        found, scale, power = [], 0.0, 0
        for token in known(ids, len(self.tokens)):
            if FIRST <= token < self.first_mantissa:
                power = EXPONENTS[token - FIRST]
            elif self.first_mantissa <= token < self.first_bin:
                scale = 2.0**power * (1 + (token - self.first_mantissa) / MANTISSAS)
            elif scale and token >= self.first_bin:
                found.append(scale * self.centres[token - self.first_bin])
            elif scale and token == MISSING:
                found.append(np.nan)
        return np.array(found, np.float64)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join("NA" if np.isnan(value) else f"{value:.6g}" for value in self.values(ids))

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        before = len(self.values(prompt))
        written = [*prompt, *ids]
        return self.decode(written).split(" ", before)[-1] if len(self.values(written)) > before else ""

    def settled(self, ids: Sequence[int]) -> int:
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"kind": "series tokens", "edges": fields["edges"], "kind_of_bins": self.kind_of_bins}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TokenCodec:
        if stored.get("kind") != "series tokens":
            raise BadInput(f"the codec of tokens is of the kind series tokens, not {stored.get('kind')!r}")
        return cast(TokenCodec, checked(cls, {k: v for k, v in stored.items() if k != "kind"}, ""))
