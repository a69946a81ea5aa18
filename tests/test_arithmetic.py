"""Arithmetic data: parts that never share a problem, rows that agree on every path, spans, baselines."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.columns import frame_sums, sum_answers, sum_texts
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.arithmetic.drawing import draw_distinct, draw_training_sums
from linnet.domains.arithmetic.problems import (
    Space,
    canonical,
    guess_task,
    longest_carry,
    operands_of,
    part_of,
    solve,
)
from linnet.domains.arithmetic.rows import example, frame_texts
from linnet.domains.contract import Question
from linnet.errors import BadInput
from linnet.rows import Rows

TASKS = ("add", "subtract", "multiply", "expression", "base", "polynomial")


def questions_in(material_part, codec) -> list[str]:
    sequences = material_part.rows
    return [codec.decode(sequences.row(i)).partition("=")[0] for i in range(len(sequences))]


def same_rows(left: Rows, right: Rows) -> bool:
    sizes = ((rows.row_characters.tolist(), rows.row_bytes.tolist()) for rows in (left, right))
    return (
        next(sizes) == next(sizes)
        and left.fingerprint() == right.fingerprint()
        and left.ids.dtype == right.ids.dtype
    )


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(["add", "subtract"]),
    reverse=st.sampled_from(["none", "answer", "all"]),
    padded=st.booleans(),
    signs=st.booleans(),
    digits=st.sampled_from([1, 3, 10, 17, 18, 25]),
    operands=st.sampled_from([(2, 2), (2, 4), (3, 3)]),
    supervise=st.sampled_from(["all", "answer"]),
    seed=st.integers(0, 5),
)
def test_all_ways_to_frame_sums_give_the_same_bytes(
    task, reverse, padded, signs, digits, operands, supervise, seed
):
    space = Space(task, (1, digits), operands, signs)
    width = digits if padded else None
    codec = ArithmeticCodec(task, reverse, width, operands[1], signs)
    sums = draw_training_sums(space, seed, 40, True)
    questions = sum_texts(task, sums.operands, sums.counts)
    answers = [str(n) for n in sum_answers(task, sums.operands, sums.counts).tolist()]
    assert answers == [solve(task, question) for question in questions]
    pairs = list(zip(questions, answers, strict=True))
    oracle = Rows.frame(codec, [example(codec, *pair, supervise) for pair in pairs])
    assert same_rows(frame_texts(codec, pairs, supervise), oracle)
    assert same_rows(frame_sums(codec, sums.operands, sums.counts, supervise), oracle)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("supervise", ["all", "answer", "steps"])
def test_framed_texts_equal_framed_examples_with_a_scratchpad(task, supervise):
    data = ArithmeticData(task=task, digits=2, scratchpad=True, supervise=supervise, instances=100)
    codec = data.codec()
    pairs = [(q, solve(task, q)) for q in draw_distinct(data.space, 1, 60, "train")]
    oracle = Rows.frame(codec, [example(codec, *pair, supervise) for pair in pairs])
    assert same_rows(frame_texts(codec, pairs, supervise), oracle)


def scored_text(codec: ArithmeticCodec, question: str, answer: str, supervise: str) -> str:
    row = Rows.frame(codec, [example(codec, question, answer, supervise)])
    return "".join(codec.tokens[i] for i, asked in zip(row.row(0), row.scored, strict=True) if asked)


def test_the_first_answer_token_and_the_end_token_are_scored_and_nothing_before():
    codec = ArithmeticCodec("add", "all", 3)
    assert scored_text(codec, "123+456", "579", "answer") == "9750<end>"
    assert scored_text(codec, "123+456", "579", "all") == "321+654=9750<end>"
    plain = ArithmeticCodec("add", "none")
    assert scored_text(plain, "123+456", "579", "answer") == "579<end>"
    steps = ArithmeticCodec("add", "none", scratchpad=True)
    assert scored_text(steps, "28+7", "35", "answer") == "35<end>"
    assert scored_text(steps, "28+7", "35", "steps") == "8+7+0=15;2+0+1=3>"
    assert scored_text(steps, "28+7", "35", "all") == "28+7=8+7+0=15;2+0+1=3>35<end>"


def test_characters_are_those_that_a_person_reads():
    padded = ArithmeticCodec("add", "all", 5)
    assert example(padded, "1+2", "3", "answer").characters == 1
    assert example(padded, "1+2", "3", "all").characters == len("1+2=3")
    steps = ArithmeticCodec("add", "none", scratchpad=True)
    assert example(steps, "28+7", "35", "steps").utf8_bytes == len("8+7+0=15;2+0+1=3>")


@pytest.mark.parametrize("task", TASKS)
def test_parts_never_share_a_problem(task):
    data = ArithmeticData(task=task, digits=2, instances=400)
    material = data.load(3)
    canonicals = {
        "train": {canonical(task, q) for q in questions_in(material.train, material.codec)},
        "validation": {canonical(task, q) for q in questions_in(material.validation, material.codec)},
        "test": {canonical(task, q.prompt.rstrip("=")) for q in data.test_questions(200, 3)},
    }
    for part, found in canonicals.items():
        assert found and {part_of(task, q) for q in found} == {part}
    assert len(material.train.rows) == 400


def test_the_hash_is_the_same_on_every_machine():
    assert part_of("add", "999+1") == part_of("add", "1+999")
    point = int.from_bytes(hashlib.blake2b(b"1+999", digest_size=8).digest(), "big") / 2**64
    assert part_of("add", "999+1") == ("train" if point < 0.8 else "validation" if point < 0.9 else "test")
    fixed = {"12+34": "train", "0+0": "train", "7+8": "validation", "500+501": "train"}
    assert {q: part_of("add", q) for q in fixed} == fixed


def test_shares_are_eight_one_one():
    counts = Counter(part_of("subtract", f"{a}-{b}") for a in range(100) for b in range(100))
    assert abs(counts["train"] - 8000) < 200 and abs(counts["test"] - 1000) < 150


@pytest.mark.parametrize("task", TASKS)
def test_one_digit_spaces_have_all_parts(task):
    data = ArithmeticData(task=task, digits=1, instances=100)
    material = data.load(0)
    questions = data.test_questions(10_000, 0)
    assert len(material.train.rows) == 100 and material.validation.questions and questions
    assert len({q.prompt for q in questions}) == len(questions)


def test_a_space_without_problems_of_a_part_says_so():
    nine_problems = Space("expression", (1, 1), (1, 1), False, (0, 0))
    with pytest.raises(BadInput, match="the validation part holds no problem .* allow more digits"):
        draw_distinct(nine_problems, 0, 5, "validation")


def test_test_questions_are_even_over_pairs_distinct_and_repeatable():
    data = ArithmeticData()
    questions = data.test_questions(3000, 0)
    assert questions == data.test_questions(3000, 0) != data.test_questions(3000, 1)
    assert len({q.prompt for q in questions}) == 3000
    operands = np.array([operands_of("add", q.prompt.rstrip("=")) for q in questions])
    assert abs(operands.mean() - 499.5) < 15 and operands.max() > 990 and (operands < 100).mean() < 0.13
    assert {q.groups["digits"] for q in questions} >= {2, 3}
    assert {q.groups["carry"] for q in questions} == {0, 1, 2, 3}


def test_a_balanced_training_part_has_long_carries_and_short_numbers():
    data = ArithmeticData(digits=10, instances=4000)
    material = data.load(0)
    questions = questions_in(material.train, material.codec)
    carries = Counter(longest_carry(operands_of("add", q)) for q in questions)
    assert min(carries[length] for length in range(8)) > 40 and carries[10] > 5
    lengths = Counter(len(str(max(operands_of("add", q)))) for q in questions)
    assert min(lengths[length] for length in range(3, 11)) > 10


@pytest.mark.parametrize("task", ["add", "subtract"])
def test_columns_that_would_pass_a_carry_on_are_also_drawn_without_one(task: str):
    """Runs of at least six columns that sum to 9 (are equal): most of them are reached by a carry, not all."""
    material = ArithmeticData(task=task, digits=10, padded=False, uncarried=True, instances=16_000).load(0)
    reached = []
    for question in questions_in(material.train, material.codec):
        first, second = operands_of(task, question)
        carry = run = entered = 0
        for column in range(10):
            a, b = first // 10**column % 10, second // 10**column % 10
            passing = a + b == 9 if task == "add" else a == b
            entered = (carry if run == 0 else entered) if passing else 0
            run = run + 1 if passing and a + b > 0 else 0
            carry = int(a + b + carry >= 10 if task == "add" else a - b - carry < 0)
            if run == 6:
                reached.append(entered)
    assert len(reached) > 300 and 0.75 < np.mean(reached) < 0.95


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=4))
def test_longest_carry_against_column_sums(operands):
    run = best = 0
    for place in range(1, 15):
        run = run + 1 if sum(n % 10**place for n in operands) >= 10**place else 0
        best = max(best, run)
    assert longest_carry(operands) == best


def test_baselines_are_the_better_of_common_answer_and_copied_operand():
    data = ArithmeticData()
    questions = [Question(f"{a}+0=", str(a)) for a in range(5)] + [Question("1+3=", "4")]
    baseline = data.baseline(questions)
    assert baseline.name == "copy of operand 1" and baseline.value == pytest.approx(5 / 6)
    baseline = data.baseline([Question("1+3=", "4"), Question("2+2=", "4"), Question("0+1=", "1")])
    assert baseline.name == "most common answer (4)" and baseline.value == pytest.approx(2 / 3)
    assert data.baseline([]).value == 0


def test_right_wants_the_whole_answer():
    data = ArithmeticData()
    question = Question("1+3=", "4")
    assert data.right(question, "4")
    assert not any(data.right(question, wrong) for wrong in ("", "44", "04", "?4", "4="))


@pytest.mark.parametrize("changed", [{"balanced": False}, {"task": "multiply"}])
def test_columns_without_a_carry_need_balanced_sums(changed: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="balanced sums and differences"):
        ArithmeticData(uncarried=True, **changed)


def test_out_of_distribution_is_longer_or_deeper():
    longer = ArithmeticData(width=5).out_of_distribution(50, 0)
    assert {q.groups["digits"] for q in longer} == {4, 5}
    with pytest.raises(BadInput, match="data.width=4"):
        ArithmeticData().out_of_distribution(50, 0)
    deeper = ArithmeticData(task="expression", digits=2, operands=(2, 4)).out_of_distribution(50, 0)
    assert {q.groups["depth"] for q in deeper} == {3} and len({q.prompt for q in deeper}) == 50


def test_expressions_have_every_depth_about_equally_often():
    data = ArithmeticData(task="expression", digits=2, operands=(2, 4), padded=False, instances=100)
    questions = data.test_questions(900, 0)
    depths = Counter(q.groups["depth"] for q in questions)
    assert set(depths) == {0, 1, 2} and min(depths.values()) > 240
    assert all(guess_task(q.prompt.rstrip("=")) in TASKS for q in questions)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"digits": (3, 2)}, "data.digits"),
        ({"operands": 1}, "data.operands"),
        ({"width": 2}, "data.width=2"),
        ({"supervise": "steps"}, "scratchpad"),
        ({"instances": 0}, "data.instances"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong, hint):
    with pytest.raises(BadInput, match=hint):
        ArithmeticData(**wrong)


def test_settings_survive_json_and_stay_few():
    data = ArithmeticData(task="expression", digits=2, operands=(2, 4))
    assert ArithmeticData.model_validate_json(data.model_dump_json()) == data
    assert len(ArithmeticData.model_fields) <= 15
    assert data.digits == (1, 2)


def test_supervision_defaults_to_the_answer_and_to_all_with_a_scratchpad():
    assert ArithmeticData().supervised == "answer"
    assert ArithmeticData(scratchpad=True).supervised == "all"
    silent = ArithmeticData(scratchpad=True, supervise="answer", instances=10)
    assert "will not write them" in silent.load(0).notes[0]


def test_expressions_have_two_to_four_operands_unless_said_otherwise():
    assert ArithmeticData().space.operands == (2, 2)
    assert ArithmeticData(task="expression").space.operands == (2, 4)
    assert ArithmeticData(task="expression", operands=3).space.operands == (3, 3)


def test_a_run_on_own_files_has_no_drawn_test_problems():
    with pytest.raises(BadInput, match="own files"):
        ArithmeticData(paths=("sums.txt",)).test_questions(5, 0)
