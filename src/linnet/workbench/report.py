"""`report.md`: a run in one page, for people who were not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from linnet.files import write_atomically
from linnet.records import CaptionRecord, Fact, ForecastRecord, RunRecord, Score, System
from linnet.training.checkpoint import RunFolder
from linnet.training.run import Run
from linnet.training.settings import flatten, without_unused
from linnet.workbench.curves import chart, curve_of

VERDICTS = {True: "true", False: "false", None: "unclear"}


def score_table(scores: Sequence[Score]) -> list[str]:
    """Markdown rows: every score with its interval, its n and what it has to beat."""
    lines = ["| score | value | 95 % interval | n | baseline | note |", "|---|---|---|---|---|---|"]
    for score in scores:
        interval = f"{score.low:.4f} .. {score.high:.4f}"
        baseline = f"{score.baseline.value:.4f} ({score.baseline.name})"
        lines.append(
            f"| {score.name} | {score.value:.4f} | {interval} | {score.n:,} | {baseline} | {score.note} |"
        )
    return lines


def system_table(systems: Sequence[System]) -> list[str]:
    """Markdown rows: the run and every rule that it has to beat, on the same samples."""
    if not systems:
        return []
    names = list(dict.fromkeys(name for system in systems for name in system.values))
    lines = ["| system | " + " | ".join(names) + " | this run is ahead by |", "|---" * (2 + len(names)) + "|"]
    for system in systems:
        values = [f"{system.values[name]:.4f}" if name in system.values else "-" for name in names]
        one = system.lead
        ahead = "" if one is None else f"{one.value:+.4f} ({one.low:+.4f} .. {one.high:+.4f}) in {one.measure}"
        lines.append(f"| {system.name} | " + " | ".join([*values, ahead]) + " |")
    return [*lines, ""]


def example_lines(folder: RunFolder, examples: Sequence[ForecastRecord | CaptionRecord]) -> list[str]:
    """Held-out series drawn beside the report, where matplotlib is there to draw them, and their captions."""
    captions = [one for one in examples if isinstance(one, CaptionRecord)]
    what = "captions" if captions else "forecasts"
    lines = [f"- **{one.id}**: {one.text} ({', '.join(map(marked, one.facts)) or 'no fact'})" for one in captions]
    drawn = []
    if examples and importlib.util.find_spec("matplotlib") is not None:
        from linnet.figures import save_series

        save_series(examples, folder.path / f"{what}.svg")
        drawn = [f"![{what} of held-out series]({what}.svg)", ""]
    return [*drawn, *lines, *([""] if lines else [])]


def marked(fact: Fact) -> str:
    return f"{fact.name} {VERDICTS[fact.true]}"


def write_report(
    folder: RunFolder,
    run: Run,
    record: RunRecord,
    notes: Sequence[str],
    examples: Sequence[ForecastRecord | CaptionRecord] = (),
) -> None:
    curve = curve_of(folder)
    drawn = [] if curve is None else ["## Learning curve", "", "```", *chart(curve), "```", ""]
    settings = [f"- `{key}` = {value!r}" for key, value in flatten(without_unused(run)).items()]
    lines = [
        f"# {record.recipe}",
        "",
        f"{record.parameters:,} parameters, {record.steps:,} steps, {record.tokens:,} tokens, "
        f"{record.seconds:.1f} s on {record.device} ({record.tokens_per_second:,.0f} tokens/s).",
        "",
        "## Scores on the validation part",
        "",
        *score_table(record.scores),
        "",
        *system_table(record.systems),
        *example_lines(folder, examples),
        *[f"Note: {note}" for note in notes],
        "",
        *drawn,
        "## Settings",
        "",
        *settings,
        "",
    ]
    write_atomically(folder.report, "\n".join(lines).encode())
