"""Next places for histories of a file, and a run that forgets one of its users."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from linnet.domains.places.codec import Forgotten, PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.places.histories import Histories, read_histories
from linnet.domains.places.rows import VisitRows
from linnet.errors import BadInput
from linnet.model.places.copying import FilterKind
from linnet.model.places.published import CopyModel
from linnet.model.places.ranking import answer, filtered, name_dense
from linnet.model.places.scorer import Scorer
from linnet.records import Candidate, NoteRecord, PredictionRecord
from linnet.training.checkpoint import RunFolder, hash_of, write_atomically
from linnet.workbench.opening import Opened, load
from linnet.workbench.using import settings_of

FILTERS: tuple[FilterKind, ...] = ("none", "hard", "soft")


def places_run(
    path: Path | str, device: str | None = None, precision: str | None = None
) -> tuple[Opened, PlacesCodec]:
    """An opened run on places; any other run is refused."""
    opened = load(path, device=device, precision=precision)
    if not isinstance(opened.codec, PlacesCodec):
        raise BadInput(f"{path} is a run on {opened.run.data.domain}, and only runs on places name next places")
    return opened, opened.codec


def predict(
    path: Path | str,
    file: Path,
    *,
    k: int = 10,
    settings: tuple[str, ...] = (),
    device: str | None = None,
    precision: str | None = None,
) -> Iterator[PredictionRecord]:
    """The k most probable next places of every history, in the order of the file."""
    if k < 1:
        raise BadInput(f"k is {k}; at least one place must be asked for")
    if not file.exists():
        raise BadInput(f"there is no file {file}")
    chosen = settings_of(list(settings), batch=256, filter="")
    opened, codec = places_run(path, device, precision)
    data = opened.run.data
    assert isinstance(data, PlacesData)
    histories = read_histories(file, codec, tz=data.tz, local=data.local)
    past = data.reads == "past"
    rows = VisitRows(
        histories.visits, histories.samples, codec, past, data.longest, data.suggestions if past else 0
    )
    network = opened.network
    if isinstance(network, CopyModel):
        kind = filter_kind(chosen["filter"] or network.config.filter)
        places, cells = name_dense(network, rows, chosen["batch"], opened.region)
        yield from _from_dense(filtered(network, places, cells, kind), histories, codec, k)
    elif isinstance(network, Scorer):
        if chosen["filter"] not in ("", "none"):
            raise BadInput("filter is for the copying networks")
        ranking = answer(network, rows, chosen["batch"], opened.region).ranking
        for index, name in enumerate(histories.ids):
            entries = slice(ranking.starts[index], ranking.starts[index + 1])
            best = np.argsort(-ranking.score[entries], kind="stable")[:k]
            yield _record(
                name, histories.visits.places[ranking.label[entries][best]], ranking.score[entries][best]
            )


def filter_kind(text: str) -> FilterKind:
    for kind in FILTERS:
        if kind == text:
            return kind
    raise BadInput(f'filter is none, hard or soft, not "{text}"')


def _from_dense(
    logits: np.ndarray, histories: Histories, codec: PlacesCodec, k: int
) -> Iterator[PredictionRecord]:
    """A copying network can also copy the class of unseen places; it is named as such."""
    names = np.array(codec.tokens, object)
    for index, name in enumerate(histories.ids):
        shares = np.exp(logits[index] - logits[index].max())
        shares[0] = 0
        shares /= shares.sum()
        best = np.argsort(-shares[: len(names)], kind="stable")[:k]
        yield _record(name, names[best], shares[best])


def _record(name: Any, places: np.ndarray, shares: np.ndarray) -> PredictionRecord:
    candidates = tuple(
        Candidate(value=place, probability=float(share))
        for place, share in zip(places.tolist(), shares.tolist(), strict=True)
    )
    return PredictionRecord(id=name, candidates=candidates)


def forget(path: Path | str, user: str) -> NoteRecord:
    """Remove a user: name, counts, embedding, places that nobody else visited, and whatever could give them back.

    Only the best checkpoint stays, without the state of its optimiser, so the run cannot be resumed. What the
    weights that all users share have learned from this user stays learned: only training again removes that.
    """
    opened, codec = places_run(path)
    known: int | str = user
    if user not in codec.users and user.lstrip("-").isdigit() and int(user) in codec.users:
        known = int(user)
    gone = codec.forget(known)
    folder = opened.folder
    best = opened.step
    write_atomically(folder.codec, json.dumps(gone.codec.to_json(), ensure_ascii=False).encode())
    for step in folder.steps():
        if step != best:
            shutil.rmtree(folder.at(step))
    blanked = _blank(folder, best, opened, gone)
    for left in (folder.metrics, folder.report):
        left.unlink(missing_ok=True)
    return NoteRecord(
        step=best,
        text=f"user {user} is forgotten: 1 name, {len(gone.places)} places that nobody else visited, "
        f"{codec.stored_counts - gone.codec.stored_counts} stored counts and {blanked} numbers of tables "
        "are gone; the run cannot be resumed, and weights that all users share were not trained again",
    )


def _blank(folder: RunFolder, step: int, opened: Opened, gone: Forgotten) -> int:
    """Zero the rows of a user and of places in the tables of a checkpoint, and drop its optimiser's state."""
    count = 0
    loop, hashes = folder.loop(step)
    at = folder.at(step)
    stored = json.loads((at / "loop.json").read_text(encoding="utf-8"))
    for name in sorted(hashes):
        if not name.endswith(".safetensors"):
            continue
        tensors = {} if name == "loop.safetensors" else folder.tensors(step, name)
        if isinstance(opened.network, CopyModel):
            count += _blank_tables(tensors, gone)
        content = save(tensors)
        write_atomically(at / name, content)
        stored["sha256"][name] = hashlib.sha256(content).hexdigest()
    stored["sha256"]["loop"] = hash_of(stored["loop"])
    write_atomically(at / "loop.json", json.dumps(stored, indent=1).encode())
    return count


def _blank_tables(tensors: Mapping[str, Tensor], gone: Forgotten) -> int:
    """In place; returns how many numbers became zero."""
    places = torch.from_numpy(gone.places)
    rows = {"user.weight": torch.tensor([gone.user]), "embed.tables.3.weight": places}
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
