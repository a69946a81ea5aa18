"""Patching: values of one run are put into another, and the measure moves from one answer to the other.

The clean prompts' values go into a run of the corrupt ones. An effect of 1 is the clean run, 0 the corrupt one.
Legend: E = patches, B = cases, T = tokens, L = layers, H = heads, N = neurons.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.model.taps import Affine, Edit
from linnet.probing.cases import Subject, differentiating
from linnet.probing.parts import Part, before, writer_taps, writers

What = Literal["residual", "attention", "mlp", "head", "neuron"]
ENDS = {
    "residual": "hook_resid_pre",
    "attention": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "head": "attn.hook_z",
    "neuron": "mlp.hook_post",
}


@dataclass(frozen=True)
class Patch:
    """Where values are put: a tap, and one entry of its axis and one position of it, or all of them (-1)."""

    tap: str
    index: int = -1
    position: int = -1


@dataclass(frozen=True)
class Effects:
    """The measure in the clean and in the corrupt run [B], and under each patch [E, B]."""

    clean: Tensor
    corrupt: Tensor
    patched: Tensor

    @property
    def whole(self) -> float:
        """The mean way from corrupt to clean."""
        whole = float((self.clean - self.corrupt).mean())
        if abs(whole) < 1e-6:
            raise BadInput(
                "the measure is the same for the clean and for the corrupt prompts, so there is no effect to "
                "divide by; give prompts with different answers, or name the answers"
            )
        return whole

    @property
    def share(self) -> Tensor:
        """[E, B]: how far each case moves, in units of the mean way from corrupt to clean."""
        return (self.patched - self.corrupt) / self.whole


def patches(subject: Subject, what: What, *, by_position: bool) -> tuple[list[Patch], tuple[int, ...]]:
    """Every patch of this kind, and the shape of their grid: layer, then head or neuron, then position."""
    model, config = subject.model, subject.model.config
    layers = [n for n in range(config.depth) if f"blocks.{n}.{ENDS[what]}" in model.taps()]
    if not layers:
        raise BadInput(f"this model has no {what} to patch")
    entries = {"head": config.attention.heads, "neuron": config.feedforward_width}.get(what)
    tokens = subject.cases.ids.shape[1] if by_position else None
    inner = [[-1] if size is None else range(size) for size in (entries, tokens)]
    found = [
        Patch(f"blocks.{layer}.{ENDS[what]}", index, position)
        for layer in layers
        for index in inner[0]
        for position in inner[1]
    ]
    return found, (len(layers), *(size for size in (entries, tokens) if size is not None))


def patch(subject: Subject, chosen: Sequence[Patch]) -> Effects:
    """The effect of each patch by itself."""
    cases = subject.cases
    if cases.corrupt is None:
        raise BadInput("patching needs a corrupt prompt beside each clean one")
    base = replace(subject, cases=replace(cases, ids=cases.corrupt))
    with evaluating(subject.model):
        taps = tuple(dict.fromkeys(one.tap for one in chosen))
        clean, source = subject.run(cases.ids, taps)
        streams = tuple(f"blocks.{n}.hook_resid_pre" for n in range(subject.model.config.depth))
        corrupt, kept = subject.run(cases.corrupt, streams)
        results: dict[Patch, Tensor] = {}
        for tap in taps:
            group = [one for one in chosen if one.tap == tap]
            for first in range(0, len(group), subject.copies()):
                part = group[first : first + subject.copies()]
                edit = ((tap, values_at(part, source[tap])),)
                start = f"blocks.{tap.split('.')[1]}.hook_resid_pre"
                found = base.edited(edit, kept[start].repeat(len(part), 1, 1), start)
                results |= dict(zip(part, found, strict=True))
    return Effects(clean, corrupt, torch.stack([results[one] for one in chosen]))


def attribution_patch(subject: Subject, chosen: Sequence[Patch]) -> Tensor:
    """[E, B]: the linear estimate of each patch, from one gradient of the corrupt run: the measure after it."""
    model, cases = subject.model, subject.cases
    if cases.corrupt is None:
        raise BadInput("patching needs a corrupt prompt beside each clean one")
    taps = tuple(dict.fromkeys(one.tap for one in chosen))
    with torch.no_grad():
        source, kept = (dict(model(ids, keep=taps).kept) for ids in (cases.ids, cases.corrupt))
    leaves = {tap: torch.zeros_like(value, requires_grad=True) for tap, value in kept.items()}
    with differentiating(model):
        edit = tuple((tap, functools.partial(torch.add, leaf)) for tap, leaf in leaves.items())
        measured = subject.measure(model(cases.corrupt, edit=edit).hidden)[0]
        gradients = torch.autograd.grad(measured.sum(), list(leaves.values()))
    moves = {tap: (source[tap] - kept[tap]) * gradient for tap, gradient in zip(leaves, gradients, strict=True)}
    return torch.stack([measured.detach() + at_patch(one, moves[one.tap]).flatten(1).sum(1) for one in chosen])


def at_patch(one: Patch, value: Tensor) -> Tensor:
    """The entries of a value [B, T, ...] that a patch replaces."""
    value = value if one.position < 0 else value[:, one.position : one.position + 1]
    return value if one.index < 0 else value[:, :, one.index : one.index + 1]


def values_at(group: Sequence[Patch], value: Tensor) -> Affine:
    """Patches of one tap, one after the other along the rows: where a patch is, `value` [B, T, ...] stands."""
    here = torch.zeros(len(group), 1, *value.shape[1:], device=value.device)
    for number, one in enumerate(group):
        at_patch(one, here[number]).fill_(1)
    offset = (here * value).flatten(0, 1)
    return Affine((1 - here).expand(-1, len(value), *value.shape[1:]).reshape(offset.shape), offset)


def path_patch(subject: Subject, receivers: Sequence[Part], *, through_mlps: bool = True) -> Effects:
    """The effect of each writer on the measure, by its paths into these readers alone.

    The writer has its corrupt value, all other heads keep their clean ones, feed-forwards compute again (or keep
    theirs, so that only direct edges are left), and the readers' new inputs go into the clean run. An effect of
    1 is what the whole corrupt run changes.
    """
    model, cases = subject.model, subject.cases
    if cases.corrupt is None:
        raise BadInput("path patching needs a corrupt prompt beside each clean one")
    seen = {i for reader in receivers for i in before(reader, model.config)}
    with evaluating(model):
        taps = writer_taps(model.config)
        clean, kept = subject.run(cases.ids, taps)
        corrupt, other = subject.run(cases.corrupt, taps)
        results = []
        for number, writer in enumerate(writers(model.config)):
            if number not in seen:
                results.append(clean)
                continue
            freeze = frozen(writer, kept, other, through_mlps=through_mlps)
            reads = received(model, cases.ids, receivers, freeze)
            results.append(subject.edited(reads)[0])
    return Effects(corrupt, clean, torch.stack(results))  # the other way round: from clean towards corrupt


def frozen(
    writer: Part, kept: Mapping[str, Tensor], other: Mapping[str, Tensor], *, through_mlps: bool
) -> list[tuple[str, Edit]]:
    """Every writer as it was, but this one as in the other run."""
    made: list[tuple[str, Edit]] = []
    for tap, value in kept.items():
        if tap == writer.tap:
            value = value.clone() if writer.kind == "head" else other[tap]
            if writer.kind == "head":
                value[:, :, writer.head] = other[tap][:, :, writer.head]
        elif tap.endswith("hook_mlp_out") and through_mlps:
            continue
        made.append((tap, Affine(torch.zeros(()), value)))
    return made


def received(
    model: Model, ids: Tensor, receivers: Sequence[Part], freeze: Sequence[tuple[str, Edit]]
) -> list[tuple[str, Edit]]:
    """The inputs of these readers under frozen writers, as edits of another run."""
    taps = {reader: reader_tap(reader) for reader in receivers}
    kept = model(ids, keep=tuple(dict.fromkeys(taps.values())), edit=tuple(freeze)).kept
    made: list[tuple[str, Edit]] = []
    for reader, tap in taps.items():
        value = kept[tap]
        scale = torch.zeros(())
        if reader.kind in "qkv":
            scale = torch.ones(value.shape[2], 1)
            scale[reader.head] = 0
        made.append((tap, Affine(scale, (1 - scale) * value)))
    return made


def reader_tap(reader: Part) -> str:
    """Where what a reader reads can be replaced, behind its norm."""
    if reader.kind == "logits":
        return "ln_final.hook_normalized"
    ends = {"mlp": "ln2.hook_normalized", "mixer": "ln1.hook_normalized"}
    return f"blocks.{reader.layer}.{ends.get(reader.kind, f'attn.hook_{reader.kind}')}"
