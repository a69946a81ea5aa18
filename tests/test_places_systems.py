"""Networks of places against torch's own layers; augmentation, losses, tables of systems, seeds, samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from typer.testing import CliRunner

from linnet import workbench
from linnet.cli.app import build
from linnet.domains.places.answers import VisitPlan
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.copying import CopyModel, Layout, attend
from linnet.domains.places.features import PAST, RECENT, Augmentation, Cut, Gathered, VisitRows
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.samples import PUBLISHED, divide, make_samples
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.settings import CopyConfig, ScorerConfig
from linnet.domains.places.visits import Visits
from linnet.errors import BadInput
from linnet.records import RunRecord, SeedsRecord
from linnet.workbench.train import made
from places_tables import random_visits


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch_of(seed: int, rows: int = 6, longest: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    ids = torch.randint(1, 7, (rows, int(lengths.max())), generator=generator)
    return ids * (torch.arange(ids.shape[1])[None] < lengths[:, None]), lengths


@given(st.integers(0, 10**6))
@settings(max_examples=20)
@pytest.mark.usefixtures("double")
def test_flat_rows_go_through_a_recurrent_layer_as_packed_ones(seed: int) -> None:
    ids, lengths = batch_of(seed)
    layout = Layout.of(ids, lengths)
    torch.manual_seed(seed)
    gru, x = nn.GRU(4, 3, batch_first=True), torch.randn(*ids.shape, 4)
    packed, order = layout.packed(layout.flat(x))
    ours = layout.padded(gru(packed)[0].data.index_select(0, order.argsort()))
    theirs = gru(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[0]
    torch.testing.assert_close(ours, pad_packed_sequence(theirs, batch_first=True, total_length=ids.shape[1])[0])


@given(st.integers(0, 10**6))
@settings(max_examples=20)
@pytest.mark.usefixtures("double")
def test_attention_over_flat_rows_is_torchs(seed: int) -> None:
    ids, lengths = batch_of(seed)
    layout = Layout.of(ids, lengths)
    torch.manual_seed(seed)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(*ids.shape, 8)
    read, weights = attend(layer, layout, x[:, :1], layout.flat(x), training=False)
    expected, shares = layer(x[:, :1], x, x, key_padding_mask=~layout.valid)
    torch.testing.assert_close(read, expected)
    torch.testing.assert_close(weights.mean(1), shares)


@pytest.mark.usefixtures("double")
def test_the_attentive_encoder_is_torchs() -> None:
    ids, lengths = batch_of(3)
    layout, shape = Layout.of(ids, lengths), CopyConfig(encoder="transformer", depth=2)
    model = CopyModel(shape.sized((2, 2, 2, 9), 3)).eval()
    x = torch.randn(*ids.shape, shape.width)
    ours = model.encoder(layout.flat(x), layout)
    theirs = model.encoder.layers(x, src_key_padding_mask=~layout.valid)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(ours, layout.flat(theirs))


def world(**kwargs: object) -> VisitRows:
    visits = random_visits(0)
    part = divide(visits, PUBLISHED)
    rows = VisitRows(visits, make_samples(visits, part, PUBLISHED), PlacesCodec.of(visits, part), suggestions=2)
    return replace(rows, **kwargs)  # type: ignore[arg-type]


def drawn(rows: VisitRows, seed: int = 0) -> Gathered:
    return rows.gather(np.arange(len(rows)), np.random.default_rng(seed))


def test_jitter_moves_visits_and_nothing_else() -> None:
    plain, moved = drawn(world()), drawn(world(augmentation=Augmentation(jitter=20.0)))
    np.testing.assert_array_equal(moved.leave - moved.start, plain.leave - plain.start)
    by = (moved.start - plain.start) / 60
    assert by.any() and abs(by.std() - 20) < 2 and abs(by.mean()) < 2
    for name in plain.columns.keys() - {"seen"}:
        np.testing.assert_array_equal(moved.columns[name], plain.columns[name])
    unasked = world(augmentation=Augmentation(jitter=20.0)).gather(np.arange(3))
    np.testing.assert_array_equal(unasked.start, world().gather(np.arange(3)).start)


@pytest.mark.parametrize("past", [True, False])
def test_subsequences_keep_the_latest_visits(past: bool) -> None:
    rows = world(past=past, suggestions=0)
    whole, cut = drawn(rows), drawn(replace(rows, augmentation=Augmentation(subsequences=1.0)))
    shorter = 0
    for row in range(len(rows)):
        one, two = (g.columns["ids"][g.starts[row] : g.starts[row + 1]].tolist() for g in (whole, cut))
        assert two and one[-1] == two[-1], "the last visit stays"
        assert past or two == one[len(one) - len(two) :]
        shorter += len(two) < len(one)
    assert shorter > len(rows) / 4
    same = drawn(replace(rows, augmentation=Augmentation(subsequences=0.0)))
    np.testing.assert_array_equal(same.columns["ids"], whole.columns["ids"])


def test_cuts_that_hide_nothing_still_forget_places() -> None:
    rows = world()
    visits, part = rows.visits, divide(rows.visits, PUBLISHED)
    rows = replace(rows, samples=rows.samples.of(0).with_full_past(visits))
    hiding, open_ = (drawn(replace(rows, cut=Cut.of(visits, part, 0.1, hides=hides))) for hides in (True, False))
    assert len(hiding.columns["ids"]) < len(open_.columns["ids"])
    np.testing.assert_array_equal(open_.columns["ids"], drawn(rows).columns["ids"])
    assert (open_.columns["known"] == 0).any() and set(open_.columns["kind"]) <= {PAST, RECENT, 2}


def small(**changes: object) -> tuple[CopyModel, VisitRows]:
    rows = world(past=False)
    shape = CopyConfig(width=8, place_width=4, cell_widths=(2, 2, 4), narrow=4, heads=2)
    torch.manual_seed(0)
    sized = shape.model_copy(update=changes).sized(rows.codec.sizes, len(rows.codec.users) + FIRST)
    model = CopyModel(sized)
    model.adopt(rows.codec)
    return model.eval(), rows


def test_losses_of_levels_smoothing_and_focus() -> None:
    plain, rows = small()
    batch = VisitPlan(rows, 16, 1).batch(0)
    named, target = plain(batch), batch["next.ids"]
    alone, _ = small(level_weights=(0.0, 0.0, 0.0, 1.0))
    torch.testing.assert_close(
        alone.loss(alone(batch), batch), F.nll_loss(named.places, target, reduction="sum"), rtol=1e-4, atol=1e-4
    )
    focal, _ = small(level_weights=(0.0, 0.0, 0.0, 1.0), focal=2.0)
    sure = named.places.gather(1, target[:, None]).squeeze(1).exp()
    expected = -((1 - sure) ** 2 * named.places.gather(1, target[:, None]).squeeze(1)).sum()
    torch.testing.assert_close(focal.loss(focal(batch), batch), expected, rtol=1e-4, atol=1e-4)
    smooth, _ = small(level_weights=(0.0, 0.0, 0.0, 1.0), smoothing=0.1)
    mixed = 0.9 * F.nll_loss(named.places, target, reduction="sum") - 0.1 * named.places.mean(1).sum()
    torch.testing.assert_close(smooth.loss(smooth(batch), batch), mixed, rtol=1e-4, atol=1e-4)
    alone.loss(alone(batch), batch).backward()
    heads = [p for name, p in alone.named_parameters() if name.startswith("generate.cells")]
    assert heads and all(p.grad is None or not p.grad.any() for p in heads), "a weight of zero teaches no head"


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    assert made("places-ensemble").model == ScorerConfig(profile=24, members=5)
    rows = world()
    torch.manual_seed(1)
    whole = Scorer(ScorerConfig(kernels=4, hidden=8, profile=4, members=3)).eval()
    for member in whole.members:
        nn.init.normal_(member.score.weight)
    batch = VisitPlan(rows, 8, 1).batch(0)
    mean = whole.predict(batch)
    members, found = list(whole.members), []
    for member in members:
        whole.members = nn.ModuleList([member])
        found.append(whole.predict(batch))
    torch.testing.assert_close(mean.logp.exp(), torch.stack([one.logp.exp() for one in found]).mean(0))
    unseen = torch.stack([one.unseen_class().exp() for one in found]).mean(0)
    torch.testing.assert_close(mean.unseen_class().exp(), unseen)


@pytest.fixture(scope="module")
def check_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("systems") / "check-ins.csv"
    write_check_ins(path, generate(Process(users=12, visits=60, own=6, venues=200)))
    return path


def test_several_seeds_and_the_table_of_systems(check_ins: Path, tmp_path: Path) -> None:
    asked = {"data": [check_ins], "steps": 2, "settings": ["eval_every=2", "kernels=4", "hidden=8", "threads=1"]}
    found = list(workbench.train_seeds("tiny-places", 2, out=tmp_path / "run", **asked))  # type: ignore[arg-type]
    *runs, over = found
    assert isinstance(over, SeedsRecord) and over.seeds == (1, 2) and len(runs) == 2
    for number, record in enumerate(runs):
        assert isinstance(record, RunRecord) and record.path == str(tmp_path / f"run-seed{number + 1}")
    first = next(score for score in over.scores if score.name == "acc@1")
    values = [next(s.value for s in record.scores if s.name == "acc@1") for record in runs]
    assert first.mean == pytest.approx(np.mean(values)) and (first.least, first.most) == (min(values), max(values))
    names = ["this run", "last place", "most frequent", "Markov-1", "Markov-2", "counter", "counter, full past"]
    assert [system.name for system in runs[0].systems] == names
    assert runs[0].systems[0].values["acc@1"] == values[0]
    assert "| counter, full past |" in (tmp_path / "run-seed1" / "report.md").read_text()
    with pytest.raises(BadInput, match="exists"):
        list(workbench.train_seeds("tiny-places", 2, out=tmp_path / "run", **asked))  # type: ignore[arg-type]
    said = workbench.evaluate(tmp_path / "run-seed1", data=[check_ins], split="test", settings=["ranker=1"])
    run, *others = said.systems
    assert run.lead is None and said.systems[-2].lead is not None
    assert [o.lead.measure for o in others if o.lead] == [*["acc@1"] * (len(names) - 1), "legacy.acc@1", "acc@1"]
    for other in others:
        assert other.lead is not None
        assert other.lead.value == pytest.approx(run.values[other.lead.measure] - other.values[other.lead.measure])
        assert other.lead.low <= other.lead.value <= other.lead.high and other.lead.p is not None
    assert [s.name for s in said.systems] == [*names, "boosted ranker, legacy", "boosted ranker, open"]
    assert set(said.systems[-2].values) == {"legacy.acc@1", "legacy.mrr", "strict.acc@1"}
    full = workbench.evaluate(
        tmp_path / "run-seed1", data=[check_ins], split="test", settings=["information=full"]
    )
    by_name = {system.name: system.values for system in full.systems}
    assert by_name["counter"] == by_name["counter, full past"]


def test_filters_are_chosen_when_scoring(check_ins: Path, tmp_path: Path) -> None:
    workbench.train("places-gru", out=tmp_path / "g", data=[check_ins], steps=1, settings=["filter=hard"])
    assert 'filter = "hard"' in (tmp_path / "g" / "run.toml").read_text()
    workbench.evaluate(tmp_path / "g", data=[check_ins], split="test", settings=["filter=none"])
    with pytest.raises(BadInput, match="filter is none, hard or soft"):
        workbench.evaluate(tmp_path / "g", data=[check_ins], settings=["filter=softly"])


def test_samples_are_written_and_read(check_ins: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl.gz"
    runner, asked = CliRunner(), ["data", "make", "samples", "--data", str(check_ins), "--out", str(out), "--json"]
    said = runner.invoke(build(), asked)
    assert said.exit_code == 0, said.output
    again = json.loads(runner.invoke(build(), ["data", "check", "places", str(out), "--json"]).stdout)
    assert again["counts"]["samples"] == json.loads(said.stdout)["rows"]
    assert runner.invoke(build(), asked).exit_code == 2


def test_a_batch_reads_its_own_rows_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is linear in visits: whatever is computed over the whole table is computed once."""
    rows, calls = world(), []
    clock = Visits.clock
    monkeypatch.setattr(Visits, "clock", lambda visits, **asked: calls.append(1) or clock(visits, **asked))
    rows.gather(np.arange(3))
    first = len(calls)
    for start in range(5):
        rows.gather(np.arange(start, start + 3))
    assert len(calls) == first
