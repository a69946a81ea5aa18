"""Records of analyses drawn for people: bars for one axis, a table or a shaded square for two.

Axes before the last two give one table each.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table

from linnet.cli.tables import Text, pairs
from linnet.figures import extent, labels_of, split
from linnet.records import AnalysisRecord, Grid

MOST_COLUMNS = 16  # of numbers; wider tables are shaded
MOST_SHOWN = 256  # entries of a grid beside the first one
MOST_ROWS = 24  # of bars; those of the largest values are shown
BAR = 30
DARKER_FROM = (0.05, 0.2, 0.4, 0.7)  # shares of the largest magnitude at which the next shade begins


def analysis(record: AnalysisRecord, shades: str) -> RenderableType:
    """The title, the facts, every grid, and the notes."""
    facts = pairs(
        {name: value if isinstance(value, str) else number(value) for name, value in record.facts.items()}
    )
    first, *further = record.grids
    beside = [grid for grid in further if grid.axes == first.axes and grid.labels == first.labels]
    parts: list[RenderableType] = [Text(record.title or record.kind, style="bold"), facts, Text("")]
    if len(first.axes) == 1:
        parts += bars(first, beside)
    else:
        parts += grid_pictures(first, shades)
        beside = []
    for grid in further:
        if grid not in beside:
            parts += [Text(""), *grid_pictures(grid, shades)]
    return Group(*parts, *(Text(note, style="dim") for note in record.notes))


def grid_pictures(grid: Grid, shades: str) -> list[RenderableType]:
    if len(grid.axes) == 1 and len(grid.values) > MOST_SHOWN:
        return [Text(f"{grid.name}: {len(grid.values):,} numbers (--json and --out have them)", style="dim")]
    if len(grid.axes) == 1:
        return bars(grid, ())
    panels = split(grid)
    if all(len(panel.values[0]) <= MOST_COLUMNS for panel in panels if panel.values):
        return [numbers(panel) for panel in panels]
    most = extent(grid)[1]
    squares = [
        Group(Text(panel.name, style="bold"), square(panel.values, *both_labels(panel), shades, most))
        for panel in panels
    ]
    legend = f"shares of the largest value: {scale(shades)}; - marks negative ones"
    return [Columns(squares, padding=(1, 4)), Text(legend, style="dim")]


def both_labels(panel: Grid) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the rows and of the columns."""
    columns = len(panel.values[0]) if panel.values else 0
    return labels_of(panel, panel.axes[0], len(panel.values)), labels_of(panel, panel.axes[1], columns)


def bars(grid: Grid, beside: Sequence[Grid]) -> list[RenderableType]:
    """One row an entry, the largest first where there are too many; grids of the same entries stand beside it."""
    labels = labels_of(grid, grid.axes[0], len(grid.values))
    entries = list(zip(labels, grid.values, *(other.values for other in beside), strict=True))
    left = len(entries) - MOST_ROWS
    if left > 0:
        entries = sorted(entries, key=lambda entry: -abs(entry[1] or 0.0))[:MOST_ROWS]
    most = max((abs(entry[1]) for entry in entries if entry[1] is not None), default=0.0) or 1.0
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(grid.axes[0], no_wrap=True)
    for one in (grid, *beside):
        table.add_column(one.name, justify="right")
    table.add_column("")
    for label, value, *others in entries:
        length = 0 if value is None else round(BAR * abs(value) / most)
        bar = ("#" if (value or 0) >= 0 else "-") * length
        table.add_row(Text(label), number(value), *(number(other) for other in others), bar)
    remark = Text(f"and {left:,} smaller ones (--json and --out have all)", style="dim")
    return [table, remark] if left > 0 else [table]


def numbers(panel: Grid) -> RenderableType:
    """A table of numbers with the names of both axes."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(panel.name)
    rows, columns = both_labels(panel)
    for label in columns:
        table.add_column(Text(label), justify="right", no_wrap=True)
    for label, row in zip(rows, panel.values, strict=True):
        table.add_row(Text(label), *(number(value) for value in row))
    return table


def square(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    shades: str,
    most: float = 1.0,
    longest: int = 12,
) -> Text:
    """Shaded cells, two columns each; names of rows are cut at `longest` letters."""
    width = min(longest, max(map(len, rows), default=0))
    head = " " * (width + 1) + "".join(f"{label[:1]} " for label in columns)
    lines = [
        f"{label[:width]:>{width}} " + "".join(cell(value, most, shades) for value in row)
        for label, row in zip(rows, values, strict=True)
    ]
    return Text("\n".join([head, *lines]), no_wrap=True)


def cell(value: float | None, most: float, shades: str) -> str:
    if value is None:
        return "? "
    shade = shades[sum(abs(value) / most >= limit for limit in DARKER_FROM)]
    return shade + ("-" if value < 0 and shade != shades[0] else shade)


def scale(shades: str) -> str:
    """At which share each shade begins."""
    return ", ".join(f"{shade} from {limit:g}" for shade, limit in zip(shades[1:], DARKER_FROM, strict=True))


def number(value: float | None) -> str:
    """Four digits that count."""
    if value is None:
        return "?"
    if isinstance(value, int) or value == 0:
        return f"{value:,}" if isinstance(value, int) else "0"
    return f"{value:.1e}" if abs(value) < 5e-4 else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
