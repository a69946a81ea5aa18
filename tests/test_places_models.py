"""Networks of places: sums against their loops, published sizes, padding, rows, training runs, followers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import copying_loops as loops
from linnet import workbench
from linnet.domains.places import copying, recipes
from linnet.domains.places.answers import Answers, VisitPlan, answers, dense_ranks, legacy_ranking, pad
from linnet.domains.places.cleaning import Reading
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.copying import CopyModel
from linnet.domains.places.features import ALWAYS, PAST, RECENT, SEEN, SUGGESTION, Cut, VisitRows
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.sample_files import read_histories
from linnet.domains.places.samples import PUBLISHED, divide, make_samples
from linnet.domains.places.scorer import Entries, Scorer, rhythm
from linnet.domains.places.settings import CopyConfig, ScorerConfig
from linnet.domains.places.use import Follower
from linnet.errors import BadInput
from linnet.model.contract import Network
from places_tables import random_visits
from small_models import taps_without_effect

PLACES = 11


@pytest.fixture
def double() -> Iterator[None]:
    """Oracles are compared in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def histories(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, valid, lengths, attention) of a few padded rows."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (5,), generator=generator)
    width = int(lengths.max())
    valid = torch.arange(width)[None] < lengths[:, None]
    ids = torch.randint(1, PLACES, (5, width), generator=generator) * valid
    return ids, valid, lengths, torch.rand(5, width, generator=generator)


@given(st.integers(0, 10**6))
@pytest.mark.usefixtures("double")
def test_sums_are_their_loops(seed: int) -> None:
    ids, valid, lengths, attention = histories(seed)
    decay = torch.rand(())
    pairs = [
        (copying.copy_distribution(attention, ids, valid, PLACES), loops.copy_loop(attention, ids, valid, PLACES)),
        (copying.frequency(ids, valid, PLACES), loops.frequency_loop(ids, valid, PLACES)),
        (copying.recency(ids, valid, lengths, decay, PLACES),
         loops.recency_loop(ids, valid, lengths, decay, PLACES)),
        (copying.frequency(ids, valid, PLACES), loops.one_hot_frequency(ids, valid, PLACES)),
        (copying.recency(ids, valid, lengths, decay, PLACES),
         loops.one_hot_recency(ids, valid, lengths, decay, PLACES)),
    ]  # fmt: skip
    for fast, slow in pairs:
        torch.testing.assert_close(fast, slow, atol=1e-7, rtol=0)
        assert (fast[:, 0] == 0).all(), "padding never gets anything"


@given(st.integers(0, 10**6), st.booleans())
@pytest.mark.usefixtures("double")
def test_filters_are_their_loops(seed: int, empty: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, cell_logits = torch.randn(4, PLACES, generator=generator), torch.randn(4, 6, generator=generator)
    tree = torch.randint(0, 4 if empty else 6, (PLACES,), generator=generator)
    chosen = cell_logits.argmax(1)
    hard = copying.hard_filter(logits, chosen, tree)
    torch.testing.assert_close(hard, loops.hard_filter_loop(logits, chosen, tree), atol=1e-7, rtol=0)
    assert (hard > copying.NEVER).any(1).all(), "a cell without places forbids nothing"
    soft = copying.soft_filter(logits, cell_logits, tree, 0.3)
    torch.testing.assert_close(soft, loops.soft_filter_loop(logits, cell_logits, tree, 0.3), atol=1e-7, rtol=0)
    torch.testing.assert_close(copying.soft_filter(logits, cell_logits, tree, 0.0), logits)


@pytest.mark.usefixtures("double")
def test_the_decay_is_learned_alike() -> None:
    ids, valid, lengths, _ = histories(1)
    gradients = []
    for function in (copying.recency, loops.recency_loop):
        decay = torch.tensor(0.8, requires_grad=True)
        (function(ids, valid, lengths, decay, PLACES) * torch.arange(PLACES)).sum().backward()
        gradients.append(decay.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_published_sizes() -> None:
    for run, count in ((recipes.places_gru(), 620_808), (recipes.places_transformer(), 641_772)):
        assert isinstance(run.model, CopyConfig)
        assert sum(p.numel() for p in CopyModel(run.model).parameters()) == count


def world(seed: int = 0, **kwargs: object) -> VisitRows:
    visits = random_visits(seed)
    part = divide(visits, PUBLISHED)
    samples = make_samples(visits, part, PUBLISHED)
    rows = VisitRows(visits, samples, PlacesCodec.of(visits, part), suggestions=2)
    return replace(rows, **kwargs)  # type: ignore[arg-type]


def named(network: Network, rows: VisitRows, size: int = 256) -> Answers:
    return answers(network, rows, size, nullcontext)


def small_copy(rows: VisitRows, **changes: object) -> CopyModel:
    shape = CopyConfig(width=8, place_width=4, cell_widths=(2, 2, 4), narrow=4, heads=2)
    shape = shape.model_copy(update=changes).sized(rows.codec.sizes, len(rows.codec.users) + FIRST)
    torch.manual_seed(0)
    model = CopyModel(shape)
    model.adopt(rows.codec)
    return model.eval()


@pytest.mark.parametrize("encoder", ["gru", "transformer"])
@pytest.mark.usefixtures("double")
def test_copying_networks_do_not_see_padding_or_the_batch(encoder: str) -> None:
    rows = world(past=False)
    model = small_copy(rows, encoder=encoder)
    together, alone = (named(model, rows, size).dense for size in (len(rows), 1))
    assert together is not None and alone is not None
    np.testing.assert_allclose(together, alone, atol=1e-12)
    np.testing.assert_allclose(np.exp(together).sum(1), 1, atol=1e-5)


@pytest.mark.usefixtures("double")
def test_copying_networks_with_loops_are_the_same() -> None:
    rows = world(past=False)
    fast = small_copy(rows)
    for sums in (loops.LOOPS, loops.ONE_HOT):
        slow = CopyModel(fast.config)
        slow.sums = sums
        slow.load_state_dict(fast.state_dict())
        batch = pad(rows.gather(np.arange(len(rows) - 6, len(rows))))
        torch.testing.assert_close(slow.eval()(batch).places, fast(batch).places, atol=1e-7, rtol=0)


@pytest.mark.usefixtures("double")
def test_levels_of_the_tree_are_sums_over_places() -> None:
    rows = world(past=False)
    model = small_copy(rows, levels="tree")
    named = model(pad(rows.gather(np.arange(len(rows)))))
    for cells, table in zip(named.cells, model.tree, strict=True):
        expected = torch.zeros_like(cells)
        for place, cell in enumerate(table.tolist()):
            expected[:, cell] += named.places[:, place].exp()
        torch.testing.assert_close(cells.exp(), expected, atol=1e-6, rtol=0)


def test_known_places_cannot_be_named_by_the_class_of_unseen_ones() -> None:
    scores = np.log(np.array([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]]))
    found = dense_ranks(scores, np.array([1, 2]))
    assert found["legacy"].rank.tolist() == [1, 2]
    assert found["open"].rank.tolist() == [np.inf, 1] and found["strict"].rank.tolist() == [np.inf, 1]


def test_rows_hold_what_may_be_known() -> None:
    rows = world()
    visits, samples = rows.visits, rows.samples
    gathered = rows.gather(np.arange(len(rows)))
    for index in range(len(rows)):
        entries = slice(gathered.starts[index], gathered.starts[index + 1])
        field = {name: values[entries] for name, values in gathered.columns.items()}
        field |= {"start": gathered.start[entries], "leave": gathered.leave[entries]}
        field |= {"follows": field["seen"][:, SEEN.index("follows")]}
        real = field["kind"] != SUGGESTION
        history = samples.rows[samples.starts[index] : samples.starts[index + 1]].tolist()
        past = range(samples.past_from[index], samples.past_to[index])
        known = sorted({*history, *past})
        assert field["place"][real].tolist() == visits.place[known].tolist()
        assert field["start"][real].tolist() == visits.clock()[known].tolist()
        assert field["follows"][real].tolist() == [int(row - 1 in known and row - 1 >= 0) for row in known]
        assert set(field["kind"][real]) <= {PAST, RECENT}
        assert not set(field["place"][~real]) & set(field["place"][real]), "suggestions are new to the user"
        assert (field["visited"][~real] > 0).all(), "and known to somebody else"
        assert (field["start"][real] <= field["leave"][-1]).all(), "nothing is later than the departure"
    assert gathered.rows["next.place"].tolist() == visits.place[samples.target].tolist()


def test_counts_of_others_never_hold_the_own_rows() -> None:
    rows = world()
    visits, part = rows.visits, divide(rows.visits, PUBLISHED)
    gathered = rows.gather(np.arange(len(rows)))
    owner = np.repeat(np.arange(len(rows)), np.diff(gathered.starts))
    for entry in range(0, len(owner), 37):
        sample = owner[entry]
        me, here = visits.user[rows.samples.target[sample]], visits.place[rows.samples.last[sample]]
        there = gathered.columns["place"][entry]
        moves = stays = 0
        for row in range(len(visits)):
            if part[row] == 0 and visits.user[row] != me:
                stays += visits.place[row] == there
                if row + 1 < len(visits) and part[row + 1] == 0 and visits.user[row + 1] == visits.user[row]:
                    moves += visits.place[row] == here and visits.place[row + 1] == there
        assert (gathered.columns["moved"][entry], gathered.columns["visited"][entry]) == (moves, stays)


def test_cut_rows_hide_the_middle_and_unlearn_places() -> None:
    rows = world()
    part = divide(rows.visits, PUBLISHED)
    train = rows.samples.of(0).with_full_past(rows.visits)
    rows = replace(rows, samples=train, suggestions=0)
    whole = rows.gather(np.arange(len(rows)))
    cut = replace(rows, cut=Cut.of(rows.visits, part, 0.3))
    first, again, other = (cut.gather(np.arange(len(rows)), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.columns["ids"].tolist() == again.columns["ids"].tolist() and len(first.columns["ids"]) != len(
        other.columns["ids"]
    )
    assert len(first.columns["ids"]) < len(whole.columns["ids"])
    assert np.diff(first.starts).min() >= train.lengths.min(), "the history is never hidden"
    assert (first.columns["known"] <= whole.columns["known"].max()).all() and first.columns["known"].min() == 0
    assert cut.gather(np.arange(len(rows))).columns["ids"].tolist() == whole.columns["ids"].tolist(), (
        "nothing is cut without a draw"
    )
    assert (cut.cut.first_seen < ALWAYS).any()  # type: ignore[union-attr]


def small_scorer(members: int = 1) -> Scorer:
    torch.manual_seed(1)
    model = Scorer(ScorerConfig(kernels=6, hidden=8, profile=4, members=members)).eval()
    for member in model.members:
        torch.nn.init.normal_(member.score.weight)  # type: ignore[union-attr, arg-type]
    return model


@pytest.mark.parametrize("members", [1, 3])
def test_the_scorer_does_not_see_the_batch(members: int) -> None:
    rows, model = world(), small_scorer(members)
    together, alone = named(model, rows, len(rows)), named(model, rows, 1)
    assert together.ranking is not None and alone.ranking is not None
    assert together.ranking.label.tolist() == alone.ranking.label.tolist()
    np.testing.assert_allclose(together.ranking.score, alone.ranking.score, atol=1e-5)
    total = np.bincount(together.ranking.owner, together.ranking.score, len(rows)) + together.elsewhere
    np.testing.assert_allclose(total, 1, atol=1e-5)
    legacy = legacy_ranking(together.ranking, together.fresh, rows.codec.place_ids(rows.visits.places))
    assert (np.bincount(legacy.owner, legacy.score, len(rows)) < 1 + 1e-5).all()


def test_a_profile_reads_when_visits_begin_and_how_long_until_the_next() -> None:
    rows = world(suggestions=2)
    gathered = rows.gather(np.arange(12))
    found = rhythm(Entries.of(pad(gathered))).numpy()
    kinds, seen = gathered.columns["kind"], dict(zip(SEEN, gathered.columns["seen"].T, strict=True))
    for entry in np.flatnonzero(kinds != SUGGESTION):
        began = int(gathered.start[entry])
        turn, day = began % 86400 / 86400 * 2 * np.pi, (began // 86400 + 3) % 7
        np.testing.assert_allclose(found[entry, :2], [np.sin(turn), np.cos(turn)], atol=1e-3)
        assert found[entry, 6:9].tolist() == [day >= 5, day == 4, day == 6]
        followed = entry + 1 < len(kinds) and seen["follows"][entry + 1] == 1
        until = max(0, int(gathered.start[entry + 1] - gathered.leave[entry])) / 60 if followed else 0
        np.testing.assert_allclose(found[entry, 10] * 5, np.log1p(until), atol=2e-2)
        assert found[entry, 12] == followed


def test_the_scorer_forgets_names() -> None:
    """Another numbering of the places gives the same probabilities: new places need no training."""
    rows, model = world(suggestions=0), small_scorer()
    turned = np.random.default_rng(0).permutation(len(rows.visits.places))
    visits = rows.visits
    renamed = replace(
        visits, place=turned[visits.place].astype(np.int32), places=visits.places[np.argsort(turned)],
        cells={level: ids[np.argsort(turned)] for level, ids in visits.cells.items()},
    )  # fmt: skip
    other = replace(rows, visits=renamed)
    one, two = named(model, rows).ranking, named(model, other).ranking
    by_name = [
        {(o, s): p for o, s, p in zip(r.owner.tolist(), v.places[r.label].tolist(), r.score.tolist(), strict=True)}
        for r, v in ((one, visits), (two, renamed))
    ]
    assert by_name[0].keys() == by_name[1].keys()
    np.testing.assert_allclose(list(by_name[0].values()), [by_name[1][key] for key in by_name[0]], atol=1e-6)


def test_ensembles_average_probabilities() -> None:
    rows, model = world(), small_scorer(3)
    batch = pad(rows.gather(np.arange(5)))
    both = model.predict(batch)
    single = model(batch).members
    torch.testing.assert_close(both.logp.exp(), torch.stack([one.logp.exp() for one in single]).mean(0))
    fresh = torch.stack([one.elsewhere.exp() * torch.sigmoid(one.unseen) for one in single]).mean(0)
    torch.testing.assert_close(both.elsewhere.exp() * torch.sigmoid(both.unseen), fresh, atol=1e-5, rtol=1e-3)


def test_plans_are_functions_of_the_step() -> None:
    rows = world()
    plan = VisitPlan(rows, 16, seed=3)
    assert torch.equal(plan.batch(5)["ids"], VisitPlan(rows, 16, seed=3).batch(5)["ids"])
    seen = sum(len(plan.batch(step)["ids"]) for step in range(plan.steps_per_epoch))
    assert seen == len(rows)


@pytest.mark.parametrize("suggestions", [0, 2])
def test_a_follower_says_what_the_rows_say(suggestions: int) -> None:
    rows, model = world(suggestions=suggestions), small_scorer()
    visits = rows.visits
    full = rows.samples.of(2).with_full_past(visits)
    rows = replace(rows, samples=full)
    said = named(model, rows).ranking
    follower = Follower(model, rows.codec, suggestions=suggestions)
    wanted = {int(target): index for index, target in enumerate(full.target)}
    user = int(np.bincount(visits.user[full.target]).argmax())
    name = visits.users[user].item()
    compared = 0
    for row in np.flatnonzero(visits.user == user):
        if int(row) in wanted:
            entries = slice(*said.starts[wanted[int(row)] :][:2])
            best = np.argsort(-said.score[entries], kind="stable")[:3]
            candidates = follower.next(name, k=3)
            np.testing.assert_allclose([c.probability for c in candidates], said.score[entries][best], atol=1e-4)
            assert [c.value for c in candidates] == visits.places[said.label[entries][best]].tolist()
            compared += 1
        offset = int(visits.offset[row])
        place = visits.places[visits.place[row]].item()
        follower.visit(name, place, int(visits.start[row]) + offset, int(visits.end[row]) + offset)
    assert compared > 3


def test_one_history_has_equal_features_everywhere(tmp_path: Path) -> None:
    """In the rows of training, in a file to predict from, and for a user who is followed."""
    visits = random_visits(0, places=30)
    codec = PlacesCodec.of(visits, np.zeros(len(visits), np.int8))
    samples = make_samples(visits, divide(visits, PUBLISHED), PUBLISHED).with_full_past(visits)
    rows = VisitRows(visits, samples, codec, suggestions=2)
    compared = 0
    for sample in range(0, len(rows), 9):
        user, target = visits.user[samples.target[sample]], int(samples.target[sample])
        earlier, name = slice(visits.bounds[user], target), visits.users[user].item()
        places, starts, ends = visits.places[visits.place[earlier]], visits.start[earlier], visits.end[earlier]
        past = list(zip(places.tolist(), starts.tolist(), ends.tolist(), strict=True))
        line = {"user": name, "visits": [{"place": p, "start": start, "end": end} for p, start, end in past]}
        (tmp_path / "h.jsonl").write_text(json.dumps(line) + "\n")
        read = read_histories(tmp_path / "h.jsonl", codec, Reading(local="+08:00"))
        follower = Follower(small_scorer(), codec, suggestions=2)
        for place, start, end in past:
            follower.visit(name, place, start + 8 * 3600, end + 8 * 3600)
        trained = rows.gather(np.array([sample]))
        for other in (
            VisitRows(read.visits, read.samples, codec, suggestions=2),
            follower.rows(name),
        ):
            found = other.gather(np.zeros(1, np.int64))
            for column in trained.columns.keys() - {"place"}:  # numbers of the table; `ids` are those of the run
                np.testing.assert_array_equal(found.columns[column], trained.columns[column], column)
            assert found.rows["user"] == trained.rows["user"] and found.rows["now"] == trained.rows["now"]
            compared += (found.columns["kind"] == SUGGESTION).any()
    assert compared > 3


def test_a_follower_takes_new_users_and_places() -> None:
    rows, model = world(), small_scorer()
    follower = Follower(model, rows.codec)
    with pytest.raises(BadInput, match="nothing is known about user 'me'"):
        follower.next("me")
    for step in range(100):
        follower.visit("me", ["a brand new café", 4][step % 2], step * 7200, step * 7200 + 3600)
    values = [candidate.value for candidate in follower.next("me")]
    assert set(values) == {"a brand new café", 4}
    with pytest.raises(BadInput, match="begins before"):
        follower.visit("me", 4, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("users", [["a"]]), ("cells", {}), ("pairs", [[9999, 2, 2, 1]]), ("pairs", [[2, 2]]), ("stays", "none")],
)
def test_a_broken_codec_is_bad_input(key: str, value: object) -> None:
    stored = json.loads(json.dumps(world().codec.to_json()))
    PlacesCodec.from_json(stored)
    with pytest.raises(BadInput, match=key):
        PlacesCodec.from_json({**stored, key: value})


def test_forgetting_a_user_in_the_codec() -> None:
    codec = world().codec
    again = PlacesCodec.from_json(json.loads(json.dumps(codec.to_json())))
    assert again.to_json() == codec.to_json()
    less = codec.forget(codec.users[0]).codec
    assert codec.users[0] not in less.users
    others = PlacesCodec.of(random_visits(0).rows(np.arange(0)), np.empty(0, np.int8))
    assert others.stored_counts == 0
    with pytest.raises(BadInput, match="is not in this run"):
        codec.forget("nobody")


@pytest.fixture(scope="module")
def check_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("places") / "check-ins.csv"
    write_check_ins(path, generate(Process(users=12, visits=60, own=6, venues=200)))
    return path


@pytest.mark.parametrize("recipe", ["tiny-places", "places-gru", "places-transformer"])
def test_runs_train_and_score(check_ins: Path, tmp_path: Path, recipe: str) -> None:
    record = workbench.train(recipe, out=tmp_path / "run", data=[check_ins], steps=4, settings=["eval_every=2"])
    scores = {score.name: score for score in record.scores}
    assert {"acc@1", "legacy.acc@1", "strict.acc@1", "mrr", "f1", "ece"} <= set(scores)
    assert record.parameters <= 700_000 and scores["acc@1"].baseline.name
    again = workbench.evaluate(tmp_path / "run", data=[check_ins], split="test")
    assert again.scores[0].n > 0
    other = workbench.evaluate(tmp_path / "run", data=[check_ins], split="test", settings=["batch=7"])
    for one, two in zip(again.scores, other.scores, strict=True):
        assert (one.name, one.n) == (two.name, two.n)
        assert one.value == (pytest.approx(two.value, abs=1e-4) if "ece" in one.name else two.value), one.name


def test_too_many_parameters_are_refused(check_ins: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="most_parameters allows 1,000"):
        workbench.train("tiny-places", out=tmp_path / "r", data=[check_ins], settings=["most_parameters=1000"])
    with pytest.raises(BadInput, match="places need --data"):
        workbench.train("tiny-places", out=tmp_path / "r")


@pytest.mark.parametrize("kind", ["gru", "transformer", "scorer"])
def test_every_edit_of_a_network_of_places_changes_its_answer(kind: str) -> None:
    rows = world()
    network: Network = small_scorer(2) if kind == "scorer" else small_copy(rows, encoder=kind)
    read = pad(rows.gather(np.arange(len(rows) - 6, len(rows))))
    assert taps_without_effect(network, read) == []
