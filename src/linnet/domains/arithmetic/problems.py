"""What an arithmetic problem is: how people write it, its right answer, its canonical form and its part.

A value is `question=answer`; questions of the tasks look like `123+456`, `12-34`, `6*7`, `(3+4)*2`,
`13 to binary`, `255 to hex` and `(3+4)(5+6)` (whose answer is `15+18+20+24=77`).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from linnet.domains.arithmetic.expressions import bracket_depth, evaluate
from linnet.errors import BadInput

Task = Literal["add", "subtract", "multiply", "expression", "base", "polynomial"]
PartName = Literal["train", "validation", "test"]
TASKS: tuple[Task, ...] = ("add", "subtract", "multiply", "expression", "base", "polynomial")
OPERATORS = {"add": "+", "subtract": "-", "multiply": "*"}
BASES = {"binary": 2, "hex": 16}
SHARES = {"train": (0, 8), "validation": (8, 9), "test": (9, 10)}  # tenths of the hash space
LONGEST_VALUE = 1000  # characters; so that no number or product meets Python's limit on integer texts

_PLAIN = r"(?:0|[1-9][0-9]*)"
_SIGNED = r"(?:0|-?[1-9][0-9]*)"
_SPACED_NUMBER = re.compile(r"[0-9A-F] +[0-9A-F]")


@dataclass(frozen=True)
class Space:
    """The problems that may be drawn: numbers of operands, digits and brackets as inclusive ranges."""

    task: Task
    digits: tuple[int, int]
    operands: tuple[int, int] = (2, 2)
    signs: bool = False
    depth: tuple[int, int] = (0, 2)


@functools.lru_cache(maxsize=64)
def question_pattern(task: Task, signs: bool) -> re.Pattern[str]:
    """Questions of a task without spaces; expressions are read by their own parser afterwards."""
    number = _SIGNED if signs else _PLAIN
    if task == "base":
        return re.compile(rf"({_PLAIN})to(binary|hex)")
    if task == "polynomial":
        return re.compile(rf"\(({number})\+({number})\)\(({number})\+({number})\)")
    if task == "expression":
        return re.compile(r"[-+*()0-9]+")
    operator = re.escape(OPERATORS[task])
    return re.compile(rf"{number}(?:{operator}{number})+")


@functools.lru_cache(maxsize=64)
def answer_pattern(task: Task, negative: bool, base: int = 10) -> re.Pattern[str]:
    number = _SIGNED if negative else _PLAIN
    if task == "base":
        return re.compile(r"0|1[01]*" if base == 2 else r"0|[1-9A-F][0-9A-F]*")
    if task == "polynomial":
        return re.compile(rf"{number}(?:\+{number})*(?:={number})?")
    return re.compile(number)


def answers_may_be_negative(task: Task, signs: bool) -> bool:
    return task in ("subtract", "expression") or (signs and task != "base")


def read_value(task: Task, signs: bool, text: str) -> tuple[str, str]:
    """Question and answer (empty in a prompt) in canonical spelling; spaces are left out, `=` may be missing."""
    if len(text) > LONGEST_VALUE:
        raise BadInput(f"{text[:30]!r}... has {len(text)} characters; a problem has at most {LONGEST_VALUE}")
    if " " in text:
        if _SPACED_NUMBER.search(text):
            raise BadInput(f"{text[:60]!r} has a space inside a number")
        text = text.replace(" ", "")
    question, _, answer = text.partition("=")
    question = read_question(task, signs, question)
    if answer and not answer_pattern(task, answers_may_be_negative(task, signs), base_of(question)).fullmatch(
        answer
    ):
        raise BadInput(
            f"{answer[:40]!r} is not an answer of task {task!r} to {question[:40]!r}: it has to be a whole number "
            "without leading zeros" + (", in digits of its base" if task == "base" else "")
        )
    return question, answer


def read_question(task: Task, signs: bool, text: str) -> str:
    """The canonical spelling of a question that has no spaces; `BadInput` for what the task does not know."""
    found = question_pattern(task, signs).fullmatch(text)
    if found is None:
        raise BadInput(
            f"{text[:60]!r} is not a question of task {task!r}; {_EXAMPLES[task]}{_sign_hint(text, signs)}"
        )
    if task == "base":
        return f"{found[1]} to {found[2]}"
    if task == "expression":
        if not signs and re.search(r"(?<![0-9)])-", text):
            raise BadInput(f"{text[:60]!r} has a negative number{_sign_hint(text, signs)}")
        evaluate(text)
    return text


_EXAMPLES = {
    "add": "a right one is 12+34 (numbers without leading zeros)",
    "subtract": "a right one is 12-34 (numbers without leading zeros)",
    "multiply": "a right one is 12*34 (numbers without leading zeros)",
    "expression": "a right one is (3+4)*2",
    "base": "right ones are '13 to binary' and '255 to hex'",
    "polynomial": "a right one is (3+4)(5+6)",
}


def _sign_hint(text: str, signs: bool) -> str:
    return "; negative numbers need data.signs=true" if "-" in text and not signs else ""


def base_of(question: str) -> int:
    """The base in which the answer is written."""
    return BASES[question.rsplit(" ", 1)[1]] if question[-1:] in ("y", "x") else 10


def operands_of(task: Task, question: str) -> list[int]:
    """The numbers of a question, in order."""
    if task == "base":
        return [int(question.split(" ", 1)[0])]
    return [int(n) for n in re.findall(r"(?:(?<![0-9)])-)?[0-9]+", question)]


def solve(task: Task, question: str) -> str:
    """The right answer."""
    if task == "base":
        number, base = operands_of(task, question)[0], base_of(question)
        return f"{number:b}" if base == 2 else f"{number:X}"
    if task == "polynomial":
        a, b, c, d = operands_of(task, question)
        return f"{a * c}+{a * d}+{b * c}+{b * d}={(a + b) * (c + d)}"
    return str(evaluate(question))


def canonical(task: Task, question: str) -> str:
    """One text for all orders of the same problem: operands of sums and products are sorted."""
    if task in ("add", "multiply"):
        return OPERATORS[task].join(map(str, sorted(operands_of(task, question))))
    if task == "polynomial":
        a, b, c, d = operands_of(task, question)
        (a, b), (c, d) = sorted([sorted((a, b)), sorted((c, d))])
        return f"({a}+{b})({c}+{d})"
    return question


def hash_point(text: bytes) -> bytes:
    """Eight bytes, the same on every machine; read as a big-endian number they lie evenly in 0 .. 2^64."""
    return hashlib.blake2b(text, digest_size=8).digest()


def part_bounds(part: PartName) -> tuple[int, int]:
    """The slice of the hash space of a part: points in low <= point <= high."""
    low, high = SHARES[part]
    return (low << 64) // 10, (high << 64) // 10 - 1


def part_of(task: Task, question: str) -> PartName:
    """The part that a problem belongs to, by a stable hash of its canonical form."""
    point = int.from_bytes(hash_point(canonical(task, question).encode()), "big")
    for part in ("train", "validation"):
        if point <= part_bounds(part)[1]:
            return part
    return "test"


def longest_carry(operands: Sequence[int]) -> int:
    """How many neighbouring columns in a row pass a carry on when these are added."""
    carry = run = longest = 0
    columns = max(len(str(n)) for n in operands)
    for _ in range(columns + 1):
        carry = (sum(n % 10 for n in operands) + carry) // 10
        run = run + 1 if carry else 0
        longest = max(longest, run)
        operands = [n // 10 for n in operands]
    return longest


def groups_of(task: Task, question: str) -> dict[str, int | str]:
    """What scores are also reported by: digits of the longest operand, carry chain, depth, base."""
    operands = operands_of(task, question)
    groups: dict[str, int | str] = {"digits": max(len(str(abs(n))) for n in operands)}
    if task == "add" and min(operands) >= 0:
        groups["carry"] = longest_carry(operands)
    if task == "expression":
        groups["depth"] = bracket_depth(question)
    if task == "base":
        groups["base"] = question.rsplit(" ", 1)[1]
    return groups


def guess_task(question: str) -> Task:
    """The narrowest task that a question (without spaces) belongs to."""
    for task in ("base", "polynomial", "add", "subtract", "multiply"):
        if question_pattern(task, True).fullmatch(question):
            return task
    return "expression"
