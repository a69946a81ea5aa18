"""Records of searches drawn for people: what was found, the most visited branches, a table of methods."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.tree import Tree

from linnet.cli.tables import Text, pairs, table
from linnet.errors import counted
from linnet.search.records import SearchComparisonRecord, SearchedText, SearchRecord, SearchTreeRecord

SAMPLES = 10  # that are shown; all of them are in the record
LONGEST = 80  # characters of a text in a table
SPENT = ("rollouts", "forward tokens", "reward calls", "s", "unseen")


def searched(record: SearchRecord) -> RenderableType:
    """The best text, the value, the samples, the tree, what it cost."""
    parts: list[RenderableType] = [Text(shown(record.prompt), style="bold"), pairs(_facts(record))]
    if record.samples:
        parts += [Text(""), texts(record.samples)]
    if record.branches is not None and len(record.branches.parent) > 1:
        parts += [Text(""), picture(record.branches)]
    return Group(*parts, *(Text(note, style="dim") for note in record.notes))


def _facts(record: SearchRecord) -> dict[str, str]:
    best, found = record.best, record.statistics
    facts = {"best": "nothing was scored"}
    if best is not None:
        facts["best"] = f"{repr(best.text)[1:-1]}  (reward {best.reward:.4g}, logprob {best.logprob:.3f})"
    limits = [number(limit) for limit in (record.low, record.high)]
    facts["value"] = f"{number(record.value)}, 95 % in {limits[0]} .. {limits[1]}; unseen mass {record.unseen:.3g}"
    options = ", ".join(f"{name} {value}" for name, value in record.settings.items() if value is not None)
    facts["method"] = f"{record.method} ({options}); reward {record.reward}"
    target = {name: value for name, value in record.target.items() if value is not None}
    facts["target"] = ", ".join(f"{name} {value}" for name, value in target.items())
    facts["cost"] = (
        f"{record.rollouts:,} rollouts, {record.prompt_tokens:,} + {record.forward_tokens:,} forward tokens, "
        f"{record.reward_calls:,} reward calls, {record.seconds:.2f} s"
    )
    facts["tree"] = f"{found.nodes:,} nodes, depth {found.depth}, {found.branching:.2f} children a branching node"
    if found.texts:
        distinct = ", ".join(f"distinct-{n} {number(share)}" for n, share in enumerate(found.distinct, 1))
        facts["texts"] = (
            f"{found.texts:,} scored, reward {number(found.mean_reward)} on average, {number(found.length)} "
            f"characters, perplexity {number(found.perplexity)}, {distinct}"
        )
    if record.tree is not None:
        facts["saved"] = record.tree
    return facts


def texts(samples: Sequence[SearchedText]) -> RenderableType:
    grid = table("sample", "reward", "logprob", numbers=("reward", "logprob"))
    for sample in samples[:SAMPLES]:
        grid.add_row(Text(shown(sample.text)), number(sample.reward), f"{sample.logprob:.3f}")
    return grid


def picture(record: SearchTreeRecord) -> RenderableType:
    """The branches, each with the probability of its token, its visits, and its reward."""
    drawn: list[Tree] = []
    for node, parent in enumerate(record.parent):
        label = (
            Text("the prompt") if parent < 0 else Text(repr(record.text[node])[1:-1] or "\N{EMPTY SET}", "bold")
        )
        label.append(f"  {counted(record.visits[node], 'visit')}", "dim")
        if parent >= 0:
            label.append(f", p {record.prior[node]:.3g}", "dim")
        reward = record.reward[node]
        if reward is not None:
            label.append(f", {record.ending[node]}, reward {reward:.3g}", "dim")
        elif record.mean[node] is not None:
            label.append(f", mean {record.mean[node]:.3g}", "dim")
        drawn.append(Tree(label) if parent < 0 else drawn[parent].add(label))
    if record.left_out:
        drawn[0].add(Text(f"and {record.left_out:,} more nodes", "dim"))
    return drawn[0]


def compared(record: SearchComparisonRecord) -> RenderableType:
    """One row a method; the lead is over the first one."""
    budget = ", ".join(f"{name} {value}" for name, value in record.budget.items())
    title = Text(
        f"reward {record.reward}; {budget}; {counted(record.prompts, 'prompt')}, "
        f"{counted(record.seeds, 'seed')} each; n = {record.n}",
        style="bold",
    )
    found = table(
        "method", "best reward", "95 %", "lead", "95 % ", numbers=("best reward", "95 %", "lead", "95 % ")
    )
    spent = table("method", *SPENT, numbers=SPENT)
    for row in record.methods:
        lead = ("", "")
        if row.lead is not None:
            lead = (f"{row.lead:+.4f}", f"{row.lead_low:+.4f} .. {row.lead_high:+.4f}")
        found.add_row(row.method, f"{row.reward_best:.4f}", f"{row.low:.4f} .. {row.high:.4f}", *lead)
        counts = (f"{value:,.1f}" for value in (row.rollouts, row.forward_tokens, row.reward_calls))
        spent.add_row(row.method, *counts, f"{row.seconds:.3f}", f"{row.unseen:.3g}")
    return Group(title, found, Text(""), spent, *(Text(note, style="dim") for note in record.notes))


def number(value: float | None) -> str:
    """Below 1e-12 stands what rounding has left of 0."""
    return "unknown" if value is None else "0" if abs(value) < 1e-12 else f"{value:.4g}"


def shown(text: str) -> str:
    """A text in one line."""
    written = repr(text)[1:-1]
    return written if len(written) <= LONGEST else f"{written[:LONGEST]}..."
