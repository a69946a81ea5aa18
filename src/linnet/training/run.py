"""A run: everything that decides what training does, as one frozen value and as `run.toml`.

Recipes make runs, `--set` changes them, and the resolved run is written before the first step.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from linnet.domains.arithmetic import ArithmeticData
from linnet.errors import BadInput, nearest
from linnet.model.config import ModelConfig, Part
from linnet.training.schedules import Cosine, Schedule

FORMAT = 1

Data = Annotated[ArithmeticData, Field(discriminator="domain")]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class OptimConfig(Part):
    """`muon` moves the hidden matrices with Muon and everything else with AdamW. 0 switches an item off."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    schedule: Schedule = Cosine()
    clip: float = Field(1.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)


class TrainingConfig(Part):
    """Length, batches, and what is done on the way. `batch` counts all rows of one step."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch: int = Field(64, ge=1)
    accumulation: int = Field(1, ge=1)
    eval_every: int | None = Field(None, ge=1)  # steps; None: see evals_per_epoch
    evals_per_epoch: float | None = Field(None, gt=0)  # None and no eval_every: ten validations in all
    patience: int | None = Field(None, ge=1)  # validations without a better loss; None: never stop early
    keep: int = Field(2, ge=1)  # newest checkpoints that stay, beside the best
    compile: Literal["auto", "on", "off"] = "auto"
    log_every: int = Field(1, ge=1)  # steps between looks at the device; every step is logged all the same
    prefetch: int = Field(4, ge=1)
    eval_batch: int = Field(256, ge=1)
    sinks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.accumulation > self.batch:
            raise ValueError(f"a batch of {self.batch} rows cannot be cut into {self.accumulation} parts")
        return self


class Run(Part):
    format: int = FORMAT
    recipe: str
    seed: int = Field(1, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    threads: int = Field(0, ge=0)  # 0: as many as torch finds; stored, because sums depend on it
    data: Data
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()


def to_toml(run: Run) -> str:
    return tomli_w.dumps(_without_none(run.model_dump(mode="json")))


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }


def parse(tree: Mapping[str, Any], source: str) -> Run:
    """A run from nested settings; every mistake is named with its key and the nearest right name."""
    stored = tree.get("format", FORMAT)
    if isinstance(stored, int) and stored > FORMAT:
        raise BadInput(
            f"{source} has run format {stored}, and this linnet reads up to {FORMAT}: update linnet to open it"
        )
    try:
        return TypeAdapter(Run).validate_python(tree)
    except ValidationError as error:
        raise BadInput(f"{source}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first mistakes of a validation, in words."""
    said = []
    for mistake in error.errors()[:3]:
        where = ".".join(str(part) for part in mistake["loc"] if part not in ("arithmetic", "text", "places"))
        if mistake["type"] == "extra_forbidden":
            said.append(f'unknown key "{where}"{nearest(where, known_keys())}')
        else:
            got = mistake["input"] if isinstance(mistake["input"], str | int | float | bool) else None
            value = "" if got is None else f" (it is {got!r})"
            said.append(f"{where or 'settings'}: {mistake['msg'].removeprefix('Value error, ')}{value}")
    return "; ".join(said)


def known_keys() -> list[str]:
    """Every setting that some run has, dotted."""
    run = Run(recipe="", data=ArithmeticData())
    return sorted(flatten(run.model_dump(mode="json")))


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an empty group stays as a key of its own."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def parse_setting(setting: str) -> tuple[str, Any]:
    """`key=value`, the value as TOML or else as plain text."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise BadInput(f'a setting has the form key=value, and "{setting}" has not')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        value = text.strip()
    return key.strip(), value


def changed(run: Run, settings: Iterable[tuple[str, Any]], source: str = "--set") -> Run:
    """The run with these settings; a key may leave out its part where it is clear (`steps`, `depth`)."""
    tree = run.model_dump(mode="json")
    for key, value in settings:
        path = full_key(tree, key, source).split(".")
        branch = tree
        for part in path[:-1]:
            branch = branch[part]
        leaf = path[-1]
        if leaf == "schedule" and isinstance(value, str):
            branch[leaf] = {"kind": value}
        elif leaf == "kind" and path[-2] == "schedule":
            tree["optim"]["schedule"] = {"kind": value}
        else:
            branch[leaf] = value
            if leaf in ("steps", "epochs"):
                tree["training"]["epochs" if leaf == "steps" else "steps"] = None
        run = parse(tree, f"{source} {key}={value}")
        tree = run.model_dump(mode="json")
    return run


def full_key(tree: Mapping[str, Any], key: str, source: str) -> str:
    """The dotted key that is meant; a short one must fit exactly one setting."""
    flat = flatten(tree)
    groups = {".".join(name.split(".")[:end]) for name in flat for end in range(1, name.count(".") + 1)}
    if key in flat or key in groups:
        return key
    fits = [name for name in flat if name.endswith("." + key)]
    shallowest = [name for name in fits if name.count(".") == min(fit.count(".") for fit in fits)]
    if len(shallowest) == 1:
        return shallowest[0]
    if fits:
        raise BadInput(f'{source}: "{key}" could be any of {", ".join(fits)}: say which')
    parent = key.rpartition(".")[0]
    if flat.get(parent) == {} or any(name.startswith(f"{parent}.") for name in flat if parent == "model.fields"):
        return key  # an open group, such as model.fields
    raise BadInput(f'{source}: unknown key "{key}"{nearest(key, flat)}')
