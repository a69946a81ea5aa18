"""Tensors of a folder in the safetensors form, in one file or in shards with an index.

Headers are read first, so that a file that was cut is named together with the tensor that it ends in.
Nothing is ever unpickled: a folder that only has pickled weights is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from linnet.errors import BadInput
from linnet.untrusted import Fields, checked, parse_object, read_object

PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".model_state", ".th"})
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 100_000_000  # bytes, as in the safetensors library
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Location:
    """Where one tensor is, as the header of its file says."""

    file: Path
    name: str  # in that file
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StoredTensors:
    """All tensors of a folder by name; values are read when they are asked for."""

    folder: Path
    tensors: Mapping[str, Location]

    @classmethod
    def open(cls, folder: Path) -> StoredTensors:
        tensors: dict[str, Location] = {}
        for file, expected in shards(folder).items():
            found = header(file)
            for name in expected:
                if name not in found:
                    raise BadInput(f"{folder / INDEX} says that {file.name} holds {name}, and it does not")
            tensors |= found
        return cls(folder, tensors)

    def read(self, name: str) -> Tensor:
        """One tensor in float32."""
        at = self.tensors[name]
        if at.dtype not in FLOATS:
            known = ", ".join(sorted(FLOATS))
            raise BadInput(f"{at.file}: {name} is stored as {at.dtype}; linnet reads {known}")
        try:
            with safe_open(at.file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(at.name)
        except SafetensorError as error:
            raise BadInput(f"{at.file}: {name} cannot be read ({error})") from None
        return tensor.to(torch.float32)


def shards(folder: Path) -> dict[Path, tuple[str, ...]]:
    """The safetensors files of a folder, and the tensors that an index promises in each."""
    index = folder / INDEX
    if index.is_file():
        promised = checked(dict[str, str], read_object(index).get("weight_map"), f"{index}: weight_map")
        if outside := sorted({name for name in promised.values() if Path(name).name != name}):
            raise BadInput(f"{index} names a file outside its folder: {outside[0]}")
        names = sorted(set(promised.values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise BadInput(f"{index} names {', '.join(missing)}, which {folder} does not have")
        return {folder / name: tuple(t for t, file in promised.items() if file == name) for name in names}
    if (folder / ONE_FILE).is_file():
        return {folder / ONE_FILE: ()}
    if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED):
        raise BadInput(
            f"{folder} has pickled weights only ({', '.join(pickled[:3])}), and reading those can run any code; "
            f"have whoever wrote them save {ONE_FILE} (transformers: save_pretrained does)"
        )
    raise BadInput(f"{folder} has neither {ONE_FILE} nor {INDEX}")


def header(file: Path) -> dict[str, Location]:
    """What a safetensors file says it holds, after a look at whether it is long enough for that."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            reason = f"its header takes {length:,} bytes" if size >= 8 else "a header takes 8 bytes at least"
            raise BadInput(f"{file} is cut or no safetensors file: {reason}, and the file has {size:,}")
        if length > MOST_HEADER:
            raise BadInput(f"{file} is no safetensors file: a header of {length:,} bytes is too long")
        stored = parse_object(stream.read(length), f"{file} is no safetensors file: its header")
    entries = {}
    for name, entry in stored.items():
        if name != "__metadata__":
            fields = Fields(f"{file}: tensor {name}", entry if isinstance(entry, dict) else {})
            shape, offsets = fields.integers("shape"), fields.integers("data_offsets")
            if len(offsets) != 2 or min(*shape, *offsets, 0) < 0:
                fields.problems.append("shape and data_offsets are lists of sizes, the second one of two")
            entries[name] = (fields.text("dtype"), tuple(shape), offsets[-1] if offsets else 0)
            fields.refuse()
    for name, (_, _, stop) in sorted(entries.items(), key=lambda entry: entry[1][2]):
        if 8 + length + stop > size:
            raise BadInput(
                f"{file} is cut: tensor {name} ends at byte {8 + length + stop:,}, and the file has {size:,}"
            )
    return {name: Location(file, name, shape, dtype) for name, (dtype, shape, _) in entries.items()}
