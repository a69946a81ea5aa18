"""A tree on disk: a folder with all its arrays, to go on from, and with pictures of it, to look at.

The arrays hold what the model said of each node, so nothing is computed when a tree is opened; keys and values are
not kept, and the model reads them again where the search goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from linnet.errors import BadInput, nearest
from linnet.files import Layout, new_folder, write_atomically
from linnet.search.nodes import CLOSED, CUT, ENDED, INNER
from linnet.search.records import SearchRecord, SearchTreeRecord
from linnet.search.steps import Step
from linnet.untrusted import checked, read_bytes, read_object, refusing

if TYPE_CHECKING:
    from linnet.search.methods.contract import Method
    from linnet.search.reward import Reward
    from linnet.search.tree import Tree

RECORD, TREE, SETTINGS, ARRAYS = "record.json", "tree.json", "search.json", "arrays.safetensors"
LAYOUT = Layout("a saved search", SETTINGS, (RECORD, TREE, SETTINGS, ARRAYS))
FORMAT = 1
ENDINGS: dict[int, Literal["", "end", "cut", "closed"]] = {INNER: "", ENDED: "end", CUT: "cut", CLOSED: "closed"}
SHOWN = 20_000  # nodes of the record that a viewer draws
SAME = 1e-2  # how far log-probabilities of the root may be from the saved ones, from machine to machine


@dataclass(frozen=True)
class SavedSource:
    """Where the model and the reward come from, as the caller named them."""

    path: str
    prompt: str
    reward: str
    reward_settings: dict[str, Any]
    checkpoint: int | None = None
    device: str | None = None
    precision: str | None = None
    least: float | None = None  # limits that the caller gave
    most: float | None = None


@dataclass(frozen=True)
class Saved:
    """What a folder says of its search, beside the arrays."""

    format: int
    root: list[int]
    committed: list[int]
    method: str
    method_settings: dict[str, Any]
    target: dict[str, Any]
    source: SavedSource
    seed: int
    counts: dict[str, float]
    leaves: list[int]
    memory: dict[str, Any]  # of the method
    notes: list[str]


@dataclass(frozen=True)
class SavedRun:
    """A run of particles: their leaves, and what has been decided of them."""

    leaves: list[int]
    logweights: list[float]
    logscale: float
    moves: int
    proposals: list[int]
    logz: float | None = None


@dataclass(frozen=True)
class SavedMemory:
    """What methods keep from wave to wave; each of them has some of it."""

    frontier: list[tuple[float, float, int, int]] | None = None
    rest: dict[str, list[int]] | None = None
    beam: bool | None = None
    chosen: int | None = None
    pause: float | None = None
    shrinkage: tuple[int, list[float]] | None = None
    run: SavedRun | dict[str, None] | None = None
    runs: list[SavedRun] | None = None


COUNTS = ("rollouts", "reward_calls", "planned", "seconds", "shift", "mass", "mean")
WHOLE = ("rollouts", "reward_calls", "planned", "forward_tokens")


def save(tree: Tree, folder: Path, record: SearchRecord, source: SavedSource, *, force: bool = False) -> None:
    """Write the tree, its record, and what a viewer draws; a folder that exists is replaced with `force` only."""
    from safetensors.numpy import save as to_bytes

    columns = {"nodes": tree.nodes, "rows": tree.rows, "draws": tree.draws}
    arrays = {
        f"{group}.{name}": np.ascontiguousarray(values)
        for group, held in columns.items()
        for name, values in held.arrays().items()
    }
    saved = Saved(
        format=FORMAT,
        root=list(tree.root),
        committed=list(tree.committed),
        method=record.method,
        method_settings=asdict(tree.method),
        target=asdict(tree.step.target),
        source=source,
        seed=tree.seed,
        counts={name: getattr(tree, name) for name in COUNTS} | {"forward_tokens": tree.step.forward_tokens},
        leaves=list(tree.leaves),
        memory=tree.memory,
        notes=list(tree.notes),
    )
    with new_folder(folder, LAYOUT, force=force) as new:
        write_atomically(new.path / ARRAYS, to_bytes(arrays))
        write_atomically(new.path / SETTINGS, json.dumps(asdict(saved), indent=1).encode())
        write_atomically(new.path / RECORD, record.line().encode())
        write_atomically(new.path / TREE, tree_record(tree, SHOWN).line().encode())


def read_saved(folder: Path) -> Saved:
    """What a folder says of its search."""
    if not (folder / SETTINGS).is_file():
        raise BadInput(f"{folder} is no saved search: it has no {SETTINGS}")
    stored = read_object(folder / SETTINGS)
    if stored.get("format") != FORMAT:
        raise BadInput(f"{folder} has format {stored.get('format')!r}, and this version reads format {FORMAT}")
    saved: Saved = checked(Saved, stored, folder / SETTINGS)
    missing = [name for name in (*COUNTS, "forward_tokens") if name not in saved.counts]
    if missing:
        raise BadInput(f"{folder / SETTINGS}: counts has no {missing[0]}")
    for name in WHOLE:
        if not 0 <= saved.counts[name] < 1 << 62:
            raise BadInput(f"{folder / SETTINGS}: counts.{name} is {saved.counts[name]}, and no count")
    return saved


def as_saved(known: Any, settings: dict[str, Any], where: Path) -> Any:
    """A method or a target with settings of a file."""
    names = [field.name for field in fields(known)]
    strange = next((name for name in settings if name not in names), None)
    if strange is not None:
        raise BadInput(f'{where} has "{strange}"{nearest(strange, names)}, which no {type(known).__name__} has')
    return checked(type(known), {**asdict(known), **settings}, where)


def restore(folder: Path, saved: Saved, step: Step, method: Method, reward: Reward) -> Tree:
    """The tree as it was; refused where the model says something else of the prompt than it did then."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    from linnet.search.tree import Tree

    tree = Tree(saved.root, step, method, reward, saved.seed)
    with refusing(f"{folder / ARRAYS}", SafetensorError, KeyError, ValueError):
        arrays = from_bytes(read_bytes(folder / ARRAYS))
        known = tree.rows["logprobs"][0], tree.rows["ids"][0]
        for group, held in (("nodes", tree.nodes), ("rows", tree.rows), ("draws", tree.draws)):
            held.load({name: arrays[f"{group}.{name}"] for name in held.kinds})
        _check(tree)
    if not saved.committed:
        _same_model(folder, tree, *known)
    tree.committed = tuple(saved.committed)
    for name in COUNTS:
        value = saved.counts[name]
        setattr(tree, name, int(value) if name in WHOLE else value)
    tree.leaves, tree.notes = list(saved.leaves), list(saved.notes)
    tree.reindex()
    with refusing(f"{folder / SETTINGS}", ValueError):
        if any(not 0 <= leaf < tree.nodes.count for leaf in tree.leaves):
            raise ValueError("a leaf is no node")
        tree.memory = _memory(tree, saved.memory, folder / SETTINGS)
    _recall(tree)
    step.forward_tokens = int(saved.counts["forward_tokens"])
    return tree


def _check(tree: Tree) -> None:
    """Refuse numbers that point nowhere."""
    nodes, count = tree.nodes, tree.nodes.count
    parent, row, leaf = nodes["parent"], nodes["row"], tree.draws["leaf"]
    if not count or parent[0] != -1 or (parent[1:] < 0).any() or (parent[1:] >= np.arange(1, count)).any():
        raise ValueError("a parent does not stand before its child")
    if (row < -1).any() or (row >= tree.rows.count).any() or row[0] < 0 or (row[parent[1:]] < 0).any():
        raise ValueError("a node has no row")
    if (leaf < 0).any() or (leaf >= count).any() or not ((nodes["token"][1:] >= 0).all()):
        raise ValueError("a draw or a token is none")
    if (nodes["token"] >= tree.step.vocabulary).any():
        raise ValueError("a token is outside the vocabulary")
    if (nodes["depth"][1:] != nodes["depth"][parent[1:]] + 1).any():
        raise ValueError("a depth is not that of the parent and one")
    inner = (nodes["kind"] == INNER) & (nodes["visits"] > 0)
    if (~np.isin(np.flatnonzero(inner), parent)).any():
        raise ValueError("a visit goes through a node and ends nowhere")
    ids, slot = tree.rows["ids"], nodes["slot"]
    if (slot < -1).any() or (slot >= ids.shape[1]).any() or (ids >= tree.step.vocabulary).any():
        raise ValueError("a kept child or its token is outside of the row")


def _memory(tree: Tree, stored: dict[str, Any], where: Path) -> dict[str, Any]:
    """What the method kept, with numbers that point somewhere."""
    known: SavedMemory = checked(SavedMemory, stored, f"{where}: memory")
    held = dict(stored)
    if known.frontier is not None:
        if not all(_in_frontier(tree, node, child) for _, _, node, child in known.frontier):
            raise ValueError("the frontier has a child that its node does not have")
        held |= {"frontier": [list(entry) for entry in known.frontier], "rest": {}}  # `rest` is computed again
    if known.shrinkage is not None and len(known.shrinkage[1]) != tree.limit + 1:
        raise ValueError("memory.shrinkage has not one number for each depth")
    for run in (known.run, *(known.runs or ())):
        if isinstance(run, SavedRun):
            _check_run(tree, run)
    return held


def _in_frontier(tree: Tree, node: int, child: int) -> bool:
    """Whether a node (its negative, where it was put back itself) has this child; kept ones come first."""
    nodes, rows = tree.nodes, tree.rows
    if abs(node) >= nodes.count or child < 0:
        return child == -1 and -nodes.count < node <= 0 and nodes["kind"][node] == INNER
    row = nodes["row"][node]
    if node < 0 or row < 0:
        return False
    kept = rows["ids"].shape[1]
    return bool(child < (tree.step.vocabulary if rows["rest"][row] > 0 else kept))


def _check_run(tree: Tree, run: SavedRun) -> None:
    sizes = {len(run.leaves), len(run.proposals) or len(run.leaves)}
    if run.moves < 0:
        sizes.add(len(run.logweights))
    elif run.logz is None:
        raise ValueError("a run of particles that has moved has no logz")
    if len(sizes) != 1 or not run.leaves:
        raise ValueError("a run of particles has lists of different lengths")
    if any(not 0 <= leaf < tree.nodes.count for leaf in (*run.leaves, *run.proposals)):
        raise ValueError("a particle is no node")


def _same_model(folder: Path, tree: Tree, logprobs: np.ndarray, ids: np.ndarray) -> None:
    saved = dict(zip(tree.rows["ids"][0].tolist(), tree.rows["logprobs"][0].tolist(), strict=True))
    likely = [(token, logprob) for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True)][:8]
    if any(abs(saved.get(token, -np.inf) - logprob) > SAME for token, logprob in likely if np.isfinite(logprob)):
        raise BadInput(f"{folder} was searched with another model: the probabilities after its prompt differ")


def _recall(tree: Tree) -> None:
    """Handles for all nodes that were expanded, parents first."""
    step, nodes = tree.step, tree.nodes
    top = 0
    for token in tree.committed:
        (top,) = step.recall([top], [token]).tolist()
    nodes["handle"][:] = -1
    nodes["handle"][0] = top
    expanded = nodes["row"] >= 0
    for depth in range(1, int(nodes["depth"].max(initial=0)) + 1):
        level = np.flatnonzero(expanded & (nodes["depth"] == depth))
        parents = nodes["handle"][nodes["parent"][level]]
        nodes["handle"][level] = step.recall(parents.tolist(), nodes["token"][level].tolist())


def tree_record(tree: Tree, most: int) -> SearchTreeRecord:
    """The nodes of a tree that most rollouts passed through, for a picture."""
    nodes = tree.nodes
    visits = nodes["visits"]
    kept = np.flatnonzero((visits > 0) | (nodes["parent"] < 0))
    if len(kept) > most:
        # A parent has at least the visits of its child and stands before it, so it is never left out alone.
        kept = np.sort(kept[np.lexsort((kept, -visits[kept]))[:most]])
    number = np.full(nodes.count, -1)
    number[kept] = np.arange(len(kept))
    parents = nodes["parent"][kept]
    means = nodes["total"][kept] / np.maximum(visits[kept], 1)
    return SearchTreeRecord(
        prompt=tree.step.prompt,
        parent=tuple(np.where(parents < 0, -1, number[parents]).tolist()),
        text=tuple(written(tree, kept)),
        prior=tuple(np.exp(nodes["prior"][kept]).tolist()),
        visits=tuple(visits[kept].tolist()),
        mean=tuple(numbers(np.where(visits[kept] > 0, means, np.nan))),
        reward=tuple(numbers(nodes["reward"][kept])),
        ending=tuple(ENDINGS[kind] for kind in nodes["kind"][kept].tolist()),
        left_out=nodes.count - len(kept),
    )


def numbers(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def written(tree: Tree, kept: Sequence[int] | np.ndarray) -> list[str]:
    """What the token of each node writes after its parent, where the text of the parent goes on with it."""
    texts: dict[int, str] = {}
    found = []
    for node in map(int, kept):
        parent = int(tree.nodes["parent"][node])
        if parent < 0:
            texts[node] = ""
            found.append("")
            continue
        text = tree.step.text(tree.generated(node))
        before = texts.get(parent, "")
        texts[node] = text
        found.append(text[len(before) :] if text.startswith(before) else text)
    return found
