"""Settings of a run as text: `run.toml`, `--set key=value`, and what is wrong with them in words.

A key may leave out its part where that is clear (`steps`, `lr`). Every mistake is named with its key and the
nearest right name of that run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from linnet import untrusted
from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.training.run import FORMAT, Run

Settings = TypeVar("Settings", bound=BaseModel)


def to_toml(run: Run) -> str:
    """The whole run, without the settings that it does not use."""
    return tomli_w.dumps(without_unused(run))


def without_unused(run: Run) -> dict[str, Any]:
    """The settings that the run uses, nested."""
    tree, unused = run.model_dump(mode="json"), run.unused()
    return _kept(tree, "", unused)


def _kept(tree: Mapping[str, Any], prefix: str, unused: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if value is None or prefix + key in unused:
            continue
        kept = _kept(value, f"{prefix}{key}.", unused) if isinstance(value, Mapping) else value
        if kept != {} or value == {}:
            found[key] = kept
    return found


def parse(tree: Mapping[str, Any], source: str) -> Run:
    """A run from nested settings."""
    tree = upgraded(tree, source)
    data = tree.get("data")
    if not isinstance(data, Mapping) or "domain" not in data:
        raise BadInput(f"{source}: data.domain is missing; it names one of {', '.join(registry().domains)}")
    domain = registry().settings(data["domain"])
    model = tree.get("model", {})
    if not isinstance(model, Mapping):
        raise BadInput(f"{source}: model is a group of settings, not {model!r}")
    network = domain.network_config(model.get("kind"))
    parts = {
        "data": validated(domain, data, "data", source),
        "model": validated(network, model, "model", source),
    }
    rest = {key: value for key, value in tree.items() if key not in parts}
    known = [*_keys_of(domain, "data"), *_keys_of(network, "model"), *_keys_of(Run)]
    run = validated(Run, rest | parts, "", source, known)
    read = flatten(run.model_dump(mode="json"))
    for key, value in flatten(tree).items():
        if isinstance(value, bool) and not isinstance(read.get(key), bool):  # pydantic takes true for 1
            raise BadInput(f"{source}: {key} is no switch; it cannot be {str(value).lower()}")
        if isinstance(value, int) and value > untrusted.LARGEST and not key.endswith("seed"):
            raise BadInput(f"{source}: {key} is {value}; it has to be at most {untrusted.LARGEST}")
    return run


def validated(
    kind: type[Settings], tree: Mapping[str, Any], prefix: str, source: str, known: Sequence[str] = ()
) -> Settings:
    """Settings of this class, or what is wrong with them in words."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise BadInput(f"{source}: {explain(error, tree, prefix, known or _keys_of(kind, prefix))}") from None
    except (OverflowError, RecursionError) as error:
        raise BadInput(f"{source}: {prefix or 'settings'}: a value is out of range ({error})") from None


def _keys_of(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted keys of a class of settings, those of parts of it included."""
    found = []
    for name, described in kind.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        default = described.get_default(call_default_factory=True, validated_data={})
        found += (
            [f"{key}.{inner}" for inner in flatten(default.model_dump())]
            if isinstance(default, BaseModel)
            else [key]
        )
    return found


def upgraded(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of an older format in the form of today; those of a newer linnet are refused."""
    stored, tree = tree.get("format", FORMAT), dict(tree)
    if isinstance(stored, int | float) and stored > FORMAT:
        raise BadInput(
            f"{source} has run format {stored}, and this linnet reads up to {FORMAT}: update linnet to open it"
        )
    if stored != 1:
        return tree
    network = tree.pop("next_place", None)
    model = dict(tree.get("model", {}))
    if "fields" in model:
        model["columns"] = {name: {"kind": "ids", "size": size} for name, size in model.pop("fields").items()}
    loss = tree.pop("loss", {})
    tree["model"] = network if network is not None else model | {"loss": loss}
    return tree


def explain(error: ValidationError, tree: Mapping[str, Any], prefix: str, known: Sequence[str]) -> str:
    """The first mistakes of a validation, in words."""
    found: dict[str, str] = {}  # of values that may have one of several types the first mistake
    for mistake in error.errors():
        key = dotted(mistake["loc"], tree, missing=mistake["type"] == "missing")
        key = ".".join(part for part in (prefix, key) if part)
        hint = nearest_key(key, known) if mistake["type"] == "extra_forbidden" else ""
        found.setdefault(key, untrusted.mistake_text(mistake, key) + hint)
    return "; ".join(list(found.values())[:3])


def dotted(location: Sequence[int | str], tree: Any, *, missing: bool) -> str:
    """Where a mistake is, without the names of kinds and types that were tried on the way there."""
    keys = []
    for part in location:
        inside = tree if isinstance(tree, Mapping) else {}
        if part in inside or isinstance(part, int) or (missing and part is location[-1]):
            keys.append(str(part))
            tree = inside.get(part)
    return ".".join(keys)


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


def changed(
    run: Run, settings: Iterable[tuple[str, Any]], source: str = "--set", *, keep_unused: bool = False
) -> Run:
    """The run with these settings; one that it does not use is refused with the reason.

    A schedule is chosen before its own settings are made, wherever it stands among them.
    """
    given = list(settings)
    for key, value in given:
        if chooses_schedule(key, value):
            tree = run.model_dump(mode="json")
            full_key(tree, key, source)
            tree["optim"]["schedule"] = {"kind": value}
            run = parse(tree, f"{source} {key}={value}")
    tree, wrong = run.model_dump(mode="json"), None
    used: list[tuple[str, Any]] = []
    for key, value in given:
        if chooses_schedule(key, value):
            continue
        full = full_key(tree, key, source)
        used.append((full, value))
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
    if not keep_unused:
        refuse_unused(run, used, source)
    return run


def refuse_unused(run: Run, given: Iterable[tuple[str, Any]], source: str) -> None:
    """Refuse settings that would change nothing, unless they are as they were."""
    unused = run.unused()
    for key, value in given:
        reason = next((unused[part] for part in unused if key == part or key.startswith(f"{part}.")), None)
        if reason is not None:
            raise BadInput(f"{source} {key}={value}: this run does not use {key}: {reason}")


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
    if key.startswith(OPEN_GROUPS):
        return key
    raise BadInput(f'{source}: unknown key "{key}"{nearest_key(key, flat)}')


OPEN_GROUPS = ("model.columns.",)  # whose keys are names that a run gives
ALIASES = {  # names that other toolkits use
    "learning_rate": "optim.lr", "max_lr": "optim.lr", "min_lr": "optim.schedule.floor", "optimizer": "optim.kind",
    "lr_scheduler_type": "optim.schedule.kind", "beta1": "optim.betas", "beta2": "optim.betas",
    "grad_clip": "optim.clip", "max_grad_norm": "optim.clip", "warmup_steps": "optim.schedule.warmup",
    "n_layer": "model.depth", "n_layers": "model.depth", "num_layers": "model.depth",
    "num_hidden_layers": "model.depth", "layers": "model.depth", "n_embd": "model.width", "d_model": "model.width",
    "hidden_size": "model.width", "embedding_size": "model.width", "n_head": "model.attention.heads",
    "n_heads": "model.attention.heads", "num_heads": "model.attention.heads",
    "num_attention_heads": "model.attention.heads", "block_size": "model.context", "seq_len": "model.context",
    "max_seq_len": "model.context", "intermediate_size": "model.feedforward.width",
    "vocab_size": "data.tokenizer.vocabulary", "dtype": "precision", "batch_size": "training.batch",
    "max_steps": "training.steps", "max_iters": "training.steps", "num_train_epochs": "training.epochs",
    "gradient_accumulation_steps": "training.accumulation", "eval_interval": "training.eval_every",
    "early_stopping": "training.patience", "label_smoothing": "model.loss.smoothing",
    "num_threads": "threads", "random_seed": "seed",
}  # fmt: skip


def nearest_key(key: str, known: Iterable[str]) -> str:
    """A hint for an unknown key: what other toolkits call it, its last word elsewhere, or the nearest ending."""
    known = tuple(known)
    last = key.rpartition(".")[2].lower()
    elsewhere = [name for name in known if name.endswith(f".{last}")]
    meant = ALIASES.get(last) or (elsewhere[0] if len(elsewhere) == 1 else None)
    if meant in known:
        return f'; did you mean "{meant}"?'
    parts = key.count(".") + 1
    endings = {name: ".".join(name.split(".")[-parts:]) for name in known}
    close = difflib.get_close_matches(key, sorted(set(endings.values())), n=1, cutoff=0.65)
    names = [f'"{name}"' for name, ending in endings.items() if ending in close]
    return (
        f"; did you mean {' or '.join(names)}?"
        if names
        else "; linnet recipes NAME lists the settings of a recipe"
    )
