"""What a run on places tells about people: a list of it, copies that tell less, and users who are forgotten.

A vocabulary of places with cells is close to a list of homes: most places are known to one person alone. No run
stores coordinates or visits, but names, cells of about 500 m, and each user's counts of moves.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from linnet import files
from linnet.domains.places.codec import FIRST, Forgotten, Moves, PlacesCodec
from linnet.domains.places.use import places_run
from linnet.domains.places.visits import mark_of, marked
from linnet.errors import BadInput
from linnet.files import write_atomically
from linnet.records import NoteRecord
from linnet.training.checkpoint import Checkpoint, RunFolder
from linnet.training.settings import to_toml
from linnet.untrusted import whole_number

Rare = Literal["keep", "drop", "coarsen"]


def disclosure(codec: PlacesCodec, fewer_than: int) -> tuple[str, ...]:
    """What whoever has this run can read from it."""
    seen_by = users_of_places(codec)
    named = np.array([name is not None for name in codec.places], bool)
    rare, single = named & (seen_by < fewer_than), named & (seen_by <= 1)
    levels = ", ".join(map(str, codec.levels)) or "none"
    users = sum(name is not None for name in codec.users)
    return (
        f"{int(named.sum())} places by name, with cells of levels {levels}: {int(single.sum())} of them were "
        f"visited by one user alone, {int(rare.sum())} by fewer than {fewer_than}",
        f"{users} users by name, and how often each moved between which places ({codec.stored_counts} numbers)",
    )


def users_of_places(codec: PlacesCodec) -> np.ndarray:
    """int64 [places]: how many users visited each in the train part."""
    return np.bincount(codec.moves.stays[:, 1] - FIRST, minlength=len(codec.places))


def lessen(folder: RunFolder, step: int, codec: PlacesCodec, rare: Rare, fewer_than: int) -> tuple[str, ...]:
    """Rewrite a copy of a run so that rare places cannot be read from it, nor who its users were.

    drop: names, cells, counts and table rows of rare places go. coarsen: they keep names and their coarsest cell.
    """
    if rare not in get_args(Rare):
        raise BadInput(f'rare is keep, drop or coarsen, not "{rare}"')
    if rare == "keep":
        return disclosure(codec, fewer_than)
    few = users_of_places(codec) < fewer_than
    anonymous = replace(codec, users=(None,) * len(codec.users))
    if rare == "drop":
        less, cells = anonymous.emptied(few)
        ids = np.flatnonzero(few) + FIRST
        moves = less.moves
        kept = ~np.isin(moves.pairs[:, 1:3], ids).any(1)
        less = replace(less, moves=Moves(moves.pairs[kept], moves.stays[~np.isin(moves.stays[:, 1], ids)]))
        gone = Forgotten(less, None, ids, cells)
        _blank(folder, step, gone)
    else:
        fine = dict(anonymous.cell_of_place)
        for level in codec.levels[1:]:
            fine[level] = tuple(1 if away else cell for cell, away in zip(fine[level], few, strict=True))
        less = replace(anonymous, cell_of_place=fine)
    write_atomically(folder.codec, json.dumps(less.to_json(), ensure_ascii=False).encode())
    counted = (
        "users are nobody to this copy: their own moves cannot be taken away from the counts of other people's, "
        "and embeddings of users are not used, so predictions and scores of the people it was trained on change"
    )
    done = "dropped" if rare == "drop" else "left with their coarsest cell"
    text = (
        f"{int(few.sum())} places visited by fewer than {fewer_than} users were {done}, and users lost their names"
    )
    return (*disclosure(less, fewer_than), text, counted)


def forget(path: Path | str, user: str) -> NoteRecord:
    """Remove a user: name, counts, embedding, places that nobody else visited, and whatever could give them back.

    Only the best checkpoint stays, without the state of its optimiser; snapshots go. What the weights that all
    users share have learned from this user stays learned: only training again removes that, and a run that was
    not finished does so when it is resumed. Whoever is killed meanwhile does it again: the name goes last.
    """
    folder = RunFolder.open(Path(path))
    with files.locked(folder.path):
        files.tidy_within(folder.path)
        opened, data, codec = places_run(path)
        known: int | str = user
        number = whole_number(user)
        if user not in codec.users and number is not None and number in codec.users:
            known = number
        is_marked = bool(marked([user], data.forgotten)[0])
        if is_marked and known not in codec.users:
            return NoteRecord(step=opened.step, text=f"user {user} was forgotten before")
        gone = codec.forget(known)
        if not is_marked:
            marks = (*data.forgotten, mark_of(user, secrets.token_hex(8)))
            run = opened.run.model_copy(update={"data": data.model_copy(update={"forgotten": marks})})
            write_atomically(folder.settings, to_toml(run).encode())
        blanked = _blank(folder, opened.step, gone)
        for step in folder.steps():
            if step != opened.step:
                files.remove(folder.at(step))
        for left in (folder.metrics, folder.report, folder.snapshots.path):
            files.remove(left)
        write_atomically(folder.codec, json.dumps(gone.codec.to_json(), ensure_ascii=False).encode())
    learned = (
        "weights that all users share were not trained again"
        if folder.record.is_file()
        else "linnet resume trains this run from its beginning, without this user"
    )
    return NoteRecord(
        step=opened.step,
        text=f"user {user} is forgotten: 1 name, {len(gone.places)} places that nobody else visited, "
        f"{codec.stored_counts - gone.codec.stored_counts} stored counts and {blanked} numbers of tables are "
        f"gone; {learned}",
    )


def _blank(folder: RunFolder, step: int, gone: Forgotten) -> int:
    """Zero the rows of a user and of places in the tables of a checkpoint, which cannot be trained on then."""
    kept = folder.read(step)
    weights, averaged = dict(kept.weights), None if kept.ema is None else dict(kept.ema)
    count = _blank_tables(weights, gone) + (0 if averaged is None else _blank_tables(averaged, gone))
    folder.save(Checkpoint(weights, averaged, {}, replace(kept.loop, data="")))
    return count


def _blank_tables(tensors: Mapping[str, Tensor], gone: Forgotten) -> int:
    """In place; returns how many numbers became zero."""
    places = torch.from_numpy(gone.places)
    users = slice(FIRST, None) if gone.user is None else torch.tensor([gone.user])
    rows: dict[str, Any] = {"user.weight": users, "embed.tables.3.weight": places}
    for level, ids in enumerate(gone.cells.values()):
        rows |= {
            name: torch.from_numpy(ids) for name in (f"embed.tables.{level}.weight", *_head(f"cells.{level}"))
        }
    rows |= {name: places for name in _head("places")}
    count = 0
    for name, table in tensors.items():
        if name in rows:
            count += table[rows[name]].numel()
            table[rows[name]] = 0
        elif name in ("count_in.weight", "recent_in.weight"):
            count += table[:, places].numel()
            table[:, places] = 0
    return count


def _head(name: str) -> list[str]:
    """The last layer of a head is a layer of its own, or the fourth of a small network."""
    return [f"generate.{name}{inner}.{kind}" for inner in ("", ".3") for kind in ("weight", "bias")]
