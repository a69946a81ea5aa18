"""Edges: what a reader gets from a writer, and the measure when it gets the corrupt value instead.

`exact_edges` computes every edge by itself: the reader's queries, keys or values are made again from the altered
residual stream, and everything behind them follows. Heads that share keys have one reader for them.
`Circuit` runs the model with any set of edges; everything else is as in the corrupt run.
Legend: P = writers, R = readers of a call, B = cases, T = tokens, W = width, D = head width, E = edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.model.taps import Affine, Edit
from linnet.probing.cases import Subject
from linnet.probing.parts import (
    LOGITS,
    START,
    Part,
    attention_of,
    before,
    edges,
    output_weights,
    readers,
    writer_taps,
    writers,
    written,
)
from linnet.probing.patching import reader_tap
from linnet.progress import Progress


@dataclass(frozen=True)
class Runs:
    """The clean and the corrupt run: the measure [B], and what each writer writes [P, B, T, W]."""

    clean: Tensor
    corrupt: Tensor
    kept: Mapping[str, Tensor]  # of the clean run: residual streams, queries, keys and values
    writes: Tensor
    other: Tensor

    @property
    def change(self) -> Tensor:
        """[P, B, T, W]: what a corrupt writer adds to the clean stream."""
        return self.other - self.writes


def both_runs(subject: Subject) -> Runs:
    model, cases = subject.model, subject.cases
    if cases.corrupt is None:
        raise BadInput("edges need a corrupt prompt beside each clean one")
    parts, taps = writers(model.config), writer_taps(model.config)
    further = [name for name in model.taps() if ".hook_resid_" in name or name.endswith(("_q", "_k", "_v"))]
    clean, kept = subject.run(cases.ids, tuple(dict.fromkeys((*taps, *further))))
    corrupt, other = subject.run(cases.corrupt, taps)
    return Runs(clean, corrupt, kept, written(model, kept, parts), written(model, other, parts))


def stream(reader: Part, model: Model) -> str:
    """The tap of the residual stream that a reader reads."""
    if reader.kind == LOGITS:
        return f"blocks.{model.config.depth - 1}.hook_resid_post"
    middle = reader.kind == "mlp" and not model.config.parallel
    return f"blocks.{reader.layer}.hook_resid_{'mid' if middle else 'pre'}"


def exact_edges(subject: Subject) -> tuple[Tensor, Runs]:
    """[E, B]: how the measure changes when one edge carries the corrupt value, in the order of `parts.edges`."""
    model = subject.model
    with evaluating(model):
        runs, found = both_runs(subject), []
        with Progress("edges", len(edges(model.config))) as progress:
            for reader in readers(model.config):
                seen = before(reader, model.config)
                for first in range(0, len(seen), subject.copies()):
                    chosen = list(seen[first : first + subject.copies()])
                    found.append(altered(subject, reader, runs, runs.change[chosen]) - runs.clean)
                    progress.update(sum(map(len, found)))
    return torch.cat(found), runs


def altered(subject: Subject, reader: Part, runs: Runs, change: Tensor) -> Tensor:
    """[E, B]: the measure when this reader sees its stream with each of these changes [E, B, T, W]."""
    model, tap = subject.model, stream(reader, subject.model)
    read = (runs.kept[tap] + change).flatten(0, 1)  # [E * B, T, W]
    if reader.kind == LOGITS:
        return subject.measure(model.final_norm(read))
    if reader.kind in "qkv" and not model.config.parallel:
        middle = f"blocks.{reader.layer}.hook_resid_mid"
        added = one_head_changed(subject, reader, runs, model.block(reader.layer).ln1(read))
        return subject.edited((), runs.kept[middle].repeat(len(change), 1, 1) + added, middle)
    edit = edit_of(model, reader, read, subject.cases.ids.repeat(len(change), 1))
    return subject.edited((edit,), runs.kept[tap].repeat(len(change), 1, 1), tap)


def edit_of(model: Model, reader: Part, read: Tensor, ids: Tensor) -> tuple[str, Edit]:
    """What this reader makes of the stream that it sees [N, T, W], as an edit of a run whose stream is another."""
    block, tap = model.block(reader.layer), reader_tap(reader)
    if reader.kind not in "qkv":
        normed = (block.ln2 if reader.kind == "mlp" else block.ln1)(read)
        return tap, Affine(torch.zeros(()), normed)
    mixer = attention_of(model, reader.layer)
    made = mixer.project_head(reader.kind, reader.head, block.ln1(read), model.frame(ids))
    heads = mixer.heads if reader.kind == "q" else mixer.kv_heads
    scale = torch.ones(heads, 1)
    scale[reader.head] = 0
    return tap, Affine(scale, (1 - scale) * made[:, :, None])


def one_head_changed(subject: Subject, reader: Part, runs: Runs, normed: Tensor) -> Tensor:
    """[N, T, W]: what the heads that this reader feeds write more than in the clean run."""
    model, layer = subject.model, reader.layer
    mixer = attention_of(model, layer)
    copies, group = len(normed) // len(subject.cases), mixer.heads // mixer.kv_heads
    frame = model.frame(subject.cases.ids.repeat(copies, 1))
    made = mixer.project_head(reader.kind, reader.head, normed, frame)[:, :, None]
    queries = [reader.head] if reader.kind == "q" else list(range(reader.head * group, (reader.head + 1) * group))
    keys = [reader.head // group] if reader.kind == "q" else [reader.head]
    chosen = {"q": queries, "k": keys, "v": keys}
    parts = {kind: runs.kept[f"blocks.{layer}.attn.hook_{kind}"][:, :, heads] for kind, heads in chosen.items()}
    parts = {kind: value.repeat(copies, 1, 1, 1) for kind, value in parts.items()} | {reader.kind: made}
    z = mixer.mix_heads(parts["q"], parts["k"], parts["v"], frame)
    plain = runs.kept[f"blocks.{layer}.attn.hook_z"][:, :, queries].repeat(copies, 1, 1, 1)
    return torch.einsum("nthd,hdw->ntw", z - plain, output_weights(model, layer)[queries])


def exact_edges_naively(subject: Subject) -> Tensor:
    """The same, one call of the whole model an edge: the reference."""
    model, found = subject.model, []
    with evaluating(model):
        runs = both_runs(subject)
        for reader in readers(model.config):
            for i in before(reader, model.config):
                read = runs.kept[stream(reader, model)] + runs.change[i]
                if reader.kind == LOGITS:
                    changed = subject.measure(model.final_norm(read))
                else:
                    changed = subject.edited((edit_of(model, reader, read, subject.cases.ids),))
                found.append(changed[0] - runs.clean)
    return torch.stack(found)


class Circuit:
    """A run in which each reader gets the present value of a writer where the edge is in, else the corrupt one.

    `present` [R', P] covers all readers; `leaves` collects what each reader sees, to be differentiated.
    """

    def __init__(self, subject: Subject, other: Tensor, present: Tensor, *, leaves: bool = False) -> None:
        self.subject, self.model, self.other = subject, subject.model, other
        self.writers = {part: i for i, part in enumerate(writers(self.model.config))}
        self.readers = {part: i for i, part in enumerate(readers(self.model.config))}
        self.absent = 1 - present.to(other.dtype)
        self.leaves: dict[tuple[Part, ...], Tensor] | None = {} if leaves else None
        self.now: list[Tensor] = []  # what the writers so far have written in this run
        self.streams: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}

    def measure(self, residual: Tensor, tap: str = START, now: Tensor | None = None) -> Tensor:
        """The measure [B], going on from this residual stream; `now` is what was written before it."""
        self.now = [] if now is None else list(now)
        ids = self.subject.cases.ids
        hidden = self.model.forward_from(tap, residual, ids, edit=self._edits(tap)).hidden
        return self.subject.measure(hidden)[0]

    def _edits(self, start: str) -> tuple[tuple[str, Edit], ...]:
        """Functions at every tap from the start on, in the order of the pass."""
        found: dict[str, Any] = {}
        for layer, mixer in enumerate(self.model.config.mixers):
            name = f"blocks.{layer}"
            found[f"{name}.hook_resid_pre"] = self._enter(f"{name}.hook_resid_pre", embeds=layer == 0)
            if mixer == "attention":
                found[f"{name}.attn.hook_q"] = self._projections(layer)
                found |= {f"{name}.attn.hook_{kind}": self._taken(f"{layer}.{kind}") for kind in "kv"}
                found[f"{name}.attn.hook_z"] = self._note_heads(layer)
            else:
                found[f"{name}.ln1.hook_normalized"] = self._read(Part("mixer", layer))
                found[f"{name}.hook_attn_out"] = self._note
            if not self.model.config.parallel:
                found[f"{name}.hook_resid_mid"] = self._enter(f"{name}.hook_resid_mid")
            found[f"{name}.ln2.hook_normalized"] = self._read(Part("mlp", layer))
            found[f"{name}.hook_mlp_out"] = self._note
            found[f"{name}.hook_resid_post"] = self._enter(f"{name}.hook_resid_post")
        found["ln_final.hook_normalized"] = self._read(Part(LOGITS))
        names = list(found)
        return tuple((name, found[name]) for name in names[names.index(start) :])

    def _seen(self, parts: Sequence[Part]) -> Tensor:
        """[B, T, R, W]: the stream as each of these readers sees it."""
        value = self.streams[stream(parts[0], self.model)]
        seen = before(parts[0], self.model.config)
        absent = self.absent[[self.readers[part] for part in parts]][:, list(seen)]
        read = value[:, :, None].expand(-1, -1, len(parts), -1)
        if bool(absent.any()):
            surplus = torch.stack([self.now[i] for i in seen]) - self.other[list(seen)]
            read = read - torch.einsum("rp,pbtw->btrw", absent, surplus)
        if self.leaves is not None:
            leaf = torch.zeros_like(read, requires_grad=True)
            self.leaves[tuple(parts)] = leaf
            read = read + leaf
        return read

    def _enter(self, tap: str, *, embeds: bool = False) -> Any:
        def note(value: Tensor) -> Tensor:
            self.streams[tap] = value
            if embeds:
                self.now = [value]
            return value

        return note

    def _note(self, value: Tensor) -> Tensor:
        self.now.append(value)
        return value

    def _note_heads(self, layer: int) -> Any:
        def note(z: Tensor) -> Tensor:
            self.now += torch.einsum("bthd,hdw->hbtw", z, output_weights(self.model, layer)).unbind(0)
            return z

        return note

    def _read(self, reader: Part) -> Any:
        def read(_: Tensor) -> Tensor:
            seen = self._seen([reader])[:, :, 0]
            if reader.kind == LOGITS:
                return self.model.final_norm(seen)
            block = self.model.block(reader.layer)
            return (block.ln2 if reader.kind == "mlp" else block.ln1)(seen)

        return read

    def _projections(self, layer: int) -> Any:
        """Queries, keys and values of a layer, each head's from what it sees."""

        def project(_: Tensor) -> Tensor:
            block, mixer = self.model.block(layer), attention_of(self.model, layer)
            counts = {"q": mixer.heads, "k": mixer.kv_heads, "v": mixer.kv_heads}
            parts = [Part(kind, layer, head) for kind, count in counts.items() for head in range(count)]
            normed = block.ln1(self._seen(parts)).split(tuple(counts.values()), dim=2)
            q, k, v = mixer.project_apart(normed, self.model.frame(self.subject.cases.ids))
            self.made |= {f"{layer}.k": k, f"{layer}.v": v}
            return q

        return project

    def _taken(self, name: str) -> Any:
        return lambda _: self.made.pop(name)


def present_of(model: Model, chosen: Tensor) -> Tensor:
    """[R', P] of chosen edges, bool [E] in the order of `parts.edges`."""
    config = model.config
    table = torch.zeros(len(readers(config)), len(writers(config)))
    rows = {part: i for i, part in enumerate(readers(config))}
    columns = {part: i for i, part in enumerate(writers(config))}
    for (writer, reader), inside in zip(edges(config), chosen.tolist(), strict=True):
        table[rows[reader], columns[writer]] = inside
    return table


def of_circuit(subject: Subject, runs: Runs, chosen: Tensor) -> Tensor:
    """[B]: the measure of the circuit of these edges (bool [E]) alone."""
    with evaluating(subject.model):
        circuit = Circuit(subject, runs.other, present_of(subject.model, chosen))
        return circuit.measure(runs.writes[0])
