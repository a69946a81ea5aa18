"""The codec of arithmetic gives every accepted value back; the parser agrees with Python; prompts and answers."""

from __future__ import annotations

import ast
import json
import operator
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.arithmetic.drawing import draw_distinct
from linnet.domains.arithmetic.expressions import bracket_depth, evaluate
from linnet.domains.arithmetic.problems import Space, guess_task, read_value, solve
from linnet.errors import BadInput

TASKS = ("add", "subtract", "multiply", "expression", "base", "polynomial")
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg}

numbers = st.integers(0, 10**6).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, st.sampled_from("+-*"), inner).map("".join),
    ),
    max_leaves=12,
)


def value_by_python(text: str) -> int:
    """The oracle: Python's own parser, its tree folded by hand."""

    def fold(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.UnaryOp):
            return OPERATIONS[type(node.op)](fold(node.operand))
        assert isinstance(node, ast.BinOp)
        return OPERATIONS[type(node.op)](fold(node.left), fold(node.right))

    return fold(ast.parse(text, mode="eval").body)


@settings(max_examples=200, deadline=None)
@given(expressions)
def test_evaluation_agrees_with_python(text):
    assert evaluate(text) == value_by_python(text)


@settings(max_examples=200, deadline=None)
@given(expressions)
def test_each_reduction_is_true(text):
    reductions: list[str] = []
    value = evaluate(text, reductions)
    for line in reductions:
        left, _, right = line.partition("=")
        assert value_by_python(left) == int(right)
    assert not reductions or int(reductions[-1].partition("=")[2]) == value
    assert len(reductions) == len(re.findall(r"[-+*]", text))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*()/ ab=", max_size=12))
def test_any_text_is_a_number_or_bad_input(text):
    try:
        value = evaluate(text)
    except BadInput:
        return
    assert value == value_by_python(re.sub(r"(?<=[0-9)])\(", "*(", text))


@pytest.mark.parametrize(
    "wrong", ["", "1+", "+1", "(1", "1)", "1++2", "()", "01+2", "--1", "-0", "1/2", "2**3", "(" * 200]
)
def test_malformed_expressions_are_named(wrong):
    with pytest.raises(BadInput):
        evaluate(wrong)


def test_brackets_side_by_side_multiply():
    assert evaluate("(3+4)(5+6)") == 77 and evaluate("2(3)(4)") == 24 and bracket_depth("((1)+(2))") == 2


@st.composite
def codecs(draw):
    task = draw(st.sampled_from(TASKS))
    return ArithmeticCodec(
        task,
        draw(st.sampled_from(["none", "answer", "all"])),
        draw(st.sampled_from([None, 3, 4])),
        4,
        draw(st.booleans()),
        draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(codecs(), st.integers(0, 10**6))
def test_every_right_value_and_its_prompt_come_back(codec, seed):
    operands = (2, 2) if codec.task in ("base", "polynomial") else (2, 4)
    space = Space(codec.task, (1, 3), operands, codec.signs, (0, 2))
    for question in draw_distinct(space, seed, 3, None):
        value = f"{question}={solve(codec.task, question)}"
        assert codec.decode(codec.encode(value).ids) == value
        assert codec.decode(codec.encode(f"{question}=").ids) == f"{question}="
        prompt, whole = codec.encode(f"{question}=").ids.tolist(), codec.encode(value).ids.tolist()
        assert whole[: len(prompt)] == prompt
        assert codec.continuation(prompt, whole[len(prompt) :]) == value.partition("=")[2]
        assert codec.continuation([], whole) == value
        framed = [codec.begin, *whole, codec.end]
        assert codec.decode(framed) == value
        stored = json.loads(json.dumps(codec.to_json()))
        assert ArithmeticCodec.from_json(stored) == codec and stored["kind"] == "arithmetic"


@settings(max_examples=400, deadline=None)
@given(codecs(), st.text(alphabet="0123456789ABF+-*()= tobinaryhex_;>?", max_size=16))
def test_whatever_is_accepted_comes_back_in_canonical_spelling(codec, text):
    try:
        encoded = codec.encode(text)
    except BadInput:
        return
    if not text.strip():
        assert len(encoded) == 0
        return
    question, answer = read_value(codec.task, codec.signs, text)
    assert codec.decode(encoded.ids) == f"{question}={answer}"
    assert codec.encode(codec.decode(encoded.ids)).ids.tolist() == encoded.ids.tolist()


@settings(max_examples=250, deadline=None)
@given(codecs(), st.data())
def test_any_ids_decode_and_only_true_forms_decode_without_a_mark(codec, data):
    ids = data.draw(st.lists(st.integers(0, len(codec.tokens) - 1), max_size=14))
    text = codec.decode(ids)
    if "?" in text or not text:
        return
    written = "".join(codec.symbols[i - 2] for i in ids if i > 1)
    question, _, rest = written.partition("=")
    answer = rest.rpartition(">")[2] if codec.scratchpad else rest
    inner = codec.inner(*read_value(codec.task, codec.signs, text))
    assert (inner.question, inner.answer) == (f"{question}=", answer)


def test_the_model_writes_in_reverse_and_a_person_reads_it_forward():
    codec = ArithmeticCodec("add", "all", 3)
    prompt = codec.encode("123+456=").ids.tolist()
    assert "".join(codec.tokens[i] for i in prompt) == "321+654="
    written = [codec.symbols.index(c) + 2 for c in "9750"]
    assert codec.continuation(prompt, [*written, codec.end]) == "579"
    assert codec.continuation(prompt, written[:3]) == "?975"
    assert codec.continuation(prompt, []) == ""


def test_a_partial_answer_goes_on_where_it_stopped():
    codec = ArithmeticCodec("add", "none")
    prompt = codec.encode("12+34=4").ids.tolist()
    assert codec.continuation(prompt, [codec.symbols.index("6") + 2]) == "6"


@pytest.mark.parametrize("prompt", ["12+34=", "12+34", "12 + 34 =", " 12+ 34", "12 + 34= "])
def test_spaces_and_a_missing_equals_sign_are_other_spellings(prompt):
    codec = ArithmeticData().codec()
    assert codec.decode(codec.encode(prompt).ids) == "12+34="


def test_base_prompts_keep_their_words():
    codec = ArithmeticData(task="base").codec()
    assert codec.decode(codec.encode("13 to binary=1101").ids) == "13 to binary=1101"
    assert codec.decode(codec.encode("255tohex = FF").ids) == "255 to hex=FF"
    assert " to binary" in codec.tokens and len(codec.tokens) == len(codec.symbols) + 2


@pytest.mark.parametrize(
    "value, hint",
    [
        ("007+1=8", "leading zeros"),
        ("1+1=02", "leading zeros"),
        ("1234+1=1235", "data.width"),
        ("1+1=12345", "5 digits"),
        ("12x+1", "not a question of task 'add'"),
        ("-1+2=1", "data.signs=true"),
        ("1+2+", "not a question"),
        ("1 2+3", "space inside a number"),
        ("1-2", "12\\+34"),
        ("1+2=3=4", "not an answer"),
        ("1+2=٣", "not an answer"),
        ("=5", "not a question"),
    ],
)
def test_what_cannot_be_given_back_is_refused(value, hint):
    with pytest.raises(BadInput, match=hint):
        ArithmeticData().codec().encode(value)


@pytest.mark.parametrize(
    "task, value",
    [
        ("base", "5 to hex=0F"),
        ("base", "5 to binary=2"),
        ("base", "5 to octal=5"),
        ("polynomial", "(1+2)(3+4)=3+"),
        ("polynomial", "(1+2)*(3+4)=21"),
        ("expression", "-3+4=1"),
        ("expression", "(1+2=3"),
        ("multiply", "3*"),
    ],
)
def test_other_tasks_refuse_what_they_do_not_know(task, value):
    with pytest.raises(BadInput):
        ArithmeticData(task=task).codec().encode(value)


def test_the_padded_form_has_one_length_and_the_answer_fits():
    for task in ("add", "subtract", "multiply"):
        codec = ArithmeticData(task=task, digits=2).codec()
        lengths = {
            len(codec.encode(f"{question}={solve(task, question)}"))
            for question in ("0+0", "99+99", "0-99", "99-0", "99*99", "1*0")
            if guess_task(question) == task
        }
        assert len(lengths) == 1


def test_a_scratchpad_holds_true_steps_between_question_and_answer():
    codec = ArithmeticCodec("add", "all", 3, scratchpad=True)
    ids = codec.encode("128+367=495").ids
    assert "".join(codec.tokens[i] for i in ids) == "821+763=8+7+0=51;2+6+1=9;1+3+0=4>5940"
    assert codec.steps(ids) == ("8+7+0=15", "2+6+1=9", "1+3+0=4")
    assert codec.decode(ids) == "128+367=495"
    prompt = codec.encode("128+367").ids.tolist()
    assert codec.continuation(prompt, ids[len(prompt) :]) == "495"
    assert codec.continuation(prompt, ids[len(prompt) : -5]) == "?8+7+0=51;2+6+1=9;1+3+0=4"


def test_a_narrow_codec_names_the_symbol_that_it_lacks():
    codec = ArithmeticCodec("add")
    with pytest.raises(BadInput, match="'\\*'"):
        codec.ids("1*2")
