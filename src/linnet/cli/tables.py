"""Tables of the terminal: headings over columns, and names beside values."""

from __future__ import annotations

from collections.abc import Container, Mapping

from rich import text
from rich.table import Table

Text = text.Text


def table(*headings: str, numbers: Container[str] = ()) -> Table:
    """An empty table; the headings in `numbers` are of columns that line up on the right."""
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in headings:
        right = heading in numbers
        grid.add_column(heading, justify="right" if right else "left", no_wrap=right)
    return grid


def pairs(facts: Mapping[str, str]) -> Table:
    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    return grid
