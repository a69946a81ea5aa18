"""A copy of the model with the taps cut out of its source: what taps that nobody asks for are compared with."""

from __future__ import annotations

import ast
import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import linnet.model
from linnet.model.model import Model

TAPPED = (
    "layers",
    "mixers",
    "model",
)  # the files that call taps, in the order of their imports


class CutOut(ast.NodeTransformer):
    """`taps.at(name, x)` becomes `x`, and any other call of taps becomes False."""

    def __init__(self) -> None:
        self.cuts = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "taps":
            self.cuts += 1
            return node.args[1] if called.attr == "at" else ast.Constant(value=False)
        return node


@contextlib.contextmanager
def tapless_model() -> Iterator[tuple[type[Model], int]]:
    """The class `Model` made from the package's source without taps, and how many calls were cut out."""
    cutter, made = CutOut(), []
    for name in TAPPED:
        path = Path(str(linnet.model.__file__)).parent / f"{name}.py"
        tree = ast.fix_missing_locations(cutter.visit(ast.parse(path.read_text("utf-8"))))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in [f"linnet.model.{n}" for n in TAPPED]:
                node.module = "tapless_" + node.module.rpartition(".")[2]
        module = types.ModuleType(f"tapless_{name}")
        sys.modules[module.__name__] = module
        made.append(module.__name__)
        exec(compile(tree, f"tapless {path}", "exec"), module.__dict__)
    try:
        yield sys.modules["tapless_model"].Model, cutter.cuts
    finally:
        for name in made:
            del sys.modules[name]
