"""Records drawn for people, with rich. No numbers are made here: what is not in a record is not shown.

Legend of attention: values[layer][head][query][key], shares between 0 and 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.columns import Columns
from rich.console import Console, Group, RenderableType

from linnet.cli.analyses import analysis, scale, square
from linnet.cli.search_pictures import compared, searched
from linnet.cli.tables import BARS, PLAIN_SHADES, SHADES, Text, bars_of, pairs, sparkline, table
from linnet.records import (
    AnalysisRecord,
    AttentionRecord,
    BenchRecord,
    CaptionRecord,
    DataRecord,
    DoctorRecord,
    DryRunRecord,
    ExportRecord,
    ForecastRecord,
    ImportRecord,
    ListedRunRecord,
    MissRecord,
    NoteRecord,
    PredictionRecord,
    RecipeRecord,
    Record,
    RunRecord,
    Score,
    ScoresRecord,
    SeedsRecord,
    SettingRecord,
    ShowRecord,
    System,
    TokenizerRecord,
)
from linnet.search.records import SearchComparisonRecord, SearchRecord
from linnet.training.settings import flatten
from linnet.workbench.curves import chart

WIDTH = 120  # columns where there is no terminal
WIDEST = 1000
LABEL = 8  # columns of a token's name beside its row


def draw(records: Sequence[Record], out: TextIO) -> None:
    """Print a picture of these records; those of one list share a table."""
    console = Console(file=out, highlight=False, width=None if out.isatty() else WIDTH)
    shades = PLAIN_SHADES if console.options.ascii_only else SHADES
    with console.capture() as drawn:
        for kind, listed in LISTS.items():
            if alike := [record for record in records if isinstance(record, kind)]:
                # Half a path is no path: where nobody looks at a terminal, runs are as wide as they have to be.
                wide = kind is ListedRunRecord and not out.isatty()
                console.print(listed(alike), width=WIDEST if wide else None)
        for record in records:
            if type(record) not in LISTS:
                console.print(picture(record, shades))
    # Tables fill their last column with spaces, which only gets in the way of copying.
    out.writelines(line.rstrip() + "\n" for line in drawn.get().splitlines())
    out.flush()


def picture(record: Record, shades: str = SHADES) -> RenderableType:
    match record:
        case AttentionRecord():
            return attention(record, shades)
        case AnalysisRecord():
            return analysis(record, shades)
        case ForecastRecord():
            return forecast(record, bars_of(shades))
    drawn = PICTURES.get(type(record))
    return Text(record.line()) if drawn is None else drawn(record)


def number(value: float) -> str:
    if math.isnan(value):
        return "-"  # not known
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 1e-9 < abs(value) < 5e-4 else f"{value:.4f}".rstrip("0").rstrip(".")


def size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def scores(all_scores: Sequence[Score]) -> RenderableType:
    if not all_scores:
        return Text("no scores", style="dim")
    grid = table("score", "value", "95 % interval", "n", "baseline", "", numbers=("value", "n"))
    for score in all_scores:
        baseline = f"{number(score.baseline.value)} {score.baseline.name}"
        grid.add_row(
            score.name,
            number(score.value),
            between(score.low, score.high),
            f"{score.n:,}",
            Text(baseline),
            Text(score.note),
        )
    return grid


def between(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{number(low)} .. {number(high)}"


def scored(record: ScoresRecord) -> RenderableType:
    return Group(Text(f"{record.run} on {record.data}"), scores(record.scores), *systems(record.systems))


def run(record: RunRecord) -> RenderableType:
    facts = {
        "run": record.path,
        "recipe": record.recipe,
        "parameters": f"{record.parameters:,}",
        "trained": f"{record.steps:,} steps, {record.tokens:,} tokens, {record.seconds:.1f} s on {record.device} "
        f"({record.tokens_per_second:,.0f} tokens/s)",
    }
    notes = [Text(note, style="dim") for note in record.notes]
    return Group(pairs(facts), scores(record.scores), *systems(record.systems), *notes)


def systems(rows: Sequence[System]) -> list[RenderableType]:
    """One row a system, one column a measure."""
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    grid = table("system", *names, numbers=names)
    for row in rows:
        grid.add_row(row.name, *(number(row.values[name]) if name in row.values else "-" for name in names))
    return [Text(""), grid, *leads(rows)]


def leads(rows: Sequence[System]) -> list[RenderableType]:
    """By how much a run is ahead of each other system, sample by sample."""
    grid = table("this run ahead of", "in", "by", "95 % interval", "p", numbers=("by", "p"))
    for row in rows:
        if (lead := row.lead) is not None:
            p = "" if lead.p is None else f"{lead.p:.3f}"
            cells = (f"{lead.value:+.4f}", f"{lead.low:+.4f} .. {lead.high:+.4f}", p)
            grid.add_row(row.name, lead.measure, *("-" if "nan" in cell else cell for cell in cells))
    return [Text(""), grid] if grid.row_count else []


def over_seeds(record: SeedsRecord) -> RenderableType:
    grid = table("score", "mean", "least .. most", "baseline", numbers=("mean",))
    for score in record.scores:
        baseline = f"{number(score.baseline.value)} {score.baseline.name}"
        grid.add_row(score.name, number(score.mean), between(score.least, score.most), Text(baseline))
    return Group(Text(f"{record.recipe}, seeds {', '.join(map(str, record.seeds))}"), grid)


def tokenizer(record: TokenizerRecord) -> RenderableType:
    lost = "every document comes back"
    if not record.lossless:
        lost = f"LOSSY: {record.lossy_documents:,} of {record.documents:,} documents differ ({record.first_loss})"
    unused = f"{record.unused:,} of {record.vocabulary:,}"
    if record.unused_examples:
        unused += f", such as {' '.join(record.unused_examples[:5])}"
    size = f"{record.documents:,} documents, {record.characters:,} characters, {record.tokens:,} tokens"
    facts = {
        "tokenizer": record.path,
        "text": size,
        "length": f"{record.characters_per_token:.3f} characters a token",
        "lossless": lost,
        "unknown": f"{record.unknown:,} tokens",
        "unused": unused,
        record.action: f"{record.seconds:.1f} s, {record.megabytes_per_second:.1f} MB/s",
    }
    return Group(pairs(facts), *(Text(f"note: {note}") for note in record.notes))


def attention(record: AttentionRecord, shades: str) -> RenderableType:
    """One shaded square a head: queries down, keys across, the darker the more is read from there."""
    squares = [
        Group(
            Text(f"layer {layer}  head {head}", style="bold"),
            square(values, record.tokens, record.tokens, shades, longest=LABEL),
        )
        for layer, heads in zip(named(record, "layer", len(record.values)), record.values, strict=True)
        for head, values in zip(named(record, "head", len(heads)), heads, strict=True)
    ]
    legend = f"each row is a query, each column a key; shares: {scale(shades)}"
    title = [Text(record.title)] if record.title else []
    return Group(*title, Columns(squares, padding=(1, 4)), Text(legend, style="dim"))


def named(record: AttentionRecord, axis: str, count: int) -> tuple[str, ...]:
    """The layers or heads that were chosen; all are counted from 0."""
    return record.labels.get(axis) or tuple(map(str, range(count)))


def shown(record: ShowRecord) -> RenderableType:
    best = "none" if record.best is None else str(record.best)
    facts = {
        "run": record.path,
        "recipe": record.recipe,
        "state": f"{record.state}, step {record.step:,} of {record.steps:,}",
        "checkpoints": f"{', '.join(map(str, record.checkpoints)) or 'none'} (best: {best})",
        "parameters": f"{record.parameters:,}" if record.parameters else "not known before the data are read",
    }
    if record.flops_per_token:  # of models of tokens, and once their context is known
        facts |= {
            "forward": f"{record.flops_per_token:,} FLOPs a token",
            "memory of a token": f"{size(record.kv_bytes_per_token)} of keys and values",
            "training memory": f"about {size(record.training_bytes)}",
        }
    settings = pairs({name: repr(value) for name, value in flatten(record.settings).items() if value != {}})
    curve = [] if record.curve is None else [Text("\n".join(["", *chart(record.curve), ""]))]
    return Group(pairs(facts), scores(record.scores), *curve, Text("\nsettings", style="bold"), settings)


def dry_run(record: DryRunRecord) -> RenderableType:
    often = f"{record.rounds:.3g} time{'' if record.rounds == 1 else 's'}"
    slower = ", measured without the compiler, which makes them faster" if record.compiled else ""
    where = f"{record.device}, {record.precision}, {threads(record.threads)}"
    facts = {
        "recipe": record.recipe,
        "device": where,
        "parameters": f"{record.parameters:,}",
        "training part": f"{record.rows:,} rows, {record.tokens:,} tokens",
        "validation part": f"{record.validation_rows:,} rows",
        "length": f"{record.steps:,} steps of {record.batch} rows: the training part {often}",
        "time": f"about {duration(record.seconds)}: {record.seconds_per_step * 1e3:.3g} ms a step{slower}, "
        f"{record.validations} validations; scores come on top",
        "memory": f"{size(record.memory_bytes)} so far, weights and optimiser about {size(record.training_bytes)}",
        "a checkpoint": size(record.checkpoint_bytes),
    }
    return Group(pairs(facts), *[Text(f"note: {note}", style="dim") for note in record.notes])


def threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def listed_runs(records: Sequence[ListedRunRecord]) -> RenderableType:
    """The settings that differ stand in one column, since there may be dozens of them."""
    headings = ("rank", "run", "recipe", "state", "step", "score", "value", "settings")
    grid = table(*headings, numbers=("rank", "step", "value"))
    for record in records:
        value = "" if record.value is None else number(record.value)
        given = "\n".join(f"{name}={one}" for name, one in record.settings.items() if one is not None)
        known = (str(record.rank or "-"), Text(record.path), record.recipe, record.state, f"{record.step:,}")
        grid.add_row(*known, record.score, value, Text(given))
    return grid


def recipes(records: Sequence[RecipeRecord]) -> RenderableType:
    grid = table("recipe", "what it trains", "reads", "takes")
    for record in records:
        grid.add_row(record.name, record.summary, record.reads, record.takes)
    return grid


def settings(records: Sequence[SettingRecord]) -> RenderableType:
    """Every setting of a recipe; what is not set is a dash."""
    grid = table("setting", "default", "meaning")
    for record in records:
        default = "-" if record.default is None else json.dumps(record.default, ensure_ascii=False)
        meaning = "; ".join(text for text in (record.meaning, " | ".join(record.choices)) if text)
        grid.add_row(record.key, Text(default), Text(meaning))
    return grid


def prediction(record: PredictionRecord) -> RenderableType:
    listed = ", ".join(f"{candidate.value} {candidate.probability:.1%}" for candidate in record.candidates)
    name = "" if record.id is None else f"{record.id}: "
    line = Text.assemble((name, "dim"), listed)
    return Group(line, Text(f"  {record.text}")) if record.text else line


def caption(record: CaptionRecord) -> RenderableType:
    marks = {True: "true   ", False: "FALSE  ", None: "unclear"}
    facts = [Text(f"  {marks[fact.true]}  {fact.name}: {fact.text}") for fact in record.facts]
    return Group(Text(f"{record.id}: {record.text}"), *facts)


SHOWN = 40  # steps of the history


def forecast(record: ForecastRecord, bars: str = BARS) -> RenderableType:
    """The end of the history and the median as bars, and the outermost quantiles above and below the median."""
    levels = sorted(record.quantiles, key=float)
    low, high = record.quantiles[levels[0]], record.quantiles[levels[-1]]
    shown = record.history[-SHOWN:]
    known = [value for value in shown if value is not None]
    bounds = min(*known, *low), max(*known, *high)
    begin = f"{record.id}: "
    past = begin + sparkline(shown, bounds, bars)
    lines, width = [], max(high) - min(low)
    for name, values in zip((levels[-1], "median", levels[0]), (high, record.mean, low), strict=True):
        start = Text.assemble((begin, "dim"), past[len(begin) :]) if name == "median" else Text(" " * len(past))
        numbers = ", ".join(rounded(value, width) for value in values[:6]) + (", …" if len(values) > 6 else "")
        line = (sparkline(values, bounds, bars), "bold" if name == "median" else "dim")
        lines.append(
            Text.assemble(start, line, f"  {name:6} ", (numbers, "dim"), no_wrap=True, overflow="ellipsis")
        )
    return Group(*lines)


def rounded(value: float, width: float) -> str:
    """With three digits of the width of the band: no forecast is surer than that. A series may be in any unit."""
    if not 1e-4 <= max(abs(value), width) < 1e15:
        return f"{value:.4g}"
    if not width > 0:
        return number(value)
    return f"{value:,.{min(12, max(0, 2 - math.floor(math.log10(width))))}f}"


def misses(records: Sequence[MissRecord]) -> RenderableType:
    headings = ("user", "left", "at", "went to", "with", "rank", "expected", "with ")
    grid = table(*headings, numbers=("with", "rank", "with "))
    for record in records:
        went = f"{record.went} (first visit)" if record.first_visit else str(record.went)
        rank = "-" if record.rank is None else f"{record.rank:.0f}"
        shares = (f"{record.probability:.1%}", f"{record.expected_probability:.1%}")
        where = (Text(str(record.user)), record.left, Text(str(record.here)), Text(went))
        grid.add_row(*where, shares[0], rank, Text(str(record.expected)), shares[1])
    return grid


def data(record: DataRecord) -> RenderableType:
    rows = {part: f"{count:,}" for part, count in record.rows.items()}
    parts: list[RenderableType] = [Text(record.path), *([pairs(rows)] if rows else [])]
    for name, counts in record.counts.items():
        most = max(counts.values(), default=0)
        grid = table(name, "number", "", numbers=("number",))
        for label, count in counts.items():
            grid.add_row(Text(label), f"{count:,}", "#" * round(30 * count / most) if most else "")
        parts += [Text(""), grid]
    parts += [Text(note) for note in record.notes]
    parts += [Text(f"problem: {problem}", style="red") for problem in record.problems]
    return Group(*parts)


def exported(record: ExportRecord) -> RenderableType:
    facts = {
        "from": f"{record.run}, step {record.checkpoint}, {record.parameters:,} parameters",
        "written": f"{record.path} ({record.to}, {record.family})",
        **{name: size(count) for name, count in record.files.items()},
    }
    return Group(pairs(facts), *(Text(note) for note in record.notes))


def imported(record: ImportRecord) -> RenderableType:
    ends = " or ".join([record.end or "none", *(f"id {i}" for i in record.further_ends)])
    facts = {
        "from": f"{record.source} ({record.family})",
        "written": f"{record.path}, {record.parameters:,} parameters",
        "vocabulary": f"{record.vocabulary:,} tokens; begin {record.begin or 'none'}, end {ends}",
        "context": f"{record.context:,} tokens",
    }
    return Group(pairs(facts), *(Text(note) for note in record.notes))


def doctor(record: DoctorRecord) -> RenderableType:
    facts = {
        "device": record.device,
        "processor": f"{record.cpu}, {threads(record.threads)}, {record.memory_gb} GB of memory",
        "instructions": " ".join(record.instruction_sets),
        "software": f"python {record.python}, torch {record.torch}",
    }
    peaks = table("matrix products", "GFLOP/s", numbers=("GFLOP/s",))
    for name, peak in record.matmul_gflops.items():
        peaks.add_row(name, number(peak))
    return Group(pairs(facts), Text(""), peaks, Text(""), *[Text(f"- {remark}") for remark in record.remarks])


def bench(record: BenchRecord) -> RenderableType:
    small = record.unit.startswith(("second", "ms", "MB")) and not record.unit.endswith("/s")
    unit = f"{record.unit}, less is better" if small else record.unit
    grid = table("", unit, record.compared, numbers=(unit, record.compared))
    for name, value in {"linnet": record.ours, **record.peers}.items():
        ratio = record.ratios.get(name)
        shown = "not run here" if value is None else number(value)
        grid.add_row(Text(name), shown, "" if ratio is None else f"{ratio:.2f}")
    times = "1 repeat" if record.n == 1 else f"{record.n} repeats"
    heading = Text(f"{record.name}, {times}, {record.machine}")
    return Group(heading, grid, Text(record.note, style="dim")) if record.note else Group(heading, grid)


LISTS: Mapping[type[Record], Callable[[Any], RenderableType]] = {  # records that share a table
    ListedRunRecord: listed_runs,
    MissRecord: misses,
    RecipeRecord: recipes,
    SettingRecord: settings,
}
PICTURES: Mapping[type[Record], Callable[[Any], RenderableType]] = {
    RunRecord: run,
    ScoresRecord: scored,
    SeedsRecord: over_seeds,
    TokenizerRecord: tokenizer,
    SearchRecord: searched,
    SearchComparisonRecord: compared,
    ShowRecord: shown,
    DryRunRecord: dry_run,
    DataRecord: data,
    DoctorRecord: doctor,
    BenchRecord: bench,
    PredictionRecord: prediction,
    CaptionRecord: caption,
    ExportRecord: exported,
    ImportRecord: imported,
    NoteRecord: lambda record: Text(record.text),
}
