"""The house: who may import whom, what loads without torch, and how large things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "linnet"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "base", "manager", "core", "misc"}


def modules_loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after this statement."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_data_flows_one_way() -> None:
    """The contracts of pyproject.toml, checked by import-linter."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], capture_output=True, text=True, cwd=SOURCE.parents[1]
    )
    assert done.returncode == 0, done.stdout + done.stderr


LOW = ["linnet.errors", "linnet.records", "linnet.codecs", "linnet.rows"]
DOMAINS = [f"linnet.domains.{path.name}" for path in sorted((SOURCE / "domains").iterdir()) if path.is_dir()]


@pytest.mark.parametrize("module", [*LOW, "linnet.domains", *(m for m in DOMAINS if "__" not in m)])
def test_the_low_rows_load_without_torch(module: str) -> None:
    assert "torch" not in modules_loaded_by(f"import {module}")


def test_the_command_line_loads_nothing_heavy() -> None:
    """What makes `linnet --help` answer at once; a test of the time itself would depend on the machine."""
    loaded = modules_loaded_by("from linnet.cli.app import build; build()")
    assert not loaded & {"torch", "numpy", "pydantic", "polars", "transformers", "matplotlib", "rich"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 500
    assert path.stem not in NAMES_THAT_SAY_NOTHING
    if tree.body:
        assert ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            raise AssertionError(f"line {node.lineno}: no global state")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr", f"line {node.lineno}: say what is needed instead of probing for it"


def test_most_functions_are_short() -> None:
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    )
    assert lengths[int(0.95 * len(lengths))] <= 45
