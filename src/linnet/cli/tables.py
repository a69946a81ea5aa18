"""Tables of the terminal: headings over columns, names beside values, and lines of small bars."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from rich import text
from rich.table import Table

Text = text.Text
SHADES = " ░▒▓█"
PLAIN_SHADES = " .:*#"  # for terminals that know no other characters
BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=+*#@"


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


def bars_of(shades: str) -> str:
    """The bars of a terminal that knows these shades."""
    return PLAIN_BARS if shades == PLAIN_SHADES else BARS


def sparkline(values: Sequence[float | None], bounds: tuple[float, float], bars: str) -> str:
    """One character a value; a space where it is missing."""
    low, high = bounds
    span = (high - low) or 1.0
    return "".join(
        " " if value is None else bars[min(len(bars) - 1, max(0, int((value - low) / span * len(bars))))]
        for value in values
    )
