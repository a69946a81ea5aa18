"""A trained run, opened: its settings, its codec and its network, ready to be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from linnet.codecs import Codec
from linnet.errors import BadInput, refuse_unknown
from linnet.files import is_utf8, write_atomically
from linnet.records import RunRecord
from linnet.training.checkpoint import Damaged, RunFolder, load_weights
from linnet.training.run import Run
from linnet.training.settings import parse, parse_setting
from linnet.untrusted import read_object, read_toml, shown

if TYPE_CHECKING:
    import torch

    from linnet.decoding.products import Weights
    from linnet.model.contract import Network
    from linnet.model.model import Model

ENDS = "further_ends"


@dataclass(frozen=True)
class Opened:
    folder: RunFolder
    run: Run
    codec: Codec
    network: Network
    step: int
    region: Callable[[], AbstractContextManager[object]]  # the chosen precision

    @property
    def model(self) -> Model:
        """The network, where it is the model of tokens."""
        from linnet.domains.tokens import decoder

        return decoder(self.network)

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt, with the begin token of models that have one."""
        begin = [] if self.codec.begin is None else [self.codec.begin]
        return (*begin, *self.codec.encode(text).ids.tolist())


def located(data: Sequence[Path | str] | Path | str) -> list[Path]:
    """The whole paths of files and folders that exist; `hf:NAME` is a data set of the hub and stays as it is."""
    given = [Path(file) for file in ([data] if isinstance(data, Path | str) else data)]
    found = [file if str(file).startswith("hf:") else file.resolve() for file in given]
    for file in found:
        if not str(file).startswith("hf:") and not file.exists():
            raise BadInput(f"there is no file {file}")
        if not is_utf8(file):
            raise BadInput(f"the name {str(file)!r} is no UTF-8, so no run can remember it; rename the file")
    return found


KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def options_of(given: Sequence[str], **known: Any) -> dict[str, Any]:
    """The settings of a verb: the known ones with their defaults, changed by `--set`."""
    chosen = dict(known)
    for setting in given:
        key, value = parse_setting(setting)
        key = key.removeprefix("data.")
        refuse_unknown(key, known, "--set: unknown key")
        kind = type(known[key])
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise BadInput(f"--set {setting}: {key} needs {KINDS[kind]}, not {value!r}")
        if isinstance(value, int) and value < 1:
            raise BadInput(f"--set {setting}: {key} must be at least 1")
        chosen[key] = value
    return chosen


def threads_of(run: Run) -> AbstractContextManager[None]:
    """As many threads as training had, or all that there are where those are fewer: sums depend on it."""
    import torch

    from linnet.machine import threads

    return threads(min(run.threads, torch.get_num_threads()))


def refuse_unknown_run(path: Path) -> None:
    """Name what is no run, before anything is loaded that takes seconds."""
    read_run(RunFolder.open(path))


def read_run(folder: RunFolder) -> Run:
    return parse(read_toml(folder.settings), str(folder.settings))


def read_record(folder: RunFolder) -> RunRecord | None:
    """What the run ended with; None while it has not."""
    try:
        record = RunRecord.model_validate_json(folder.record.read_bytes())
        return record.model_copy(update={"path": str(folder.path)})  # the folder may have been moved
    except FileNotFoundError:
        return None
    except ValidationError:
        raise BadInput(
            f"{folder.record} is not what was written; remove it, and linnet resume {folder.path} makes it again"
        ) from None


def read_codec(folder: RunFolder, run: Run) -> Codec:
    if not folder.codec.is_file():
        raise BadInput(f"{folder.path} has no codec.json: its training never began")
    try:
        return run.data.codec_from(read_object(folder.codec))
    except BadInput as error:
        raise BadInput(f"{folder.codec}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"{folder.codec} is broken ({type(error).__name__}: {error})") from None


def keep_ends(folder: RunFolder, ends: tuple[int, ...]) -> None:
    """Ids that end a text beside the end token of the codec, which models of other people may have."""
    if ends:
        write_atomically(folder.generation, json.dumps({ENDS: ends}).encode())


def further_ends(folder: RunFolder, vocabulary: int) -> tuple[int, ...]:
    """The ids that an imported run keeps; refuses what is no id of its model."""
    if not folder.generation.is_file():
        return ()
    stored = read_object(folder.generation).get(ENDS)
    right = isinstance(stored, list) and all(type(i) is int and 0 <= i < vocabulary for i in stored)
    if not isinstance(stored, list) or not right:
        ids = f"a list of ids of this model (0..{vocabulary - 1})"
        raise BadInput(f"{folder.generation}: {ENDS} is {shown(stored)}, not {ids}")
    return tuple(stored)


def load(
    path: Path | str, *, checkpoint: int | None = None, device: str | None = None, precision: str | None = None
) -> Opened:
    """The network of a run at its best checkpoint (or a named one), with averaged weights where it has them."""
    from linnet.model.costs import refuse_too_large

    folder = RunFolder.open(Path(path))
    run = read_run(folder)
    step = checkpoint if checkpoint is not None else folder.best()
    if step is None:
        raise BadInput(f"{path} has no checkpoint yet; go on with: linnet resume {path}")
    if step not in folder.steps():
        there = ", ".join(map(str, folder.steps()))
        raise BadInput(f"{path} has no checkpoint of step {step}; there is {there}")
    codec = read_codec(folder, run)
    refuse_too_large(run.model)
    network = run.data.network(run.model, codec)
    try:
        load_weights(network, folder.tensors(step, run.weights), str(folder.at(step)))
    except Damaged as error:
        raise BadInput(f"{folder.at(step)} is broken ({error}); name another with --checkpoint") from None
    import torch

    from linnet.machine import autocast

    chosen = torch.device(chosen_device(device))
    used = precision if precision not in (None, "auto") else automatic(precision, chosen, run)
    return Opened(folder, run, codec, network.to(chosen).eval(), step, lambda: autocast(chosen, used))


def opened_run(run: Path | str | Opened, *, checkpoint: int | None = None, device: str | None = None) -> Opened:
    """The best checkpoint of a run (or a named one) in float32; an opened run as it is."""
    if not isinstance(run, Opened):
        return load(run, checkpoint=checkpoint, device=device, precision="float32")
    if checkpoint is not None or device is not None:
        raise BadInput("an opened run has its checkpoint and its device; choose them where it is loaded")
    return run


def load_packed(
    path: Path | str, *, checkpoint: int | None = None, device: str | None = None, precision: str | None = None
) -> Opened:
    """A run that only decodes and scores: its matrix products are packed in this precision."""
    from linnet.decoding.products import packed

    weights = weights_in(precision)
    opened = load(path, checkpoint=checkpoint, device=device, precision="float32")
    return replace(opened, network=packed(opened.model, weights))


def weights_in(precision: str | None) -> Weights:
    """The number format of packed weights that this precision means."""
    from linnet.decoding.products import named

    return named(str({"bf16": "bfloat16", "auto": "float32", None: "float32"}.get(precision, precision)))


def chosen_device(device: str | None) -> str:
    import torch

    if device in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; use --device cpu or auto")
    try:
        return str(torch.device(str(device)))
    except RuntimeError:
        raise BadInput(f"there is no device {device!r}; use cpu, cuda or auto") from None


def automatic(precision: str | None, device: torch.device, run: Run) -> str:
    """float32 unless a person says otherwise; `auto` is such a word."""
    from linnet.machine import automatic_precision

    return "float32" if precision is None else automatic_precision(device.type, run.model.channels)
