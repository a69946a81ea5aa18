"""Worked steps are true; files are read, made and checked without letting problems cross between splits."""

from __future__ import annotations

import errno
import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.arithmetic.checking import check
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.arithmetic.drawing import draw_distinct
from linnet.domains.arithmetic.files import read_rows
from linnet.domains.arithmetic.making import make
from linnet.domains.arithmetic.problems import Space, canonical, guess_task, solve
from linnet.domains.arithmetic.steps import equations, false_steps, spaced, written_steps
from linnet.errors import BadInput, RunFailed
from linnet.files import write_texts
from test_arithmetic_codec import value_by_python

TASKS = ("add", "subtract", "multiply", "expression", "base", "polynomial")


def a_space(task: str, signs: bool = False) -> Space:
    return Space(task, (1, 4), (2, 2) if task in ("base", "polynomial") else (2, 4), signs, (0, 2))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TASKS), st.booleans(), st.integers(0, 10**6))
def test_every_step_is_true_and_every_equation_holds_in_python(task, signs, seed):
    for question in draw_distinct(a_space(task, signs), seed, 2, None):
        short, long = equations(task, question), written_steps(task, question)
        assert false_steps(task, question, short) == [] == false_steps(task, question, long)
        assert long[-1] == f"Result: {solve(task, question)}"
        for line in short:
            left, right = line.split("=")
            assert value_by_python(left) == value_by_python(right)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=4))
def test_the_carry_that_is_shown_is_the_one_that_comes_in(operands):
    steps = written_steps("add", "+".join(map(str, operands)))
    digits, carry = "", 0
    for place, step in enumerate(s for s in steps if s.startswith("Position")):
        shown = re.fullmatch(r"Position \d+: (.*) \+ carry\((\d+)\) = (\d+) -> digit=(\d), new_carry=(\d+)", step)
        assert shown is not None
        terms = list(map(int, shown[1].split(" + ")))
        assert terms == [n // 10**place % 10 for n in operands]
        assert int(shown[2]) == carry == sum(n % 10**place for n in operands) // 10**place
        assert int(shown[3]) == sum(terms) + carry
        carry, digits = int(shown[5]), shown[4] + digits
    assert int(f"{carry}{digits}") == sum(operands)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_changed_digit_in_a_step_is_found(seed, data):
    question = draw_distinct(Space("add", (2, 4)), seed, 1, None)[0]
    steps = equations("add", question)
    chosen = data.draw(st.integers(0, len(steps) - 1))
    left, right = steps[chosen].split("=")
    steps[chosen] = f"{left}={int(right) + data.draw(st.integers(1, 5))}"
    assert [place for place, _ in false_steps("add", question, steps)] == [chosen]


def test_a_new_carry_shown_as_the_incoming_one_is_false():
    step = "Position 2: 2 + 0 + carry(0) = 3 -> digit=3, new_carry=0"
    first = "Position 1: 9 + 7 + carry(0) = 16 -> digit=6, new_carry=1"
    found = false_steps("add", "29+7", [first, step])
    assert len(found) == 1 and found[0][0] == 1 and "passed on 1" in found[0][1]
    assert false_steps("add", "29+7", [first, "Position 2: 2 + 0 + carry(1) = 3 -> digit=3, new_carry=0"]) == []


@pytest.mark.parametrize(
    "step, reason",
    [
        ("Result: 37", "36"),
        ("Final carry: 1", "it is 0"),
        ("Position 1: 9 + 7 + carry(0) = 17 -> digit=7, new_carry=1", "sides"),
        ("Position 1: 9 + 7 + carry(0) = 16 -> digit=5, new_carry=1", "digit"),
        ("Step 1: nonsense", "equation"),
        ("9+7=x", "x"),
    ],
)
def test_false_steps_say_why(step, reason):
    assert reason in false_steps("add", "29+7", [step])[0][1]


def test_divisions_in_words_are_checked_too():
    steps = ["Convert 13 (decimal) to binary", "Divide 13 by 2: quotient=6, remainder=1"]
    assert false_steps("base", "13 to binary", steps) == []
    assert false_steps("base", "13 to binary", ["Divide 13 by 2: quotient=6, remainder=0"])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(TASKS), st.booleans(), st.integers(0, 10**6))
def test_spaces_around_operators_change_nothing(task, signs, seed):
    question = draw_distinct(a_space(task, signs), seed, 1, None)[0]
    if task != "base":
        assert spaced(question).replace(" ", "") == question
    codec = ArithmeticCodec(task, "all", None, 4, signs)
    assert codec.decode(codec.encode(spaced(question)).ids) == f"{question}="


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def row(question, gold, **more):
    return json.dumps({"input": question, "gold": gold, "task": "add", **more})


def test_lines_and_json_rows_and_folders_are_read(tmp_path):
    write(tmp_path / "a" / "train.txt", ["1+2=3", "", " 12 + 30 = 42 "])
    write(tmp_path / "a" / "dev.jsonl.gz", [row("3200 + 6335", "9535", split="dev", steps=["Result: 9535"])])
    write(tmp_path / "a" / "deeper" / "test.jsonl", [json.dumps({"expr": "4+5", "result": 9, "depth": [0, 0, 0]})])
    write(tmp_path / "a" / "notes.csv", ["not read"])
    rows = read_rows([tmp_path / "a"], "add")
    assert {(r.question, r.answer, r.split) for r in rows} == {
        ("1+2", "3", "train"),
        ("12+30", "42", "train"),
        ("3200+6335", "9535", "validation"),
        ("4+5", "9", "test"),
    }
    assert [r.split for r in read_rows([tmp_path / "a" / "train.txt"], "add")] == [None, None]


@pytest.mark.parametrize(
    "line, hint",
    [
        ("1+1", "no answer"),
        ("1*1=1", "data.task=multiply"),
        ("01+1=2", r"leading zeros\)$"),
        ("nothing", r"leading zeros\)$"),
        ('{"input": "1+1"}', "input and gold"),
        ('{"input": ', "not JSON"),
        ("1+" + "1" * 5000 + "=2", "5004 characters"),
        ('{"input": "1+1", "gold": ' + "1" * 5000 + "}", "integer of thousands of digits"),
        (row("1+1", "2", split="maybe"), "not a split"),
        (row("1+1", "2", steps="one"), "list of texts"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, line, hint):
    path = write(tmp_path / "sums.txt", ["1+2=3", line])
    with pytest.raises(BadInput, match=rf"sums\.txt:2: .*{hint}"):
        ArithmeticData(paths=(path,)).load(0)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"1+1=2\n" * 99)[:-9])
    write(tmp_path / "blank.txt", [""])
    for name, hint in (
        ("absent.txt", "no file"),
        ("empty", "holds no"),
        ("binary.txt", "is no UTF-8"),
        ("cut.txt.gz", "is no whole gzip file"),
        ("blank.txt", "no rows"),
    ):
        with pytest.raises(BadInput, match=hint):
            ArithmeticData(paths=(tmp_path / name,)).load(0)


def all_sums(digits=30):
    return [f"{a}+{b}={a + b}" for a in range(digits) for b in range(digits)]


def test_own_files_without_splits_give_a_tenth_to_validation_and_share_nothing(tmp_path):
    material = ArithmeticData(digits=2, paths=(write(tmp_path / "sums.txt", all_sums()),)).load(0)
    train = {material.codec.decode(material.train.rows.row(i)) for i in range(len(material.train.rows))}
    held_out = {q.prompt + q.answer for q in material.validation.questions}
    assert len(train) + len(held_out) == 900 and abs(len(held_out) - 90) < 40
    problems = [{canonical("add", text.partition("=")[0]) for text in part} for part in (train, held_out)]
    assert not problems[0] & problems[1]
    assert material.notes == ()


def test_a_test_split_is_never_trained_on_and_shared_problems_are_dropped(tmp_path):
    rows = [row("1 + 2", "3", split="train"), row("4 + 4", "8", split="train"), row("2 + 1", "3", split="test")]
    rows += [row("5 + 5", "10", split="dev"), row("5 + 5", "11", split="train"), row("7+1", "9", split="train")]
    material = ArithmeticData(paths=(write(tmp_path / "rows.jsonl", rows),)).load(0)
    sequences = material.train.rows
    assert {material.codec.decode(sequences.row(i)) for i in range(len(sequences))} == {"4+4=8", "7+1=9"}
    assert [q.prompt for q in material.validation.questions] == ["5+5="]
    assert "2 training rows ask" in material.notes[0]
    assert (
        "1 training rows have a wrong answer" in material.notes[1] and "rows.jsonl:6: 7+1=9" in material.notes[1]
    )


def test_few_rows_still_part_and_too_few_say_so(tmp_path):
    few = write(tmp_path / "few.txt", ["1+2=3", "3+3=6", "2+1=3"])
    material = ArithmeticData(paths=(few,)).load(0)
    assert len(material.train.rows) + len(material.validation.questions) == 3 and material.notes == ()
    with pytest.raises(BadInput, match="two different problems"):
        ArithmeticData(paths=(write(tmp_path / "one.txt", ["1+2=3", "2+1=3"]),)).load(0)
    with pytest.raises(BadInput, match="no training rows"):
        ArithmeticData(paths=(write(tmp_path / "t.jsonl", [row("1+2", "3", split="test")]),)).load(0)


def test_the_codec_grows_with_the_numbers_of_the_files(tmp_path):
    path = write(tmp_path / "long.txt", [*all_sums(12), "12345+1+-2=12344"])
    codec = ArithmeticData(paths=(path,)).load(0).codec
    assert isinstance(codec, ArithmeticCodec)
    assert (codec.width, codec.operands, codec.signs) == (5, 3, True)


def test_reading_for_a_score_takes_all_rows_or_one_split(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row("1 + 2", "3", split="train"), row("2 + 2", "4", split="test")])
    data = ArithmeticData()
    codec = data.codec()
    assert [q.prompt for q in data.read(codec, [path]).questions] == ["1+2=", "2+2="]
    part = data.read(codec, [path], "test")
    assert [(q.prompt, q.answer, dict(q.groups)) for q in part.questions] == [
        ("2+2=", "4", {"digits": 1, "carry": 0})
    ]
    assert len(part.rows) == 1 and part.rows.characters == 1
    with pytest.raises(BadInput, match="no rows of split 'dev'; it has test, train"):
        data.read(codec, [path], "dev")
    with pytest.raises(BadInput, match=r"long\.txt:1: .*4 digits"):
        data.read(codec, [write(tmp_path / "long.txt", ["1000+1=1001"])])


@pytest.mark.parametrize("task", TASKS)
def test_made_files_are_clean_and_can_be_trained_on(tmp_path, task):
    space = Space(task, (1, 3), (2, 2), False, (0, 2))
    record = make(tmp_path, space, 200, 1, True)
    assert record.problems == () and set(record.rows) == {"train.jsonl", "dev.jsonl", "test.jsonl"}
    checked = check([tmp_path])
    assert checked.problems == () and sum(checked.rows.values()) == 200
    assert checked.counts["splits"] == {"train": 160, "validation": 20, "test": 20}
    assert checked.counts["tasks"] == {task: 200}
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    fields = ["input", "gold", "task", "seed", "ground_truth_rule", "steps", "split", "instance_id"]
    assert list(first) == fields and first["seed"] == 1
    material = ArithmeticData(task=task, paths=(tmp_path,)).load(0)
    assert any("scratchpad=true" in note for note in material.notes)
    assert not ArithmeticData(task=task, paths=(tmp_path,), scratchpad=True).load(0).notes
    assert len(material.train.rows) == 160 and len(material.validation.questions) == 20
    with pytest.raises(BadInput, match="--force"):
        make(tmp_path, space, 200, 2)
    before = (tmp_path / "dev.jsonl").read_bytes()
    make(tmp_path, space, 200, 1, True, force=True)
    assert (tmp_path / "dev.jsonl").read_bytes() == before
    assert "steps" not in json.loads(next(_lines_without_steps(tmp_path / "plain", space)))


def _lines_without_steps(directory, space):
    make(directory, space, 10, 0)
    yield from (directory / "test.jsonl").read_text().splitlines()


def test_a_small_space_makes_fewer_rows_and_says_so(tmp_path):
    record = make(tmp_path, Space("add", (1, 1)), 1000)
    assert any("the space holds no more" in problem for problem in record.problems)
    assert 90 <= sum(record.rows.values()) <= 100
    with pytest.raises(BadInput, match="at least 10"):
        make(tmp_path / "b", Space("add", (1, 1)), 9)


def test_unwritable_places_leave_nothing_behind(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    with pytest.raises(BadInput, match="cannot write"):
        make(blocked / "sub", Space("add", (1, 2)), 20)
    assert blocked.read_text() == "kept"

    def full_disk():
        yield "first\n"
        raise OSError(errno.ENOSPC, "No space left on device")

    old = write(tmp_path / "d" / "train.jsonl", ["old"])
    with pytest.raises(RunFailed, match="No space left"):
        write_texts({old: full_disk(), tmp_path / "d" / "dev.jsonl": ["x\n"]})
    assert old.read_text() == "old\n" and [p.name for p in old.parent.iterdir()] == ["train.jsonl"]


def test_checking_counts_every_kind_of_problem_and_shows_the_first(tmp_path):
    train = write(tmp_path / "train.txt", ["1+2=3", "1+2=3", "9+1=11", "nonsense", "2+2=4", "7+8=15"])
    steps = ["Position 1: 3 + 9 + carry(1) = 12 -> digit=2, new_carry=1"]
    test = write(tmp_path / "test.jsonl", [row("2 + 1", "3"), row("2 + 2", "4"), row("3 + 9", "12", steps=steps)])
    record = check([train, test])
    assert record.rows == {str(train): 6, str(test): 3}
    assert record.counts["problems"] == {
        "unreadable rows": 1,
        "wrong answers": 1,
        "rows with false steps": 1,
        "duplicates": 1,
        "test rows that occur in train": 1,
        "test rows that occur in train, in any order": 2,
        "validation rows that occur in train": 0,
        "validation rows that occur in train, in any order": 0,
    }
    assert record.counts["lengths"] == {"5": 5, "6": 3} and record.counts["carry"] == {"0": 5, "1": 3}
    assert record.counts["answers"] == {"3": 3, "4": 2, "11": 1, "15": 1, "12": 1, "others": 0}
    text = "\n".join(record.problems)
    assert "train.txt:3: 9+1=11 (right: 10)" in text and "train.txt:2: 1+2 is also row 1" in text
    assert len(record.problems) == 6
    with pytest.raises(BadInput, match="no rows"):
        check([write(tmp_path / "blank.txt", [""])])


def test_rows_may_name_their_task(tmp_path):
    named = [{"input": q, "gold": g, "task": t} for q, g, t in (("1+2", "3", "expression"), ("2*3", "6", "mul"))]
    path = write(tmp_path / "named.jsonl", map(json.dumps, [*named, {"input": "1+2", "gold": "3"}]))
    assert [r.task for r in read_rows([path], None)] == ["expression", "multiply", "add"]


def test_tasks_are_guessed_from_their_questions():
    found = {q: guess_task(q) for q in ("1+2", "1-2", "2*3", "1+2*3", "13tohex", "(1+2)(3+4)")}
    assert list(found.values()) == ["add", "subtract", "multiply", "expression", "base", "polynomial"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_any_line_is_a_row_or_bad_input(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    try:
        rows = read_rows([path], None)
    except BadInput:
        return
    assert all(r.answer for r in rows)
