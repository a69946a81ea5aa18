"""Runs as plain functions, one file a domain. A recipe is where a run starts from; `--set` changes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from linnet.errors import BadInput, nearest
from linnet.recipes import arithmetic, text
from linnet.training.run import Run

RECIPES: Mapping[str, Callable[[], Run]] = {**arithmetic.RECIPES, **text.RECIPES}


def named(name: str) -> Run:
    """The run of this recipe."""
    if name not in RECIPES:
        raise BadInput(f'there is no recipe "{name}"{nearest(name, RECIPES)}')
    return RECIPES[name]()
