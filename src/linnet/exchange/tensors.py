"""The tensors of a model under other people's names, and safetensors files that hold them.

Ours keep queries, keys and values in one matrix, gate and value in another: one of ours may be several of theirs.
Headers of files are read first, so that a file that was cut is named together with the tensor that it ends in.
Nothing is ever unpickled: a folder that only has pickled weights is refused.
Legend: H = heads, D = head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from linnet.errors import BadInput
from linnet.model.config import ModelConfig
from linnet.model.model import Model
from linnet.untrusted import Fields, checked, parse_object, read_object

PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".model_state", ".th"})
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 100_000_000  # bytes, as in the safetensors library
FLOATS = {"F64", "F32", "F16", "BF16"}
MOST_NAMED = 5  # mistakes in one message
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How a stored tensor becomes (a part of) ours, and back."""

    read: Callable[[Tensor], Tensor]
    written: Callable[[Tensor], Tensor]


AS_IT_IS = Form(lambda tensor: tensor, lambda tensor: tensor)
TRANSPOSED = Form(lambda tensor: tensor.t(), lambda tensor: tensor.t())
LESS_ONE = Form(lambda tensor: tensor + 1, lambda tensor: tensor - 1)  # a norm multiplies by 1 + what is stored


def by_head(heads: int) -> Form:
    """Stored head by head as query, key, value [H, 3, D, ...]; ours are all queries, all keys, all values."""
    return Form(
        lambda tensor: tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2),
        lambda tensor: tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2),
    )


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, and the stored ones whose rows follow each other in it."""

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...]  # rows of ours that each of theirs gives
    shapes: tuple[Shape, ...]  # of theirs
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a model; several names where ours is joined from them."""

    prefix: str  # of everything but the head
    layer: str  # before the number of a layer
    parts: Mapping[str, str]  # names with blanks between them
    forms: Callable[[ModelConfig], Mapping[str, Form]] = lambda config: {}  # by their name
    buffers: tuple[str, ...] = ()  # endings of names that hold nothing learned

    @property
    def head(self) -> str:
        return f"{self.parts['head']}.weight"

    def entries(self, config: ModelConfig) -> list[Entry]:
        """All tensors of the model that this family has names for."""
        forms, found = self.forms(config), []
        heads = tuple(n * config.head_width for n in (config.attention.heads, config.kv_heads, config.kv_heads))
        for ours, shape in shapes(config).items():
            part, _, kind = ours.rpartition(".")
            layer = ""
            if part.startswith("blocks."):
                _, index, part = part.split(".", 2)
                layer = f"{self.layer}{index}."
            names = self.parts.get(part, "").split()
            sizes = heads if len(names) == 3 else (shape[0] // max(1, len(names)),) * len(names)
            turned = tuple(forms.get(name, AS_IT_IS) for name in names)
            stored = tuple((size, *shape[1:]) for size in sizes[: len(names)])
            stored = tuple(s[::-1] if form is TRANSPOSED else s for s, form in zip(stored, turned, strict=True))
            theirs = tuple(f"{layer}{name}.{kind}" for name in names)
            found.append(Entry(ours, theirs, sizes[: len(names)], stored, turned))
        return found


class Unfilled(TorchFunctionMode):
    """Leaves new tensors as they are: drawing their first values takes seconds, and nobody looks at them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of each of our tensors, without making them."""
    with torch.device("meta"), Unfilled():
        return {name: tuple(parameter.shape) for name, parameter in Model(config).named_parameters()}


def written_tensors(weights: Mapping[str, Tensor], entries: Iterable[Entry]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors from ours."""
    for entry in entries:
        parts = weights[entry.ours].split(entry.sizes)
        for name, part, form in zip(entry.theirs, parts, entry.forms, strict=True):
            yield name, form.written(part)


def read_tensors(entries: Iterable[Entry], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Our tensors from theirs, which `read` gives by name."""
    found = {}
    for entry in entries:
        parts = [form.read(read(name)) for name, form in zip(entry.theirs, entry.forms, strict=True)]
        found[entry.ours] = (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
    return found


def misfits(entries: Iterable[Entry], stored: Mapping[str, Shape]) -> tuple[list[str], list[str]]:
    """What is wrong with stored tensors, and the names of those that the model has not."""
    wanted = {name: shape for entry in entries for name, shape in zip(entry.theirs, entry.shapes, strict=True)}
    problems = [f"{name} {list(shape)} is missing" for name, shape in wanted.items() if name not in stored]
    problems += [
        f"{name} is {list(stored[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and stored[name] != shape
    ]
    return problems, sorted(set(stored) - set(wanted))


def refuse_misfits(settings: str, problems: list[str], strange: list[str]) -> None:
    """One error where the tensors are not those that the settings promise: some differ, or there are others."""
    reasons = [*problems, *(f"{name} has no place in this model" for name in strange)]
    if not reasons:
        return
    what = "promises what the tensors do not hold" if problems else "says nothing of tensors that are there"
    more = f"; and {len(reasons) - MOST_NAMED} more" if len(reasons) > MOST_NAMED else ""
    raise BadInput(f"{settings} {what}: {'; '.join(reasons[:MOST_NAMED])}{more}")


# Folders of safetensors files


@dataclass(frozen=True)
class Location:
    """Where one tensor is, as the header of its file says."""

    file: Path
    name: str  # in that file
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class StoredTensors:
    """All tensors of a folder by name; values are read when they are asked for."""

    folder: Path
    tensors: Mapping[str, Location]

    @classmethod
    def open(cls, folder: Path, names: Names) -> StoredTensors:
        """Folders of a model without its head leave the prefix of the family out; here it is always there."""
        tensors: dict[str, Location] = {}
        for file, expected in _shards(folder).items():
            found = _header(file)
            for name in expected:
                if name not in found:
                    raise BadInput(f"{folder / INDEX} says that {file.name} holds {name}, and it does not")
            tensors |= found
        if not any(name.startswith(names.prefix) for name in tensors):
            tensors = {name if name == names.head else names.prefix + name: at for name, at in tensors.items()}
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

    def read_all(self, names: Names, config: ModelConfig) -> dict[str, Tensor]:
        """Our tensors; whatever the settings promise and the files do not hold is named."""
        entries = names.entries(config)
        problems, strange = misfits(entries, {name: at.shape for name, at in self.tensors.items()})
        strange = [name for name in strange if not name.endswith(names.buffers)]
        if config.head.tied and names.head in strange:
            strange.remove(names.head)
            embedding = names.parts["embedding"] + ".weight"
            if embedding in self.tensors and not torch.equal(self.read(names.head), self.read(embedding)):
                problems.append(f"{names.head} differs from {embedding}, which tie_word_embeddings says it is")
        refuse_misfits(f"{self.folder}: config.json", problems, strange)
        return read_tensors(entries, self.read)


def _shards(folder: Path) -> dict[Path, tuple[str, ...]]:
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


def _header(file: Path) -> dict[str, Location]:
    """What a safetensors file says it holds, after a look at whether it is long enough for that."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            reason = f"its header takes {length:,} bytes" if size >= 8 else "a header takes 8 bytes at least"
            raise BadInput(f"{file} is cut or no safetensors file: {reason}, and the file has {size:,}")
        stored = parse_object(stream.read(length), f"{file} is no safetensors file: its header")
    stored.pop("__metadata__", None)
    found, stops = {}, {}
    for name, entry in stored.items():
        fields = Fields(f"{file}: tensor {name}", entry if isinstance(entry, dict) else {})
        shape, offsets = fields.integers("shape"), fields.integers("data_offsets")
        if len(offsets) != 2 or min(*shape, *offsets, 0) < 0:
            fields.problems.append("shape and data_offsets are lists of sizes, the second one of two")
        found[name] = Location(file, name, tuple(shape), fields.text("dtype"))
        fields.refuse()
        stops[name] = 8 + length + offsets[1]
    for name, stop in sorted(stops.items(), key=lambda entry: entry[1]):
        if stop > size:
            raise BadInput(f"{file} is cut: tensor {name} ends at byte {stop:,}, and the file has {size:,}")
    return found
