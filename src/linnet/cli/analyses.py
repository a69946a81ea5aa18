"""Records of analyses drawn for people: bars for one axis, a table, a shaded square or small curves for two.

Axes before the last two give one table each.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table

from linnet.cli.tables import Text, bars_of, pairs, sparkline
from linnet.figures import LINES, extent, flattened, labels_of, split, visible, words
from linnet.records import AnalysisRecord, Grid

COUNTED = ("layer", "head")
MOST_COLUMNS = 16  # of numbers; wider tables are shaded
FITTING = 50  # columns of shades in a terminal of usual width
MOST_SHOWN = 256  # entries of a grid beside the first one
MOST_ROWS = 24  # of bars; those of the largest values are shown
BAR = 30
CURVE = 60  # points of a curve; of more, so many are shown
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
    widest = max((len(panel.values[0]) for panel in panels if panel.values), default=0)
    if words(grid):
        return [numbers(panel) if widest <= MOST_COLUMNS else lines(panel) for panel in panels]
    if widest > MOST_COLUMNS and grid.axes[-1] in LINES:
        return [curves(panel, bars_of(shades)) for panel in panels]
    if widest <= MOST_COLUMNS and grid.axes[-1] != "key":
        return [numbers(panel) for panel in panels]
    if grid.axes[-1] == "neuron":
        return bars(flattened(grid), ())
    most = extent(grid)[1]
    squares = [
        Group(Text(panel.name, style="bold"), square(panel.values, *both_labels(panel), shades, most))
        for panel in panels
    ]
    legend = f"shares of the largest value: {scale(shades)}; - marks negative ones"
    legend += "; --json and --out have what is cut" if widest > FITTING else ""
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
        table.add_row(Text(visible(label)), number(value), *(number(other) for other in others), bar)
    remark = Text(f"and {left:,} smaller ones (--json and --out have all)", style="dim")
    return [table, remark] if left > 0 else [table]


def numbers(panel: Grid) -> RenderableType:
    """A table of numbers, or of names, with the names of both axes."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(panel.name)
    rows, columns = (counted(axis, labels) for axis, labels in zip(panel.axes, both_labels(panel), strict=True))
    for label in columns:
        table.add_column(Text(visible(label)), justify="right", no_wrap=True)
    for label, row in zip(rows, panel.values, strict=True):
        table.add_row(Text(label), *(Text(number(value)) for value in row))
    return table


def counted(axis: str, labels: Sequence[str]) -> Sequence[str]:
    """Names of layers and heads that are only numbers say what is counted."""
    return [f"{axis} {label}" if label.isdigit() else label for label in labels] if axis in COUNTED else labels


def lines(panel: Grid) -> RenderableType:
    """Names that are too many for a table, one after the other."""
    rows = both_labels(panel)[0]
    texts = {label: " ".join(map(visible, row)) for label, row in zip(rows, panel.values, strict=True)}
    return Group(Text(panel.name, style="bold"), pairs(texts))


def curves(panel: Grid, signs: str) -> RenderableType:
    """One row a curve: where it begins, its course between its least and its largest value, and where it ends."""
    rows, along = both_labels(panel)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    chosen = sorted({round(i * (len(along) - 1) / (CURVE - 1)) for i in range(CURVE)})
    table.add_column(panel.name, no_wrap=True)
    for heading in (f"{panel.axes[1]} {along[0]}", "least", "most", f"{panel.axes[1]} {along[-1]}"):
        table.add_column(heading, justify="right")
    table.add_column(f"{along[0]} to {along[-1]}", no_wrap=True)
    for label, row in zip(rows, panel.values, strict=True):
        known = [value for value in row if value is not None]
        least, most = (min(known), max(known)) if known else (None, None)
        course = sparkline([row[i] for i in chosen], (least or 0.0, most or 0.0), signs)
        table.add_row(Text(label), *map(number, (row[0], least, most, row[-1])), course)
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
    rows, columns = [visible(label) for label in rows], [visible(label) for label in columns]
    width = min(longest, max(map(len, rows), default=0))
    numbered = all(label.isdigit() for label in columns) and len(columns) > 10
    head = " " * (width + 1) + "".join(f"{label[-1] if numbered else label[0]} " for label in columns)
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


def number(value: float | str | None) -> str:
    """Four digits that count; a name as it is."""
    if value is None:
        return "?"
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, int) or value == 0:
        return f"{value:,}" if isinstance(value, int) else "0"
    return f"{value:.1e}" if abs(value) < 5e-4 else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
