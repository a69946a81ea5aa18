"""Runs as plain functions, one file a domain. A recipe is where a run starts from; `--set` changes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from linnet.errors import BadInput, nearest
from linnet.recipes import arithmetic, places, text
from linnet.training.run import Run

RECIPES: Mapping[str, Callable[[], Run]] = {**arithmetic.RECIPES, **text.RECIPES, **places.RECIPES}


def named(name: str, size: int | None = None) -> Run:
    """The run of this recipe; some derive everything else from one size."""
    if name not in RECIPES:
        raise BadInput(f'there is no recipe "{name}"{nearest(name, RECIPES)}')
    if size is None:
        return RECIPES[name]()
    if name not in text.SIZED:
        raise BadInput(f'recipe "{name}" has no size; {", ".join(text.SIZED)} have one')
    if not isinstance(size, int):
        raise BadInput(f"size is a whole number, not {size!r}")
    return text.SIZED[name](size)
