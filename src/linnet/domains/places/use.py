"""What a run on places is used for: predictions for histories of a file, people who are followed, and misses.

A follower keeps the visits of each user, so that a prediction costs one row. New users and new places need
nothing: a new place can be predicted from its first visit on.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from linnet import files
from linnet.domains.contract import Predictions
from linnet.domains.places.answers import answers, first_visits, pad, warmed
from linnet.domains.places.codec import FIRST, Forgotten, Moves, Name, PlacesCodec
from linnet.domains.places.data import PlacesData, visit_rows
from linnet.domains.places.features import Lookup, Suggestions, VisitRows, departures
from linnet.domains.places.sample_files import kind_of, read_histories, read_id
from linnet.domains.places.samples import Samples
from linnet.domains.places.scorer import Scored, Scorer
from linnet.domains.places.scores import Ranking
from linnet.domains.places.sources import LATEST
from linnet.domains.places.visits import DAY, MINUTE, WEEKDAYS, Visits, mark_of, marked
from linnet.errors import BadInput, library
from linnet.files import new_file, refuse_existing, write_atomically
from linnet.model.contract import Network, evaluating, refuse_nan
from linnet.records import AnalysisRecord, Candidate, MissRecord, NoteRecord, PredictionRecord
from linnet.training.checkpoint import Checkpoint, RunFolder
from linnet.training.settings import to_toml
from linnet.untrusted import shown, whole_number
from linnet.workbench.open import Opened, load, located, options_of


def places_run(path: Path | str, **options: Any) -> tuple[Opened, PlacesData, PlacesCodec]:
    """An opened run on places; any other run is refused. `options` are those of `load`."""
    opened = load(path, **options)
    data, codec = opened.run.data, opened.codec
    if not isinstance(data, PlacesData) or not isinstance(codec, PlacesCodec):
        raise BadInput(f"{path} is a run on {data.domain}, and only runs on places name next places")
    return opened, data, codec


def predict(
    path: Path | str, file: Path, *, k: int = 10, settings: tuple[str, ...] = (), **options: Any
) -> Predictions:  # fmt: skip
    """The k most probable next places of every history, in the order of the file.

    `settings` may hold batch, the temperature of the probabilities, and the filter of copying networks; `options`
    are those of `load`.
    """
    opened, data, codec = places_run(path, **options)
    filters = {"filter": ""} if data.reads == "history" else {}
    chosen = options_of(list(settings), batch=256, temperature=1.0, **filters)
    if not chosen["temperature"] > 0:
        raise BadInput(f"--set temperature={chosen['temperature']:g}: temperature must be above 0")
    histories = read_histories(file, codec, data.reading)
    began = time.perf_counter()
    rows = data.rows(histories.visits, histories.samples, codec)
    named = answers(opened.network, rows, chosen["batch"], opened.region, chosen.get("filter", ""))
    heat = chosen["temperature"]
    if named.ranking is not None:
        ranking = named.ranking if heat == 1 else warmed(named.spread, named.ranking, heat)
        found = _from_ranking(ranking, histories.visits.places, k)
    else:
        assert named.dense is not None
        found = _from_dense(named.dense / heat, codec, k)
    records = tuple(
        PredictionRecord(id=name, candidates=_candidates(places.tolist(), shares.tolist()))
        for name, (places, shares) in zip(histories.ids, found, strict=True)
    )
    return Predictions(records, histories.notes, time.perf_counter() - began, chosen["batch"])


def _from_ranking(ranking: Ranking, names: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for entries in map(slice, ranking.starts[:-1], ranking.starts[1:]):
        best = np.argsort(-ranking.score[entries], kind="stable")[:k]
        yield names[ranking.label[entries][best]], ranking.score[entries][best]


def _from_dense(logits: np.ndarray, codec: PlacesCodec, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A copying network can also copy the class of unseen places; it is named as such."""
    names = np.array(codec.tokens, object)
    for row in logits:
        shares = np.exp(row - row.max())
        shares[0] = shares[len(names) :] = 0  # padding, and room in the tables that no place has taken
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[: min(k, int((shares > 0).sum()))]  # forgotten places have none
        yield names[best], shares[best]


def _candidates(places: Iterable[Name], shares: Iterable[float]) -> tuple[Candidate, ...]:
    pairs = zip(places, shares, strict=True)
    return tuple(Candidate(value=place, probability=float(share)) for place, share in pairs)


def kernels(
    path: Path | str, file: Path, *, user: str | None = None, k: int = 10, member: int = 0,
    checkpoint: int | None = None,
) -> AnalysisRecord:  # fmt: skip
    """What share of each kernel the scorer gives the k most probable next places of one history of a file.

    A kernel weighs each visit of the history; its share of a place is what it gives that place's visits, of all.
    """
    opened, data, codec = places_run(path, checkpoint=checkpoint)
    if not isinstance(opened.network, Scorer):
        raise BadInput("only runs of the scorer have kernels")
    if member not in range(opened.network.config.members):
        raise BadInput(f"--member is {member}; the last member of this run is {opened.network.config.members - 1}")
    histories = read_histories(file, codec, data.reading)
    names = [str(name) for name in histories.ids]
    if user is not None and user not in names:
        raise BadInput(f"{file} has no history {user!r}; it has {len(names):,}, and the first is {names[0]!r}")
    chosen = 0 if user is None else names.index(user)
    batch = pad(data.rows(histories.visits, histories.samples, codec).gather(np.array([chosen])))
    tap = f"members.{member}.hook_shares"
    with evaluating(opened.network), opened.region():
        output = opened.network(batch.to(opened.network.device), keep=(tap,))
    scored = Scored.mean(output.members)
    refuse_nan(opened.network, scored.logp.float().cpu().numpy())
    best = scored.logp.argsort(descending=True, stable=True)[:k].cpu()
    shares = output.kept[tap].float().cpu()[best]
    places = histories.visits.places[scored.options.place.cpu().numpy()[best]]
    chances = scored.logp.exp().cpu()[best].tolist()
    labels = tuple(f"{place} {chance:.1%}" for place, chance in zip(places.tolist(), chances, strict=True))
    return AnalysisRecord(
        kind="kernels",
        title=f"shares of the kernels in the next places of {names[chosen]}",
        axes=("candidate", "kernel"),
        labels={"candidate": labels, "kernel": tuple(map(str, range(shares.shape[1])))},
        values=shares.tolist(),
        unit="share of a kernel",
        facts={"candidates": len(scored.options.place), "elsewhere": float(scored.elsewhere.exp())},
    )


# --- people who are followed ------------------------------------------------------------------------


class Follower:
    """`visit` takes what happened, `next` predicts what comes: the same as `linnet predict` for the same visits.

    `suggestions` places of each kind where the user has never been are weighed, as the run was trained to do, and
    the `longest` latest visits count: `Follower.of` takes both from the run.
    """

    def __init__(self, network: Network, codec: PlacesCodec, *, suggestions: int = 0, longest: int = 4096) -> None:
        if not isinstance(network, Scorer):
            raise BadInput(
                "a follower needs the scorer (the recipes places and places-ensemble), and this run has another "
                "network: use linnet predict"
            )
        self.network, self.codec, self.longest, self.suggestions = network, codec, longest, suggestions
        self._place_kind, self._user_kind = kind_of(codec.places), kind_of(codec.users)
        self._users = {name: number + FIRST for number, name in enumerate(codec.users) if name is not None}
        self._numbers = {name: number for number, name in enumerate(codec.places) if name is not None}
        self._names: list[Name] = list(codec.places)
        self._ids = codec.place_ids(np.array([*codec.places, None], object)[:-1])
        self._trees = [codec.tree(level) for level in codec.levels]
        self._suggested = Suggestions.of(codec, suggestions, self._ids)
        self._followed: dict[int | str, list[tuple[int, int, int]]] = {}  # (place, start, end) of each visit

    @classmethod
    def of(cls, opened: Opened) -> Follower:
        """A follower with what the run knows and weighs."""
        data, codec = opened.run.data, opened.codec
        if not isinstance(data, PlacesData) or not isinstance(codec, PlacesCodec):
            raise BadInput(f"this is a run on {data.domain}, and only runs on places name next places")
        return cls(opened.network, codec, suggestions=data.suggestions, longest=data.longest)

    def visit(self, user: int | str, place: int | str, start: float, end: float | None = None) -> None:
        """A stay from `start` to `end` (seconds on the user's local clock); a check-in has no end."""
        user, place = read_id("the user", user, self._user_kind), read_id("the place", place, self._place_kind)
        start = _seconds("start", start)
        end = start if end is None else _seconds("end", end)
        if end < start:
            raise BadInput(f"the visit of {user!r} ends before it begins")
        visits = self._followed.setdefault(user, [])
        if visits and start < visits[-1][1]:
            raise BadInput(f"the visit of {user!r} begins before the visit before it")
        if place not in self._numbers:
            self._numbers[place] = len(self._names)
            self._names.append(place)
            self._ids = np.append(self._ids, 1)
        visits.append((self._numbers[place], start, end))

    def next(self, user: int | str, k: int = 10) -> tuple[Candidate, ...]:
        """The k most probable next places: where the user has been, and what is suggested."""
        if k < 1:
            raise BadInput(f"k is {k}; it must be at least 1")
        user = read_id("the user", user, self._user_kind)
        if user not in self._followed:
            raise BadInput(f"nothing is known about user {user!r} yet; give a visit first")
        with evaluating(self.network):
            batch = pad(self.rows(user).gather(np.zeros(1, np.int64)))
            scored = self.network.predict(batch.to(self.network.device))
            top = torch.topk(scored.logp, min(k, len(scored.logp)))
        names = [self._names[number] for number in scored.options.place[top.indices].tolist()]
        return _candidates(names, top.values.exp().tolist())

    def rows(self, user: int | str) -> VisitRows:
        """What the network reads: one row, made as those of training and of `predict` are."""
        latest = self._followed[user][-self.longest :]
        here, _, left = latest[-1]
        place, start, end = np.array([*latest, (here, left, left)]).T  # a stand-in for the visit to come
        nothing, row = np.zeros(len(place), np.int32), np.arange(len(place), dtype=np.int32)
        names = np.empty(len(self._ids), np.int8)  # names themselves are not read
        visits = Visits(nothing, place.astype(np.int32), start, end, nothing, row, np.array([user], object), names)
        zero, starts = np.zeros(1, np.int64), np.array([0, len(latest)])
        samples = Samples(zero + len(latest), starts, row[:-1], zero, zero, np.full(1, 2, np.int8))
        cells = tuple(tree[self._ids] for tree in self._trees)
        lookup = Lookup(self._ids, np.array([self._users.get(user, 1)]), cells, self._suggested)
        return VisitRows(visits, samples, self.codec, True, self.longest, self.suggestions, known_ids=lookup)


def _seconds(what: str, given: float) -> int:
    if isinstance(given, bool) or not isinstance(given, Real) or not abs(given) < LATEST:
        raise BadInput(f"{what} is {shown(given)}; seconds since 1970 on the user's clock are needed")
    return int(given // 1)


# --- misses -----------------------------------------------------------------------------------------


def misses(
    path: Path | str, data: Sequence[Path], *, split: str | None = None, n: int = 20, map_file: Path | None = None,
    checkpoint: int | None = None, remark: Callable[[str], None] | None = None,
) -> list[MissRecord]:  # fmt: skip
    """The n samples whose true place surprised the run most, those with the surest wrong answer first.

    `remark` gets how the files were read, and what was repaired in them.
    """
    opened, domain, codec = places_run(path, checkpoint=checkpoint)
    if not isinstance(opened.network, Scorer):
        raise BadInput("misses are listed for runs of the scorer, which names every place by itself")
    part, note = domain.read(codec, located(data), split), remark or (lambda _: None)
    for text in part.notes:
        note(text)
    rows = visit_rows(part)
    if map_file is not None:
        _drawable(rows, map_file)
    named = answers(opened.network, rows, 256, opened.region)
    assert named.ranking is not None
    sure, missed = named.spread.best, named.tables["open"].rank > 1
    order = np.argsort(np.where(missed, -sure, np.inf), kind="stable")
    found = [int(index) for index in order[:n] if missed[index]]
    if map_file is not None:
        draw_map(rows, found, map_file)
        note(f"{map_file} loads its maps and scripts from servers of others when it is opened")
    return [record(rows, named.ranking, index) for index in found]


def record(rows: VisitRows, ranking: Ranking, index: int) -> MissRecord:
    visits, samples, name = rows.visits, rows.samples, rows.visits.places.tolist()
    entries = slice(ranking.starts[index], ranking.starts[index + 1])
    labels, scores = ranking.label[entries], ranking.score[entries]
    truth, last = int(visits.place[samples.target[index]]), int(samples.last[index])
    own = scores[labels == truth]
    probability = float(own[0]) if len(own) else 0.0
    return MissRecord(
        user=visits.users[visits.user[last]].item(),
        left=departure_text(visits, int(last)),
        here=name[visits.place[last]],
        went=name[truth],
        probability=probability,
        rank=float((scores > probability).sum() + 1) if len(own) else None,
        expected=name[int(labels[scores.argmax()])],
        expected_probability=float(scores.max()),
        first_visit=bool(first_visits(rows)[index]),
    )


def departure_text(visits: Visits, row: int) -> str:
    """Date and time on the local clock; where the source numbers days, the day since the user's first."""
    moment = int(departures(visits)[row])
    if visits.dated:
        return str(np.datetime64(moment, "s")).replace("T", " ")
    first = int(visits.day()[visits.bounds[visits.user[row]]])
    day, minute = moment // DAY, moment % DAY // MINUTE
    return f"day {day - first} ({WEEKDAYS[(day + 3) % 7]}) {minute // 60:02}:{minute % 60:02}"


def _drawable(rows: VisitRows, file: Path) -> None:
    """Refuse a map that cannot be drawn, before anything is predicted."""
    library("folium", "the map needs folium", "map")
    if rows.visits.lonlat is None:
        raise BadInput("these visits have no coordinates to draw; give lon and lat columns")
    refuse_existing(file, force=False, option="--map")


def draw_map(rows: VisitRows, found: Sequence[int], file: Path) -> None:
    """An HTML page: the user's places as circles, each miss as a line from where he was to where he went."""
    import folium

    visits, chosen = rows.visits, np.array(found, int)
    assert visits.lonlat is not None
    here, went = (visits.place[rows_of[chosen]] for rows_of in (rows.samples.last, rows.samples.target))
    shown = np.unique(np.concatenate([here, went]))
    places = visits.lonlat[shown]
    page = folium.Map(location=np.nanmean(places[:, ::-1], 0).tolist() if len(shown) else [0, 0], zoom_start=11)
    for place, (lon, lat) in zip(shown.tolist(), places.tolist(), strict=True):
        if np.isfinite(lon):
            folium.CircleMarker([lat, lon], radius=5, tooltip=str(visits.places[place])).add_to(page)
    for index, source, goal in zip(found, here.tolist(), went.tolist(), strict=True):
        line = visits.lonlat[[source, goal]][:, ::-1]
        if np.isfinite(line).all():
            user = visits.users[visits.user[rows.samples.target[index]]]
            folium.PolyLine(line.tolist(), tooltip=f"user {user}", color="crimson").add_to(page)
    with new_file(file) as hidden:
        page.save(str(hidden))


# --- what a run tells about people -----------------------------------------------------------------------


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
    else:
        less, cells = anonymous.outside_cells(codec.levels[1:], few)
        ids = np.empty(0, np.int64)
    _blank(folder, step, Forgotten(less, None, ids, cells))
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
    for level, ids in gone.cells.items():
        table = gone.codec.levels.index(level)
        names = (f"embed.tables.{table}.weight", *_head(f"cells.{table}"))
        rows |= dict.fromkeys(names, torch.from_numpy(ids))
    rows |= {name: places for name in _head("places")}
    count = 0
    for name, values in tensors.items():
        if name in rows:
            count += values[rows[name]].numel()
            values[rows[name]] = 0
        elif name in ("count_in.weight", "recent_in.weight"):
            count += values[:, places].numel()
            values[:, places] = 0
    return count


def _head(name: str) -> list[str]:
    """The last layer of a head is a layer of its own, or the fourth of a small network."""
    return [f"generate.{name}{inner}.{kind}" for inner in ("", ".3") for kind in ("weight", "bias")]
