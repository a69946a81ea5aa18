"""A run: everything that decides what training does, as one frozen value and as `run.toml`.

Recipes make runs, `--set` changes them, and the resolved run is written before the first step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from linnet import untrusted
from linnet.domains.arithmetic import ArithmeticData
from linnet.domains.places.data import PlacesData
from linnet.domains.text import TextData
from linnet.errors import BadInput, nearest
from linnet.model.config import ModelConfig, Part
from linnet.model.losses import LossConfig
from linnet.model.places.config import PlaceModelConfig, ScorerConfig, not_of_the_scorer
from linnet.training.schedules import Cosine, Schedule

FORMAT = 1

Data = Annotated[ArithmeticData | TextData | PlacesData, Field(discriminator="domain")]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class OptimConfig(Part):
    """`muon` moves the hidden matrices with Muon and everything else with AdamW. 0 switches an item off.

    `sgd` is plain gradient descent without momentum: the baseline that some reports measure against.
    """

    kind: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of its products; auto: what is fast here
    schedule: Schedule = Cosine()
    clip: float = Field(1.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)


class TrainingConfig(Part):
    """Length, batches, and what is done on the way. `batch` counts all rows of one step."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch: int = Field(64, ge=1)
    accumulation: int = Field(1, ge=1)
    packing: Literal["padded", "packed", "apart"] = "padded"  # apart: packed, and no row sees another
    eval_every: int | None = Field(None, ge=1)  # steps; None: see evals_per_epoch
    evals_per_epoch: float | None = Field(None, gt=0)  # None and no eval_every: ten validations in all
    patience: int | None = Field(None, ge=1)  # validations without a better loss; None: never stop early
    keep: int = Field(2, ge=1)  # newest checkpoints that stay, beside the best
    compile: Literal["auto", "on", "off"] = "auto"
    log_every: int = Field(0, ge=0)  # steps between looks at the device (each is logged); 0: 1, on a GPU 10
    prefetch: int = Field(4, ge=1)
    most_parameters: int | None = Field(None, ge=1)  # a larger network is refused before it trains
    eval_batch: int = Field(256, ge=1)
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.accumulation > self.batch:
            raise ValueError(f"a batch of {self.batch} rows cannot be cut into {self.accumulation} parts")
        return self


class Augmentation(Part):
    """Changes to the training data alone, which some challenges forbid. 0 switches an item off."""

    mask: float = Field(0.0, ge=0, lt=1)  # share of input tokens that are replaced by random ones
    drop: float = Field(0.0, ge=0, lt=1)  # share of rows (documents) that an epoch does not learn from


class Run(Part):
    format: int = FORMAT
    recipe: str
    seed: int = Field(1, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    threads: int = Field(0, ge=0)  # 0: as many as torch finds; stored, because sums depend on it
    data: Data
    model: ModelConfig = ModelConfig()
    next_place: PlaceModelConfig | None = None  # runs on places: this network stands in for `model`
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    augment: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _terms_have_a_meaning(self) -> Run:
        if self.next_place is not None and self.loss != LossConfig():
            raise ValueError("loss.smoothing, z_loss and r_drop are for models of tokens; this run names places")
        if self.loss.r_drop and not self.model.dropout:
            raise ValueError("loss.r_drop compares two passes with different dropout, and model.dropout is 0")
        return self


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
    check_format(tree, source)
    try:
        run = TypeAdapter(Run).validate_python(tree)
    except ValidationError as error:
        raise BadInput(f"{source}: {explain(error, tree)}") from None
    read = flatten(run.model_dump(mode="json"))
    for key, value in flatten(tree).items():
        if isinstance(value, bool) and not isinstance(read.get(key), bool):  # pydantic takes true for 1
            raise BadInput(f"{source}: {key} is no switch; it cannot be {str(value).lower()}")
    return run


def check_format(tree: Mapping[str, Any], source: str) -> None:
    """Refuse settings that a newer linnet has written."""
    stored = tree.get("format", FORMAT)
    if isinstance(stored, int | float) and stored > FORMAT:
        raise BadInput(
            f"{source} has run format {stored}, and this linnet reads up to {FORMAT}: update linnet to open it"
        )


def explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first mistakes of a validation, in words."""
    said = []
    for mistake in error.errors()[:3]:
        where = dotted(mistake["loc"], tree)
        if mistake["type"] == "extra_forbidden":
            said.append(f'unknown key "{where}"{nearest_key(where, known_keys())}')
        else:
            got = mistake["input"] if isinstance(mistake["input"], str | int | float | bool) else None
            value = "" if got is None else f" (it is {got!r})"
            said.append(f"{where or 'settings'}: {mistake['msg'].removeprefix('Value error, ')}{value}")
    return "; ".join(said)


def dotted(location: Iterable[int | str], tree: Any) -> str:
    """Where a mistake is, without the names of the kinds that were chosen on the way there."""
    keys = []
    for part in location:
        inside = tree if isinstance(tree, Mapping) else {}
        if part in inside or part not in (inside.get("kind"), inside.get("domain")):
            keys.append(str(part))
            tree = inside.get(part)
    return ".".join(keys)


def known_keys() -> list[str]:
    """Every setting that some run has, dotted."""
    runs = [Run(recipe="", data=data) for data in (ArithmeticData(), TextData())]
    return sorted({key for run in runs for key in flatten(run.model_dump(mode="json"))})


def read_toml(path: Path) -> dict[str, Any]:
    return untrusted.read_toml(path)


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
        value = untrusted.parse_toml(f"value = {text}", f"{key}={untrusted.shown(text)}").get("value")
    except untrusted.Malformed:
        value = text.strip()
    return key.strip(), value


def changed(run: Run, settings: Iterable[tuple[str, Any]], source: str = "--set") -> Run:
    """The run with these settings; a key may leave out its part where it is clear (`steps`, `lr`).

    A schedule is chosen before its own settings are made, wherever it stands among them.
    """
    given = [(key, value) for key, value in settings if not idle_filter(run, key, value, source)]
    for key, value in given:
        if chooses_schedule(key, value):
            tree = run.model_dump(mode="json")
            full_key(tree, key, source)
            tree["optim"]["schedule"] = {"kind": value}
            run = parse(tree, f"{source} {key}={value}")
    tree, wrong = run.model_dump(mode="json"), None
    for key, value in given:
        if chooses_schedule(key, value):
            continue
        full = full_key(tree, key, source)
        refuse_group(tree, full, value, source)
        put(tree, full.split("."), value)
        try:
            run = parse(tree, f"{source} {key}={value}")
        except BadInput as error:  # a later setting may make it fit, as the number of heads does for a width
            wrong = wrong or error
        else:
            tree, wrong = run.model_dump(mode="json"), None
    if wrong is not None:
        raise wrong
    return run


def idle_filter(run: Run, key: str, value: Any, source: str) -> bool:
    """Whether this is `filter=none` for the scorer, which has no filter; what else it has not is refused."""
    if not isinstance(run.next_place, ScorerConfig):
        return False
    if wrong := not_of_the_scorer(key, value):
        raise BadInput(f"{source}: {wrong}")
    return key.removeprefix("next_place.") == "filter"


def refuse_group(tree: Mapping[str, Any], key: str, value: Any, source: str) -> None:
    """A word for a whole part says nothing of what is inside."""
    inside = [name for name in flatten(tree) if name.startswith(f"{key}.")]
    if inside and not isinstance(value, Mapping):
        meant = f"{key}.kind" if f"{key}.kind" in inside else inside[0]
        raise BadInput(f"{source} {key}={value}: {key} is a group of settings; name one, such as {meant}={value}")


def chooses_schedule(key: str, value: Any) -> bool:
    ending = key.split(".")[-2:]
    return ending == ["schedule", "kind"] or (ending[-1] == "schedule" and isinstance(value, str))


EITHER = {
    "steps": "epochs",
    "epochs": "steps",
    "eval_every": "evals_per_epoch",
    "evals_per_epoch": "eval_every",
}


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Change one setting in place; two ways to say the same replace each other."""
    branch = tree
    for part in path[:-1]:
        branch = branch[part]
    branch[path[-1]] = value
    if path[-1] in EITHER:
        tree["training"][EITHER[path[-1]]] = None


def full_key(tree: Mapping[str, Any], key: str, source: str) -> str:
    """The dotted key that is meant; a short one must fit exactly one setting, or else one group of them."""
    flat = flatten(tree)
    groups = {".".join(name.split(".")[:end]) for name in flat for end in range(1, name.count(".") + 1)}
    if key in flat or key in groups:
        return key
    fits = [name for name in flat if name.endswith("." + key)] or [n for n in groups if n.endswith("." + key)]
    shallowest = [name for name in fits if name.count(".") == min(fit.count(".") for fit in fits)]
    if len(shallowest) == 1:
        return shallowest[0]
    if fits:
        raise BadInput(f'{source}: "{key}" could be any of {", ".join(fits)}: say which')
    parent = key.rpartition(".")[0]
    if flat.get(parent) == {} or any(name.startswith(f"{parent}.") for name in flat if parent == "model.fields"):
        return key  # an open group, such as model.fields
    raise BadInput(f'{source}: unknown key "{key}"{nearest_key(key, flat)}')


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The hint of `nearest` for a key that may have left out its part, as `wamup` has."""
    parts = key.count(".") + 1
    endings = {name: ".".join(name.split(".")[-parts:]) for name in known}
    close = difflib.get_close_matches(key, sorted(set(endings.values())), n=1, cutoff=0.5)
    meant = [f'"{name}"' for name, ending in endings.items() if ending in close]
    return f"; did you mean {' or '.join(meant)}?" if meant else nearest(key, endings)
