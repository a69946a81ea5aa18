"""Whole-number expressions with `+`, `-`, `*`, brackets and side-by-side brackets: read, evaluate, measure.

A parser of our own, never `eval`. It knows no division, no names and no spaces.
"""

from __future__ import annotations

import re

from linnet.errors import BadInput

DEEPEST = 100  # brackets; far beyond any data set, and far below the recursion limit
_TOKEN = re.compile(r"[0-9]+|[-+*()]")


def evaluate(text: str, reductions: list[str] | None = None) -> int:
    """The value; `reductions` collects each operation as it is carried out, such as `3+4=7`."""
    reader = _Reader(text, reductions)
    value = reader.sum(0)
    if reader.peek():
        raise reader.wrong("an operator")
    return value


def bracket_depth(text: str) -> int:
    """How deep the brackets are nested."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


class _Reader:
    """Recursive descent: sum := product (+- product)*, product := factor (* factor | bracket)*."""

    def __init__(self, text: str, reductions: list[str] | None) -> None:
        self.text = text
        self.tokens: list[str] = [*_TOKEN.findall(text), ""]  # "" stands for the end
        self.position = 0
        self.reductions = reductions
        if sum(map(len, self.tokens)) != len(text):
            strange = next(c for c in text if c not in "0123456789+-*()")
            raise BadInput(f"{strange!r} in {text[:60]!r} is not part of an expression; there is 0-9 + - * ( )")

    def wrong(self, wanted: str) -> BadInput:
        found = repr(self.peek()) if self.peek() else "the end"
        before = "".join(self.tokens[: self.position])
        return BadInput(f"{self.text[:60]!r} needs {wanted} after {before[-30:]!r}, not {found}")

    def peek(self) -> str:
        return self.tokens[self.position]

    def sum(self, depth: int) -> int:
        value = self.product(depth)
        while (operator := self.peek()) in ("+", "-"):
            self.position += 1
            other = self.product(depth)
            result = value + other if operator == "+" else value - other
            value = self.reduced(value, operator, other, result)
        return value

    def product(self, depth: int) -> int:
        value = self.factor(depth)
        while (operator := self.peek()) in ("*", "("):
            self.position += operator == "*"
            other = self.factor(depth)
            value = self.reduced(value, "*", other, value * other)
        return value

    def factor(self, depth: int) -> int:
        token = self.peek()
        if token == "(":
            if depth == DEEPEST:
                raise BadInput(f"the brackets of {self.text[:60]!r} are nested deeper than {DEEPEST}")
            self.position += 1
            value = self.sum(depth + 1)
            if self.peek() != ")":
                raise self.wrong("a closing bracket")
            self.position += 1
            return value
        sign = -1 if token == "-" else 1
        self.position += sign < 0
        number = self.peek()
        if not number.isdigit():
            raise self.wrong("a number")
        if number[0] == "0" and number != "0" or (sign < 0 and number == "0"):
            raise BadInput(f"{self.text[:60]!r} writes the number {number!r} with a leading zero or minus zero")
        self.position += 1
        return sign * int(number)

    def reduced(self, left: int, operator: str, right: int, value: int) -> int:
        if self.reductions is not None:
            self.reductions.append(f"{left}{operator}{right}={value}")
        return value
