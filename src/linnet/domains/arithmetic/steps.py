"""Worked steps: every step is a true equation, with the carry that comes in, not the one that goes out.

`equations` is the short form that a model with a scratchpad writes (`8+7+0=15`); `written_steps` is the
long form of the JSONL files (`Position 1: 8 + 7 + carry(0) = 15 -> digit=5, new_carry=1`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from linnet.domains.arithmetic.expressions import evaluate
from linnet.domains.arithmetic.problems import Task, base_of, operands_of, solve
from linnet.errors import BadInput


def equations(task: Task, question: str) -> list[str]:
    """The steps from a question to its answer, as equations without spaces."""
    operands = operands_of(task, question)
    if task == "base":
        return _divisions(operands[0], base_of(question))
    if task == "polynomial":
        a, b, c, d = operands
        return [f"{x}*{y}={x * y}" for x, y in ((a, c), (a, d), (b, c), (b, d))]
    if task == "multiply" and min(operands) >= 0:
        return _long_multiplication(operands)
    if task == "add" and min(operands) >= 0:
        return [left_total[0] + "=" + str(left_total[1]) for left_total in _sum_columns(operands)]
    if task == "subtract" and min(operands) >= 0 and len(operands) == 2:
        high, low = max(operands), min(operands)
        return [f"{top}-{bottom}-{borrow}={top - bottom - borrow}" for top, bottom, borrow in _borrows(high, low)]
    reductions: list[str] = []
    evaluate(question, reductions)
    return reductions


def _sum_columns(operands: Sequence[int]) -> list[tuple[str, int]]:
    """For each column from the right: its digits with the incoming carry, and their total."""
    rows, carry, columns = list(operands), 0, []
    for _ in range(max(len(str(n)) for n in operands)):
        terms = [n % 10 for n in rows] + [carry]
        columns.append(("+".join(map(str, terms)), sum(terms)))
        carry = sum(terms) // 10
        rows = [n // 10 for n in rows]
    return columns


def _borrows(high: int, low: int) -> list[tuple[int, int, int]]:
    """For each column: the upper digit (with ten where it borrows), the lower digit, the incoming borrow."""
    borrow, columns = 0, []
    for _ in range(len(str(high))):
        top, bottom = high % 10, low % 10
        needs = top < bottom + borrow
        columns.append((top + 10 * needs, bottom, borrow))
        borrow = int(needs)
        high, low = high // 10, low // 10
    return columns


def _long_multiplication(operands: Sequence[int]) -> list[str]:
    """A partial product for each digit of the second factor, then their running sum; further factors likewise."""
    total, lines = operands[0], []
    for factor in operands[1:]:
        parts = [int(d) * 10**position for position, d in enumerate(reversed(str(factor)))]
        lines += [f"{total}*{part}={total * part}" for part in parts]
        running = total * parts[0]
        for part in parts[1:]:
            lines.append(f"{running}+{total * part}={running + total * part}")
            running += total * part
        total = running
    return lines


def _divisions(number: int, base: int) -> list[str]:
    """`13=6*2+1`: quotient, base, remainder, until the quotient is 0."""
    lines = []
    while True:
        quotient, rest = divmod(number, base)
        lines.append(f"{number}={quotient}*{base}+{rest}")
        if quotient == 0:
            return lines
        number = quotient


def written_steps(task: Task, question: str) -> list[str]:
    """The steps in words, the last one `Result: r`."""
    operands, answer = operands_of(task, question), solve(task, question)
    if task == "add" and min(operands) >= 0:
        lines = _written_sum(operands)
    elif task == "subtract" and min(operands) >= 0 and len(operands) == 2:
        lines = _written_difference(*operands)
    elif task == "base":
        lines = [f"Convert {question}"] + [
            re.sub(r"(\d+)=(\d+)\*(\d+)\+(\d+)", r"Divide: \1 = \2 * \3 + \4", line)
            for line in equations(task, question)
        ]
    elif task == "polynomial":
        names = ("First", "Outer", "Inner", "Last")
        lines = [f"{name}: {spaced(line)}" for name, line in zip(names, equations(task, question), strict=True)]
        lines.append(f"Sum: {spaced(answer)}")
    else:
        lines = [f"Step {n}: {spaced(line)}" for n, line in enumerate(equations(task, question), start=1)]
    return [*lines, f"Result: {answer}"]


def _written_sum(operands: Sequence[int]) -> list[str]:
    width = max(len(str(n)) for n in operands)
    lines = ["Align numbers: " + " + ".join(str(n).zfill(width) for n in operands)]
    carry = 0
    for position, (left, total) in enumerate(_sum_columns(operands), start=1):
        digits = " + ".join(left.split("+")[:-1])
        lines.append(
            f"Position {position}: {digits} + carry({carry}) = {total} -> digit={total % 10}, "
            f"new_carry={total // 10}"
        )
        carry = total // 10
    return [*lines, f"Final carry: {carry}"] if carry else lines


def _written_difference(first: int, second: int) -> list[str]:
    high, low = max(first, second), min(first, second)
    width = len(str(high))
    lines = [f"Align numbers: {str(high).zfill(width)} - {str(low).zfill(width)}"]
    if first < second:
        lines.insert(0, f"Swap: {first} is smaller than {second}, the result is negative")
    for position, (top, bottom, borrow) in enumerate(_borrows(high, low), start=1):
        digit = top - bottom - borrow
        lines.append(
            f"Position {position}: {top} - {bottom} - borrow({borrow}) = {digit} -> "
            f"digit={digit}, new_borrow={int(top > 9)}"
        )
    return lines


def spaced(text: str) -> str:
    """Spaces around operators, as the JSONL files have them; a sign stays with its number."""
    return re.sub(r"(?<=[0-9)])([-+*=])", r" \1 ", text)


_PASSED = re.compile(r"(?:carry|borrow)\((\d+)\)")
_OUTCOME = re.compile(r"digit=(\d+), ?new_(?:carry|borrow)=(\d+)")
_HEADER = re.compile(r"^(?:[A-Za-z]+(?: [A-Za-z]+)?(?: \d+)?): *")
_NO_EQUATION = ("Align", "Swap", "Convert", "Expand", "Multiply", "Read remainders", "Final carry")


def false_steps(task: Task, question: str, steps: Sequence[str]) -> list[tuple[int, str]]:
    """Which steps (short or long form) are not true, with the reason; empty when all are.

    Each equation is evaluated on both sides, a column's incoming carry must be the one that the column
    before it passed on, its digit and new carry must be those of its total, and `Result` must be right.
    """
    wrong, passed_on = [], 0
    for number, step in enumerate(steps):
        reason = ""
        if step.startswith("Result:"):
            result = step.removeprefix("Result:").replace(" ", "")
            reason = "" if result == solve(task, question) else f"the result is {solve(task, question)}"
        elif step.startswith("Final carry:"):
            reason = "" if step.removeprefix("Final carry:").strip() == str(passed_on) else f"it is {passed_on}"
        elif not step.startswith(_NO_EQUATION):
            reason = _false_equation(step, passed_on)
            outcome = _OUTCOME.search(step)
            passed_on = int(outcome[2]) if outcome else passed_on
        if reason:
            wrong.append((number, f"{step}: {reason}"))
    return wrong


def _false_equation(step: str, passed_on: int) -> str:
    incoming = _PASSED.search(step)
    if incoming and int(incoming[1]) != passed_on:
        return f"the column before passed on {passed_on}, not {incoming[1]}"
    text = _PASSED.sub(r"\1", _HEADER.sub("", step)).partition("->")[0].replace(" ", "")
    text = re.sub(r"\*10\^(\d+)", lambda m: "*1" + "0" * int(m[1]), text)
    sides = text.split("=")
    division = re.fullmatch(r"(\d+)by(\d+):quotient", sides[0].removeprefix("Divide"))
    if division:
        return _false_division(int(division[1]), int(division[2]), text)
    if len(sides) < 2:
        return "it holds no equation"
    try:
        values = [evaluate(side) for side in sides]
    except BadInput as error:
        return str(error)
    if len(set(values)) > 1:
        return f"the sides are {', '.join(map(str, values))}"
    outcome = _OUTCOME.search(step)
    if (
        outcome
        and "carry" in outcome[0]
        and (int(outcome[1]), int(outcome[2])) != (values[0] % 10, values[0] // 10)
    ):
        return f"the digit is {values[0] % 10} and the new carry {values[0] // 10}"
    return ""


def _false_division(number: int, base: int, text: str) -> str:
    found = re.search(r"quotient=(\d+),remainder=([0-9A-F]+)", text)
    if found and (int(found[1]), int(found[2], 16)) == divmod(number, base):
        return ""
    return f"the quotient is {number // base} and the remainder {number % base}"
