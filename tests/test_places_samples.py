"""Splits and samples against the published rule written as loops; the published file form; leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.domains.places.data import check, default_recipe
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.places.sample_files import parts_of, read_samples, sample_lines
from linnet.domains.places.samples import (
    CHECK_INS,
    PUBLISHED,
    Recipe,
    divide,
    fingerprint,
    leaks,
    make_samples,
    parts_without_samples,
)
from linnet.domains.places.visits import DAY, Visits, legacy_ids
from linnet.errors import BadInput
from linnet.files import write_lines
from places_tables import random_visits


def published_by_loop(visits: Visits) -> list[tuple[int, list[int], int]]:
    """(target, history, part) exactly as the protocol is written down."""
    day = visits.day(local=False)
    found, seen = [], {int(user): set() for user in visits.user}  # type: ignore[var-annotated]
    for user in np.unique(visits.user):
        rows = [row for row in range(len(visits)) if visits.user[row] == user]
        since = {row: day[row] - day[rows[0]] for row in rows}
        last = max(since.values())
        parts: list[list[int]] = [[], [], []]
        for row in rows:
            parts[0 if since[row] < 0.6 * last else 1 if since[row] < 0.8 * last else 2].append(row)
        for number, inside in enumerate(parts):
            for row in inside:
                history = [other for other in inside if other < row and since[other] >= since[row] - 7]
                if since[row] - since[inside[0]] >= 7 and len(history) >= 3:
                    found.append((row, history, number))
                    seen[int(user)].add(number)
    return [sample for sample in found if len(seen[int(visits.user[sample[0]])]) == 3]


@given(st.integers(0, 10_000))
def test_the_published_protocol_is_its_loop(seed: int) -> None:
    visits = random_visits(seed)
    samples = make_samples(visits, divide(visits, PUBLISHED), PUBLISHED)
    ours = [
        (int(target), samples.rows[a:b].tolist(), int(part))
        for target, a, b, part in zip(
            samples.target, samples.starts[:-1], samples.starts[1:], samples.part, strict=True
        )
    ]
    assert ours == published_by_loop(visits)
    assert leaks(visits, samples, divide(visits, PUBLISHED)) == []


@given(st.integers(0, 10_000), st.sampled_from(["day", "time", "user"]), st.booleans(), st.booleans())
def test_no_recipe_leaks(seed: int, by: str, same_part: bool, dates: bool) -> None:
    """Times may be dates alone, so that many visits of a user have one moment."""
    visits = random_visits(seed, users=6)
    if dates:
        visits = replace(visits, start=visits.day() * DAY, end=visits.day() * DAY)
    recipe = Recipe(by=by, same_part=same_part, all_parts=False, skip_days=0, least=1)  # type: ignore[arg-type]
    part = divide(visits, recipe)
    samples = make_samples(visits, part, recipe)
    assert leaks(visits, samples, part) == []
    for index in range(len(samples)):
        rows = samples.rows[samples.starts[index] : samples.starts[index + 1]]
        assert (rows < samples.target[index]).all() and (np.diff(rows) > 0).all()
        if same_part:
            assert (part[rows] == samples.part[index]).all()
        past = np.arange(samples.past_from[index], samples.past_to[index])
        assert (part[past] == 0).all() and (visits.user[past] == visits.user[samples.target[index]]).all()
    full = samples.with_full_past(visits)
    assert (full.past_to == samples.target).all() and leaks(visits, full, part) == []


def test_shares_of_each_users_visits() -> None:
    visits = random_visits(1)
    part = divide(visits, CHECK_INS)
    for user in range(4):
        mine = part[visits.user == user]
        assert (np.diff(mine) >= 0).all()
        assert (mine == 0).sum() == int(0.8 * len(mine)) and (mine == 2).sum() >= int(0.1 * len(mine))


def test_a_split_by_user_depends_on_names_alone() -> None:
    visits = random_visits(2, users=10, visits=80)
    recipe = Recipe(by="user", fractions=(0.5, 0.2, 0.3))
    few = visits.rows(np.flatnonzero(visits.user >= 5))
    assert (divide(visits, recipe)[visits.user >= 5] == divide(few, recipe)).all()
    assert (divide(visits, recipe) != divide(visits, recipe.model_copy(update={"seed": 1}))).any()


def test_a_split_column_is_obeyed() -> None:
    visits = random_visits(3)
    part = np.random.default_rng(0).integers(-1, 3, len(visits)).astype(np.int8)
    recipe = Recipe(by="column", skip_days=0, least=1, all_parts=False)
    samples = make_samples(replace(visits, part=part), part, recipe)
    assert (part[samples.target] == samples.part).all()
    assert (part[samples.rows] == samples.part[samples.owner]).all()
    with pytest.raises(BadInput, match="no split column"):
        divide(visits, recipe)


def test_an_empty_part_is_refused() -> None:
    visits = random_visits(4)
    recipe = CHECK_INS.model_copy(update={"fractions": (1.0, 0.0, 0.0)})
    part = divide(visits, recipe)
    said = parts_without_samples(visits, part, make_samples(visits, part, recipe), recipe)[1]
    assert said.startswith(
        "the validation part has no samples (visits: train 210, validation 0, test 0): there are too"
    )
    with pytest.raises(BadInput, match="do not add up to 1"):
        divide(visits, recipe.model_copy(update={"fractions": (0.5, 0.1, 0.1)}))


def test_the_hash_names_visits_and_recipe() -> None:
    visits = random_visits(5)
    part = divide(visits, PUBLISHED)
    samples = make_samples(visits, part, PUBLISHED)
    same = fingerprint(visits, PUBLISHED, samples)
    assert same == fingerprint(random_visits(5), PUBLISHED, samples)
    other = PUBLISHED.model_copy(update={"days": 6})
    assert same != fingerprint(visits, other, make_samples(visits, part, other))
    assert same != fingerprint(replace(visits, start=visits.start + 60), PUBLISHED, samples)


def test_legacy_ids_are_ranks_among_train_places() -> None:
    visits = random_visits(6)
    part = divide(visits, PUBLISHED)
    seen = sorted(set(visits.places[visits.place[part == 0]].tolist()))
    expected = [seen.index(name) + 2 if name in seen else 1 for name in visits.places.tolist()]
    assert legacy_ids(visits, part).tolist() == expected


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz"])
def test_read_then_written_samples_are_equal(tmp_path: Path, name: str) -> None:
    visits = random_visits(7)
    part = divide(visits, PUBLISHED)
    samples = make_samples(visits, part, PUBLISHED)
    path = tmp_path / name
    write_lines(path, sample_lines(visits, samples, legacy_ids(visits, part)))
    again, read = read_samples([path])
    assert leaks(again, read) == []
    unknown = {"start_day", "legacy", "h_legacy"}  # counted from a first day, and over train places, of all visits
    legacy = np.ones(len(again.places), np.int32)
    for first, second in zip(
        sample_lines(visits, samples, legacy), sample_lines(again, read, legacy), strict=True
    ):
        one, two = json.loads(first), json.loads(second)
        assert {k: v for k, v in one.items() if k not in unknown} == {
            k: v for k, v in two.items() if k not in unknown
        }
    assert check([path]).rows["samples"] == len(samples)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h_place": None}, "line 1: h_place is missing"),
        ({"h_weekday": [1]}, "differ in length"),
        ({"split": "dev"}, "split is 'dev'; it is one of 'train', 'validation' or 'test'"),
        ({"h_day_diff": -1}, "h_day_diff.0 is -1; it has to be at least 0"),
        ({"start_day": "x"}, "s.jsonl line 1: start_day is 'x', not an integer"),
        ({"weekday": 7}, "s.jsonl line 1: weekday is 7; it has to be at most 6"),
        ({"place": None}, "s.jsonl line 1: place.* is None, not an integer"),
        ({"h_place": "gym"}, "s.jsonl line 1: h_place is 'gym', not a list"),
        ({"s2_l11": "35f05134"}, "s2_l11 is the token of an S2 cell of level 11, not '35f05134'"),
        ({"place": "gym"}, r"place is a text \(s.jsonl line 1\) and a number"),
    ],
)
def test_broken_sample_files_are_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    visits = random_visits(8)
    part = divide(visits, PUBLISHED)
    record = json.loads(
        next(sample_lines(visits, make_samples(visits, part, PUBLISHED), legacy_ids(visits, part)))
    )
    for key, value in change.items():
        record[key] = [-1] * len(record["h_place"]) if value == -1 else value
    if change.get("h_place", 0) is None:
        record.pop("h_place")
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(BadInput, match=said):
        read_samples([path])
    path.write_text("{nonsense\n")
    with pytest.raises(BadInput, match="line 1 is not JSON"):
        read_samples([path])


def test_a_sample_without_a_field_of_the_others_is_named(tmp_path: Path) -> None:
    visits = random_visits(8)
    part = divide(visits, PUBLISHED)
    lines = list(sample_lines(visits, make_samples(visits, part, PUBLISHED), legacy_ids(visits, part)))
    record = json.loads(lines[1])
    del record["h_s2_l11"]
    path = tmp_path / "s.jsonl"
    path.write_text(lines[0] + json.dumps(record) + "\n")
    with pytest.raises(BadInput, match="s.jsonl line 2 lacks h_s2_l11"):
        read_samples([path])


def test_samples_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    visits = random_visits(8)
    part = divide(visits, PUBLISHED)
    path = tmp_path / "s.jsonl"
    samples = make_samples(visits, part, PUBLISHED)
    write_lines(path, sample_lines(visits, samples, legacy_ids(visits, part)))
    with pytest.raises(BadInput, match=f"{len(samples)} of {2 * len(samples)} samples are there twice"):
        read_samples([path, path])
    record = check([path, path])
    assert record.refused and "was a file given twice" in record.problems[0]


def test_samples_beside_tables_are_named(tmp_path: Path) -> None:
    visits = random_visits(3)
    samples = make_samples(visits, divide(visits, PUBLISHED), PUBLISHED)
    write_lines(tmp_path / "a.jsonl", sample_lines(visits, samples, legacy_ids(visits, divide(visits, PUBLISHED))))
    (tmp_path / "b.csv").write_text("user,time,place\na,2024-01-01,x\n")
    (problem,) = check([tmp_path]).problems
    assert problem == "a.jsonl line 1 is a published sample, and what is beside it is not; give samples alone"


def test_leaks_are_found() -> None:
    visits = random_visits(9)
    part = divide(visits, PUBLISHED)
    samples = make_samples(visits, part, PUBLISHED)
    ahead = replace(samples, rows=samples.rows + 1)
    assert "histories that hold their own target" in leaks(visits, ahead, part)[0]
    assert any(
        "beyond their target" in leak for leak in leaks(visits, replace(samples, past_to=samples.target + 1))
    )
    mixed = np.random.default_rng(0).permutation(part)
    assert "the model learns from the future" in leaks(visits, samples, mixed)[-1]


def test_check_reports_a_table(tmp_path: Path) -> None:
    write_check_ins(tmp_path / "c.csv", generate(Process(users=6, visits=40)))
    record = check([tmp_path / "c.csv"])
    assert record.rows["visits"] == 240 and record.rows["users"] == 6
    assert record.counts["samples"] == {"train": 6 * 31, "validation": 6 * 4, "test": 6 * 4}
    assert (
        record.problems == () and record.notes[0] == "columns (check-ins): user=user_id, time=time, place=venue_id"
    )
    lonely = tmp_path / "one.csv"
    lonely.write_text("user,time,place\n1,2024-03-01 08:00,a\n")
    assert "empty split: the train part has no samples" in "\n".join(check([lonely]).problems)


def test_the_generated_process_knows_its_ceiling() -> None:
    made = generate(Process(users=200, visits=120, seed=3))
    hits = made.likeliest == made.venue
    assert abs(hits.mean() - made.best.mean()) < 4 * (made.best * (1 - made.best)).mean() ** 0.5 / len(hits) ** 0.5


def test_stays_and_check_ins_have_their_own_default() -> None:
    visits = random_visits(10)
    assert default_recipe(visits) == PUBLISHED
    assert default_recipe(replace(visits, end=visits.start)) == CHECK_INS
    assert default_recipe(replace(visits, part=np.zeros(len(visits), np.int8))).by == "column"


@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.sampled_from([None, 7]))
def test_samples_of_a_file_have_the_parts_that_they_were_made_with(
    tmp_path_factory: pytest.TempPathFactory, seed: int, least: int, days: int | None
) -> None:
    """Also visits that are no targets, of which later parts know some as history."""
    visits = random_visits(seed)
    recipe = CHECK_INS.model_copy(update={"least": least, "days": days})
    part = divide(visits, recipe)
    samples = make_samples(visits, part, recipe)
    if not len(samples):
        return
    path = tmp_path_factory.getbasetemp() / "samples.jsonl"
    write_lines(path, sample_lines(visits, samples, legacy_ids(visits, part)))
    again, found = read_samples([path])
    theirs = parts_of(len(again), found.target, found.part, found.rows, found.lengths)
    mentioned = np.union1d(samples.rows, samples.target)
    honest = part[mentioned]
    assert len(theirs) == len(honest) and (theirs >= honest).all()
    assert (theirs[np.isin(mentioned, samples.target)] == honest[np.isin(mentioned, samples.target)]).all()
    assert not leaks(again, found, theirs)
