"""The examples of the documentation run as they stand, and the names in it exist."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def examples(page: str) -> list[tuple[int, str]]:
    """The Python examples of a page, each with the line that it starts at."""
    text = (ROOT / "docs" / page).read_text()
    return [
        (text[: found.start(1)].count("\n"), found.group(1))
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def test_examples_of_the_search_page_run() -> None:
    (found,) = examples("search.md")
    exec(compile(found[1], "docs/search.md", "exec"), {})


def test_examples_of_the_api_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = examples("api.md")
    assert len(found) >= 6
    for line, source in found:
        # Line numbers of a failure are those of the page.
        exec(compile("\n" * line + source, "docs/api.md", "exec"), names)
    assert (tmp_path / "adder" / "report.md").is_file()


def test_names_of_our_code_in_the_pages_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {name for page in pages for name in re.findall(r"`(linnet(?:\.\w+)+)`", page.read_text())}
    assert len(named) >= 10
    missing = []
    for name in sorted(named):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            missing.append(f"{name}: {error}")
    assert not missing
