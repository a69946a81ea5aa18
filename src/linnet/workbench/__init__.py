"""What one does with linnet, as functions: every verb of the command line is one of these.

Each is loaded when it is first named, so that `generate` loads nothing of training.
"""

# ruff: noqa: F401 (these names are for type checkers and editors)
from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linnet.workbench.causal import ablate, attribute, find_edges, find_subsets, patch, path_patch
    from linnet.workbench.development import development
    from linnet.workbench.dry_run import dry_run
    from linnet.workbench.evaluate import evaluate, predict
    from linnet.workbench.export import export_run, import_run
    from linnet.workbench.generate import Pace, Session, generate, stream
    from linnet.workbench.open import Opened, load, refuse_unknown_run
    from linnet.workbench.options import Options
    from linnet.workbench.prepare import prepare
    from linnet.workbench.reading import attention, embeddings, heads, lens, step
    from linnet.workbench.recipes import options_of_recipe, options_of_run, recipes
    from linnet.workbench.runs import learning_curve, runs, show
    from linnet.workbench.search import compare_searches, resume_search, search
    from linnet.workbench.search_source import own_prompts
    from linnet.workbench.train import resume, train, train_seeds
    from linnet.workbench.variables import interchange, probe

MODULES = {
    "causal": ("ablate", "attribute", "find_edges", "find_subsets", "patch", "path_patch"),
    "development": ("development",),
    "dry_run": ("dry_run",),
    "evaluate": ("evaluate", "predict"),
    "export": ("export_run", "import_run"),
    "generate": ("Pace", "Session", "generate", "stream"),
    "open": ("Opened", "load", "refuse_unknown_run"),
    "options": ("Options",),
    "reading": ("attention", "embeddings", "heads", "lens", "step"),
    "prepare": ("prepare",),
    "recipes": ("options_of_recipe", "options_of_run", "recipes"),
    "runs": ("learning_curve", "runs", "show"),
    "search": ("compare_searches", "resume_search", "search"),
    "search_source": ("own_prompts",),
    "train": ("resume", "train", "train_seeds"),
    "variables": ("interchange", "probe"),
}
HOMES = {name: module for module, names in MODULES.items() for name in names}
__all__ = [*HOMES]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    return found


class _Functions(types.ModuleType):
    """A module that is loaded does not hide the function of its name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in HOMES or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Functions
