"""How a table of visits is read, from the same `--set` keys that a run has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from linnet.domains.places.data import PlacesData
from linnet.errors import BadInput
from linnet.training.run import Run, changed, parse_setting


def visit_table(paths: Sequence[Path], settings: Sequence[str], columns: str, tz: str, local: str) -> PlacesData:
    """Settings as `data.recipe.by=time`, or without the `data.`; --columns, --tz and --local go on top."""
    if not paths:
        raise BadInput("places need --data: a table of visits, check-ins or fixes")
    given = [parse_setting(setting) for setting in settings]
    keyed = [(key if key.startswith("data.") else f"data.{key}", value) for key, value in given]
    run = changed(Run(recipe="places", data=PlacesData()), keyed)
    assert isinstance(run.data, PlacesData)
    named = {"columns": columns, "tz": tz, "local": local}
    chosen = {name: value for name, value in named.items() if value}
    return run.data.model_copy(update={"paths": tuple(map(str, paths)), **chosen})
