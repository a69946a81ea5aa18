"""The begin and end ids that the files of a model name, each checked against its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from linnet.errors import BadInput

# What transformers writes into a config where nobody chose; such an id may lie beyond a small vocabulary.
UNCHOSEN: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"bos_token_id": 50256, "eos_token_id": 50256},
    "gpt_neox": {"bos_token_id": 0, "eos_token_id": 2},
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
}


@dataclass
class SpecialIds:
    """Reads special ids for one model; `notes` says which were left out and why."""

    family: str
    vocabulary: int
    unchosen: dict[str, str] = field(default_factory=dict)  # a note for each key, whichever file had it first

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.unchosen.values())

    def of(self, said: Mapping[str, Any], file: object, key: str) -> tuple[int, ...]:
        """The ids under this key of a file: one, a list, or none; -1 says that there is none."""
        value = said.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        found = []
        for i in values:
            if not isinstance(i, int) or isinstance(i, bool):
                raise BadInput(f"{file}: {key} is {value!r}, neither a token id nor a list of them")
            if self._exists(i, file, key):
                found.append(i)
        return tuple(dict.fromkeys(found))

    def _exists(self, i: int, file: object, key: str) -> bool:
        if i == -1:
            return False
        if 0 <= i < self.vocabulary:
            return True
        said = f"{file}: {key} names {i}, and the ids of this model are 0..{self.vocabulary - 1}"
        if UNCHOSEN.get(self.family, {}).get(key) != i:
            raise BadInput(said)
        self.unchosen.setdefault(key, f"{said}; transformers writes that where nobody chose, so it is left out")
        return False
