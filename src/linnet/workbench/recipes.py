"""Recipes: where runs start from, and every setting of one with its default, meaning and choices."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from linnet.domains.registry import Option, registry
from linnet.records import RecipeRecord, SettingRecord
from linnet.training.checkpoint import RunFolder
from linnet.untrusted import read_toml
from linnet.workbench.open import read_run
from linnet.workbench.prepare import made


def recipes(name: str | None = None) -> list[RecipeRecord | SettingRecord]:
    """All recipes in one line each; or one, and every setting of it."""
    known = registry()
    if name is None:
        return [described(name) for name in known.recipes]
    run = made(name)
    return [described(name), *settings_of(run, "", run.unused())]


def described(name: str) -> RecipeRecord:
    domain, recipe = registry().recipe(name)
    return RecipeRecord(name=name, domain=domain, summary=recipe.summary, reads=recipe.reads, takes=recipe.takes)


def settings_of(part: BaseModel, prefix: str, unused: typing.Mapping[str, str]) -> Iterator[SettingRecord]:
    """The settings of a part of a run, and of the parts inside it."""
    for name, described in type(part).model_fields.items():
        key, value = prefix + name, getattr(part, name)
        if key in unused or key in ("format", "recipe"):
            continue
        if isinstance(value, BaseModel):
            yield from settings_of(value, f"{key}.", unused)
        elif isinstance(value, dict) and value:  # parts by name, such as the columns of a model
            for inner, one in value.items():
                yield from settings_of(one, f"{key}.{inner}.", unused)
        else:
            yield SettingRecord(
                key=key,
                default=shown(value),
                meaning=described.description or "",
                choices=choices_of(described.annotation),
            )


def shown(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The words that a setting takes, where it takes only some."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(choice for inner in typing.get_args(annotation) for choice in choices_of(inner))
    return ("true", "false") if annotation is bool else ()


def options_of_recipe(name: str) -> tuple[Option, ...]:
    """The short options that only the domain of this recipe has."""
    if name.endswith(".toml"):
        given = read_toml(Path(name)).get("recipe")
        if given is None:
            return ()  # which training refuses
        name = str(given)
    domain, _ = registry().recipe(name)
    return registry().domains[domain].options


def options_of_run(path: Path) -> tuple[Option, ...]:
    return registry().domains[read_run(RunFolder.open(path)).data.domain].options
