"""Records of analyses as files: arrays (.npz), JSON, and pictures (.svg, .png) by matplotlib, the extra `plot`.

The same record gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet.errors import BadInput, library
from linnet.files import write_atomically
from linnet.records import AnalysisRecord, CaptionRecord, ForecastRecord, Grid

if TYPE_CHECKING:
    import numpy as np

LINES = ("step", "share")  # a last axis of these is drawn as lines along it
MOST_BARS = 40
MOST_BESIDE = 256  # bars of a grid beside the first one
MOST_PANELS = 64
MOST_SERIES = 12
CAPTION = 64  # letters of a line over a captioned series
PICTURES = (".svg", ".png")
INCH = 0.22  # of a cell of a heat map


def refuse_suffix(out: Path) -> None:
    """Say at once that a file of this name cannot be written."""
    if out.suffix not in FORMS:
        raise BadInput(f'--out "{out}": the name has to end in {", ".join(FORMS)}')
    if out.suffix in PICTURES:
        _matplotlib()


def save(record: AnalysisRecord, out: Path) -> None:
    """Write the record in the form that the name of the file asks for."""
    refuse_suffix(out)
    write_atomically(out, FORMS[out.suffix](record))


def arrays(record: AnalysisRecord) -> bytes:
    """`values`, the names of its `axes`, `tokens` and `labels`; further grids under their names."""
    import numpy as np

    named: dict[str, Any] = {"values": array(record.values), "axes": record.axes, "tokens": record.tokens}
    named |= {f"labels.{axis}": labels for axis, labels in record.labels.items()}
    for grid in record.further:
        named |= {grid.name: array(grid.values), f"{grid.name}.axes": grid.axes}
        named |= {f"{grid.name}.labels.{axis}": labels for axis, labels in grid.labels.items()}
    content = io.BytesIO()
    np.savez(content, **named)
    return content.getvalue()


def array(values: Any) -> np.ndarray:
    """Numbers, NaN where there is none; or names."""
    import numpy as np

    found = np.array(values)
    return found if found.dtype.kind == "U" else found.astype(np.float32)


def flattened(grid: Grid) -> Grid:
    """The same entries along one axis, under names such as `layer 0, neuron 5`."""
    axes = [
        [f"{axis} {label}" if label.isdigit() else label for label in labels_of(grid, axis, size)]
        for axis, size in zip(grid.axes, array(grid.values).shape, strict=True)
    ]
    labels = {"entry": tuple(", ".join(names) for names in itertools.product(*axes))}
    return Grid(name=grid.name, axes=("entry",), labels=labels, values=array(grid.values).ravel().tolist())


def words(grid: Grid) -> bool:
    """Whether it has names instead of numbers, which no picture draws."""
    return array(grid.values).dtype.kind == "U"


def picture(suffix: str) -> Callable[[AnalysisRecord], bytes]:
    return lambda record: rendered(lambda: drawn(record), suffix)


def rendered(draw: Callable[[], Any], suffix: str) -> bytes:
    """The bytes of a figure, the same ones for the same numbers."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context({"svg.hashsalt": "linnet", "font.size": 8, "svg.fonttype": "path"}):
        content = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        draw().savefig(content, format=suffix, dpi=150, metadata=metadata, bbox_inches="tight")
    return content.getvalue()


def refuse_picture(out: Path) -> None:
    """Say at once that forecasts cannot be drawn into a file of this name."""
    if out.suffix not in PICTURES:
        raise BadInput(f'--out "{out}": the name has to end in {", ".join(PICTURES)}')
    _matplotlib()


def save_series(records: Sequence[ForecastRecord | CaptionRecord], out: Path) -> None:
    """Draw the first forecasts with their bands, or captioned series."""
    refuse_picture(out)
    write_atomically(out, rendered(lambda: drawn_series(records[:MOST_SERIES]), out.suffix[1:]))


def drawn_series(records: Sequence[ForecastRecord | CaptionRecord]) -> Any:
    """One panel a series."""
    from matplotlib.figure import Figure

    columns = min(3, len(records))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(4 * columns, 2.4 * rows), layout="constrained")
    for number, record in enumerate(records, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.grid(alpha=0.3)
        match record:
            case ForecastRecord():
                axes.set_title(shown(str(record.id)))
                draw_forecast(axes, record)
            case CaptionRecord():
                axes.set_title(
                    "\n".join([shown(record.id), *textwrap.wrap(shown(record.text), CAPTION)]), fontsize=6
                )
                axes.plot(range(1, len(record.values) + 1), array(record.values), color="black", linewidth=1)
    return figure


def draw_forecast(axes: Any, record: ForecastRecord) -> None:
    """The history, the median, a band for each pair of quantiles, and what came."""
    past = range(-len(record.history) + 1, 1)
    axes.plot(past, array(record.history), color="black", linewidth=1)
    ahead = range(1, len(record.mean) + 1)
    levels = sorted(record.quantiles, key=float)
    for low, high in zip(levels, reversed(levels), strict=True):
        if float(low) < float(high):
            band = array(record.quantiles[low]), array(record.quantiles[high])
            axes.fill_between(ahead, *band, color="tab:blue", alpha=0.12, linewidth=0)
    axes.plot(ahead, array(record.mean), color="tab:blue", linewidth=1.2)
    if record.truth:
        axes.plot(range(1, len(record.truth) + 1), array(record.truth), color="tab:orange", linewidth=1)


def drawn(record: AnalysisRecord) -> Any:
    """A figure with all panels of all grids, four beside each other."""
    from matplotlib.figure import Figure

    first, *further = record.grids
    fitting = [grid for grid in further if len(grid.axes) > 1 or len(grid.values) <= MOST_BESIDE]
    chosen = [first, *(grid for grid in fitting if not words(grid))]
    panels = [(panel, extent(grid)) for grid in chosen for panel in split(grid)][:MOST_PANELS]
    columns = min(4, len(panels))
    widths, heights = zip(*(measured(panel) for panel, _ in panels), strict=True)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(widths) * columns, max(heights) * rows), layout="constrained")
    figure.suptitle(record.title or record.kind)
    for number, (panel, ends) in enumerate(panels, 1):
        draw_panel(figure.add_subplot(rows, columns, number), panel, ends)
    return figure


def extent(grid: Grid) -> tuple[float, float]:
    """(the least value, the largest magnitude) of a grid, whose panels share their colours."""
    values = array(grid.values)
    known = values[values == values]
    return float(known.min(initial=0.0)), float(abs(known).max(initial=0.0)) or 1.0


def split(grid: Grid) -> list[Grid]:
    """Grids of at most two axes: one for each index of the axes before."""
    if len(grid.axes) <= 2:
        return [grid]
    axis, found = grid.axes[0], []
    for number, values in enumerate(grid.values):
        label = labels_of(grid, axis, len(grid.values))[number]
        rest = {name: labels for name, labels in grid.labels.items() if name != axis}
        name = f"{axis} {label}" if len(grid.axes) == 3 else f"{grid.name}, {axis} {label}"
        inner = Grid(name=name, axes=grid.axes[1:], labels=rest, values=values)
        parts = split(inner)
        many = len(grid.axes) > 3
        found += [
            part.model_copy(update={"name": f"{axis} {label}, {part.name}"}) if many else part for part in parts
        ]
    return found


def labels_of(grid: Grid, axis: str, size: int) -> tuple[str, ...]:
    """The name of each entry of an axis."""
    labels = grid.labels.get(axis, ())
    return labels if len(labels) == size else tuple(map(str, range(size)))


def measured(panel: Grid) -> tuple[float, float]:
    """Inches of a panel."""
    if panel.axes[-1] in LINES:
        return 4.5, 3.2
    if len(panel.axes) == 1:
        return 4.5, 1 + 0.16 * min(MOST_BARS, len(panel.values))
    return 1.5 + INCH * max(8, len(panel.values[0])), 1 + INCH * max(6, len(panel.values))


def draw_panel(axes: Any, panel: Grid, ends: tuple[float, float]) -> None:
    axes.set_title(panel.name)
    axes.set_xlabel(panel.axes[-1])
    if panel.axes[-1] in LINES:
        draw_lines(axes, panel)
    elif len(panel.axes) == 1:
        draw_bars(axes, panel)
    else:
        draw_map(axes, panel, ends)


def draw_lines(axes: Any, panel: Grid) -> None:
    lines = panel.values if len(panel.axes) == 2 else [panel.values]
    names = labels_of(panel, panel.axes[0], len(lines)) if len(panel.axes) == 2 else (panel.name,)
    along = [float(label) for label in labels_of(panel, panel.axes[-1], len(lines[0]))]
    for name, line in zip(names, lines, strict=True):
        axes.plot(along, array(line), marker=".", label=name)
    if min(along) > 0 and max(along) > 20 * min(along):
        axes.set_xscale("log")
    axes.legend()
    axes.grid(alpha=0.3)


def draw_bars(axes: Any, panel: Grid) -> None:
    """The largest in magnitude, where there are too many."""
    values = array(panel.values)
    labels = labels_of(panel, panel.axes[0], len(values))
    chosen = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:MOST_BARS]
    chosen = sorted(chosen) if len(values) <= MOST_BARS else chosen
    axes.barh(range(len(chosen)), [float(values[i]) for i in chosen], color="tab:blue")
    axes.set_yticks(range(len(chosen)), [shown(visible(labels[i])) for i in chosen])
    axes.invert_yaxis()
    axes.set_ylabel(panel.axes[0])
    axes.set_xlabel("")


def draw_map(axes: Any, panel: Grid, ends: tuple[float, float]) -> None:
    """A heat map; blue and red where values have both signs."""
    values, (least, most) = array(panel.values), ends
    colours = {"cmap": "RdBu_r", "vmin": -most} if least < 0 else {"cmap": "Blues", "vmin": 0.0}
    image = axes.imshow(values, vmax=most, aspect="auto", interpolation="nearest", **colours)
    axes.figure.colorbar(image, ax=axes)
    for set_ticks, axis, size in ((axes.set_yticks, 0, values.shape[0]), (axes.set_xticks, 1, values.shape[1])):
        if size <= 64:
            set_ticks(range(size), [shown(visible(label)) for label in labels_of(panel, panel.axes[axis], size)])
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_ylabel(panel.axes[0])


def visible(token: str) -> str:
    """A token's name that shows where it begins and ends, on one line: `_to` has a space, `\\n` ends a line."""
    inner = token.strip(" ")
    before = len(token) - len(token.lstrip(" "))
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in inner)
    return "_" * before + printable + "_" * (len(token) - before - len(inner)) or "_"


def shown(text: str) -> str:
    """A text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _matplotlib() -> Any:
    return library("matplotlib", "pictures need matplotlib, which is not installed", "plot")


FORMS: Mapping[str, Callable[[AnalysisRecord], bytes]] = {
    ".npz": arrays,
    ".json": lambda record: (record.line() + "\n").encode(),
    ".svg": picture("svg"),
    ".png": picture("png"),
}
