"""What a GGUF file holds: its keys, and where its tensors are.

A file that was cut is named with the key or tensor that it ends in. How numbers are packed in a tensor is the
business of the `gguf` library. The layout is that of the format's specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput, library
from linnet.untrusted import Fields, refusing

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4
MOST_ALIGNMENT = 1 << 20


def gguf_library() -> Any:
    """The `gguf` package, or the advice to install it."""
    return library("gguf", "GGUF needs the gguf library", "gguf")


@dataclass(frozen=True)
class Stored:
    """One tensor: its shape (rows first), its type by the format's number, and its bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class Cursor:
    """A position in the file that moves on as it is read; `doing` says what is being read."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.position, self.doing = file, data, 0, "its header"

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise BadInput(
                f"{self.file} is cut: {self.doing} goes on to byte {end:,}, and the file has {len(self.data):,}"
            )
        self.position = end
        return self.data[end - size : end]

    def number(self, code: str) -> Any:
        (found,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return float(str(np.float32(found))) if code == "f" else found  # 1e-06, and not 9.999999974752427e-07

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """A number, a text, or a list of one of them."""
        if kind != ARRAY:
            return self.single(kind)
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            code = NUMBERS[inner]
            return np.frombuffer(self.take(count * struct.calcsize(f"<{code}")), f"<{code}").tolist()
        if inner == ARRAY:
            raise BadInput(f"{self.file}: {self.doing} is a list of lists, which linnet does not read")
        return [self.single(inner) for _ in range(count)]

    def single(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        raise BadInput(f"{self.file}: {self.doing} has the unknown type {kind}")

    def new(self, what: str, known: dict[str, Any], before: str) -> str:
        """The name of the next key or tensor, which must not have been there before."""
        self.doing = f"the {what} after {next(reversed(known), before)}"
        name = self.text()
        self.doing = f"{what} {name[:60]}"
        if name in known:
            raise BadInput(f"{self.file}: {self.doing} is there twice")
        return name


@dataclass(frozen=True)
class GgufFile:
    """Keys and tensors of one file."""

    path: Path
    keys: Mapping[str, Any]
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
        tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            name = cursor.new("key", keys, "the header")
            keys[name] = cursor.value(cursor.number("I"))
        described: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name = cursor.new("tensor", described, "the keys")
            dimensions = cursor.number("I")
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise BadInput(f"{cursor.file}: {cursor.doing} has {dimensions} dimensions, not 1 to 4")
            shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
            described[name] = (shape, cursor.number("I"), cursor.number("Q"))
        fields = Fields(str(cursor.file), keys)
        alignment = fields.integer("general.alignment", 32, most=MOST_ALIGNMENT)
        fields.refuse()
        start = -(-cursor.position // alignment) * alignment
        return cls(cursor.file, keys, _located(cursor, described, start))

    def read(self, name: str) -> Tensor:
        """One tensor in float32."""
        stored = self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, stored.size, offset=stored.start)
        kind = gguf_library().GGMLQuantizationType(stored.kind)
        with (
            refusing(f"{self.path}: tensor {name} is stored as {kind.name}, which cannot be read", RuntimeError),
            np.errstate(all="ignore"),
        ):
            values = gguf_library().quants.dequantize(raw.reshape(*stored.shape[:-1], -1), kind)
        return torch.from_numpy(np.array(values, np.float32).reshape(stored.shape))


def _located(
    cursor: Cursor, described: Mapping[str, tuple[tuple[int, ...], int, int]], start: int
) -> dict[str, Stored]:
    """Where the bytes of each tensor are, after a look at whether the file has them."""
    known = {int(kind): sizes for kind, sizes in gguf_library().GGML_QUANT_SIZES.items()}
    located = {}
    for name, (shape, kind, offset) in sorted(described.items(), key=lambda entry: entry[1][2]):
        tensor = f"{cursor.file}: tensor {name[:60]}"
        if kind not in known:
            raise BadInput(f"{tensor} has the unknown type {kind}")
        block, size = known[kind]
        if min(shape) < 1 or shape[-1] % block:
            rows = f"rows of whole blocks of {block}" if block > 1 else "at least one value in each dimension"
            raise BadInput(f"{tensor} has the shape {list(shape)}; its type needs {rows}")
        total = math.prod(shape) // block * size
        end = start + offset + total
        if end > len(cursor.data):
            raise BadInput(
                f"{cursor.file} is cut: tensor {name[:60]} ends at byte {end:,}, not {len(cursor.data):,}"
            )
        located[name] = Stored(shape, kind, start + offset, total)
    return located
