"""What a GGUF file holds: its keys and the places of its tensors.

A file that was cut is named with the key or tensor that it ends in. How numbers are packed in a tensor is the
business of the `gguf` library.

The layout is that of the format's specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.exchange.gguf_writing import library

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Stored:
    """One tensor: its shape (rows first), its type by the format's number, and its bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class Cursor:
    """A place in the file that moves on as it is read; `doing` says what is being read."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.place, self.doing = file, data, 0, "its header"

    def take(self, size: int) -> bytes:
        end = self.place + size
        if end > len(self.data):
            raise BadInput(
                f"{self.file} is cut: {self.doing} goes on to byte {end:,}, and the file has {len(self.data):,}"
            )
        taken = self.data[self.place : end]
        self.place = end
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise BadInput(f"{self.file}: {self.doing} has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            return np.frombuffer(self.take(count * struct.calcsize(f"<{NUMBERS[inner]}")), f"<{NUMBERS[inner]}")
        return [self.value(inner) for _ in range(count)]


@dataclass(frozen=True)
class GgufFile:
    """Keys and tensors of one file."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        if not path.is_file():
            raise BadInput(f"there is no file {path}")
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise BadInput(f"{path} is no GGUF file: it does not begin with GGUF")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return cls._read(Cursor(path, data))

    @classmethod
    def _read(cls, cursor: Cursor) -> GgufFile:
        cursor.take(4)
        version = cursor.number("I")
        if version not in (2, 3):
            raise BadInput(f"{cursor.file} has GGUF version {version}; linnet reads 2 and 3, little-endian")
        tensors, keys = cursor.number("Q"), cursor.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(keys):
            cursor.doing = f"the key after {next(reversed(fields), 'the header')}"
            key = cursor.text()
            cursor.doing = f"key {key}"
            fields[key] = cursor.value(cursor.number("I"))
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            cursor.doing = f"the tensor after {next(reversed(found), 'the keys')}"
            name = cursor.text()
            cursor.doing = f"the description of tensor {name}"
            dimensions = cursor.number("I")
            if dimensions > MOST_DIMENSIONS:
                raise BadInput(f"{cursor.file}: tensor {name} has {dimensions} dimensions")
            shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
            found[name] = (shape, cursor.number("I"), cursor.number("Q"))
        alignment = int(fields.get("general.alignment", 32))
        start = -(-cursor.place // alignment) * alignment
        return cls(cursor.file, fields, _placed(cursor, found, start))

    def read(self, name: str) -> Tensor:
        """One tensor in float32."""
        gguf, stored = library(), self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, stored.size, offset=stored.start)
        kind = gguf.GGMLQuantizationType(stored.kind)
        if stored.shape:
            raw = raw.reshape(*stored.shape[:-1], -1)
        try:
            values = gguf.quants.dequantize(raw, kind)
        except NotImplementedError:
            raise BadInput(
                f"{self.path}: tensor {name} is stored as {kind.name}, which linnet cannot read"
            ) from None
        return torch.from_numpy(np.array(values, np.float32).reshape(stored.shape))


def _placed(
    cursor: Cursor, found: Mapping[str, tuple[tuple[int, ...], int, int]], start: int
) -> dict[str, Stored]:
    """Where the bytes of each tensor are, after a look at whether the file has them."""
    gguf, placed = library(), {}
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for name, (shape, kind, offset) in sorted(found.items(), key=lambda entry: entry[1][2]):
        if kind not in known:
            raise BadInput(f"{cursor.file}: tensor {name} has the unknown type {kind}")
        block, size = known[kind]
        total = int(np.prod(shape, dtype=np.int64)) // block * size
        end = start + offset + total
        if end > len(cursor.data):
            raise BadInput(f"{cursor.file} is cut: tensor {name} ends at byte {end:,}, not {len(cursor.data):,}")
        placed[name] = Stored(shape, kind, start + offset, total)
    return placed
