"""The domains at hand: found by entry points of the group `linnet.domains`, each of which names a `Registration`.

Only what `linnet --help` needs is imported here; a domain itself is imported when a run or a verb names it.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from linnet.errors import BadInput, nearest

if TYPE_CHECKING:
    from linnet.domains.contract import Domain
    from linnet.training.run import Run

GROUP = "linnet.domains"


@dataclass(frozen=True)
class Recipe:
    """Where a run starts from. `run` is `module:function`; the function gives a `Run`."""

    run: str
    summary: str
    reads: str = "draws its own data"
    takes: str = "minutes"
    size: int | None = None  # the default of its one dial, where it has one

    def __call__(self, size: int | None = None) -> Run:
        function = resolve(self.run)
        made: Run = function() if size is None else function(size)
        return made


@dataclass(frozen=True)
class Option:
    """A short option of `train` and `eval` that stands for a setting."""

    flag: str
    key: str
    meaning: str
    path: bool = False


@dataclass(frozen=True)
class Registration:
    """What the entry point of a domain names. Strings of the form `module:name` are imported when needed."""

    settings: str
    recipes: Mapping[str, Recipe]
    options: tuple[Option, ...] = ()
    verbs: str = ""  # a function that joins verbs to the command line
    predict: str = ""  # a function (run, file, *, k, settings, **options of load) -> Predictions


@dataclass(frozen=True)
class Registry:
    """The domains at hand, and what is wrong with packages that offer broken ones."""

    domains: Mapping[str, Registration]
    broken: Mapping[str, str]

    def settings(self, name: object) -> type[Domain]:
        """The settings class of a domain."""
        if not isinstance(name, str) or name not in self.domains:
            raise BadInput(f'there is no domain "{name}"{nearest(str(name), self.domains)}{self.remark()}')
        found: type[Domain] = resolve(self.domains[name].settings)
        return found

    @property
    def recipes(self) -> dict[str, tuple[str, Recipe]]:
        """All recipes by name, each with the name of its domain."""
        return {
            name: (domain, recipe) for domain, one in self.domains.items() for name, recipe in one.recipes.items()
        }

    def recipe(self, name: str) -> tuple[str, Recipe]:
        if name not in self.recipes:
            raise BadInput(f'there is no recipe "{name}"{nearest(name, self.recipes)}{self.remark()}')
        return self.recipes[name]

    def remark(self) -> str:
        """What to add to an error: the packages that could not be loaded."""
        return "".join(
            f"; the domain {name} could not be loaded ({reason})" for name, reason in self.broken.items()
        )


@functools.cache
def registry() -> Registry:
    """Every domain that an installed package offers. A broken one is named and stops nothing."""
    domains: dict[str, Registration] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found = point.load()
        except Exception as error:  # whatever somebody else's package raises
            broken[point.name] = f"{type(error).__name__}: {error}"
            continue
        if isinstance(found, Registration):
            domains[point.name] = found
        else:
            broken[point.name] = f"{point.value} is no Registration"
    return Registry(domains, broken)


def resolve(name: str) -> Any:
    """What `module:name` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def imported(what: str, name: str, value: str = "") -> Any:
    """What `module:name` of a person stands for; the module may be a file of the working folder."""
    module, _, attribute = (value or name).partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the code of that person raises
        raise BadInput(f"the {what} {name} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise BadInput(f"the {what} {name} cannot be imported: {module} has no {attribute!r}") from None
