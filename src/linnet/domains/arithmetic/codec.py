"""Arithmetic as tokens: a person's `123+456=579` outside, a form that is quick to learn inside.

Inside, numbers may be reversed (least significant digit first, so that a carry is known before it is
needed), padded with zeros to one width (so that each answer digit finds its operand digits at constant
distances), and a scratchpad of true steps may stand between `=` and the answer:

    question  =  step;step;step  >  answer  <end>

The steps follow from the question: `encode` writes them, `decode` leaves them out. `decode(encode(v))` is
`v` in canonical spelling: without spaces (`13 to binary` keeps its two) and with `=` after a bare question.
What a model wrote and what no value could have been encoded to is shown as it stands after a `?`, so that
it never passes for an answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from linnet.codecs import Encoded, known
from linnet.domains.arithmetic.problems import (
    OPERATORS,
    Task,
    answers_may_be_negative,
    base_of,
    read_value,
)
from linnet.domains.arithmetic.steps import equations
from linnet.errors import BadInput
from linnet.untrusted import checked

Reverse = Literal["none", "answer", "all"]
SPECIALS = ("<begin>", "<end>")
_ORDER = "0123456789ABCDEF+-*()=bx_;>"
_NAMES = {"b": " to binary", "x": " to hex"}
_SIGNED_NUMBER = re.compile(r"(?:(?<![0-9A-F)])(-))?([0-9A-F]+)")
_PADDED_SIGNED = re.compile(r"([-_])([0-9A-F]+)")
_BARE_NUMBER = re.compile(r"()([0-9A-F]+)")


class Inner(NamedTuple):
    """The three stretches of a value inside: `question=`, `steps>` (or nothing), and the answer."""

    question: str
    steps: str
    answer: str


@dataclass(frozen=True)
class ArithmeticCodec:
    """One id a symbol, after `<begin>` and `<end>`. `width` is the padded width of operands, None for none.

    `_` stands before a padded number that could have had a minus sign; `b` and `x` are " to binary" and
    " to hex"; `;` and `>` end a step and the steps.
    """

    task: Task
    reverse: Reverse = "all"
    width: int | None = None
    operands: int = 2
    signs: bool = False
    scratchpad: bool = False
    symbols: str = ""

    def __post_init__(self) -> None:
        if not self.symbols:
            object.__setattr__(self, "symbols", self._needed())

    def _needed(self) -> str:
        own = {"expression": "+-*()", "base": "ABCDEFbx", "polynomial": "+()"}
        wanted = set("0123456789=") | set(own.get(self.task) or OPERATORS[self.task])
        negative = answers_may_be_negative(self.task, self.signs)
        if negative:
            wanted |= set("-_" if self.width else "-")
        if self.scratchpad:
            steps = {"multiply": "*+", "base": "*+", "polynomial": "*", "add": "+", "subtract": "-"}
            wanted |= set(";>") | set(steps.get(self.task, ""))
        return "".join(symbol for symbol in _ORDER if symbol in wanted)

    @property
    def begin(self) -> int:
        return 0

    @property
    def end(self) -> int:
        return 1

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        return SPECIALS + tuple(_NAMES.get(symbol, symbol) for symbol in self.symbols)

    @functools.cached_property
    def _table(self) -> bytes:
        table = bytearray(256)
        for index, symbol in enumerate(self.symbols):
            table[ord(symbol)] = index + len(SPECIALS)
        return bytes(table)

    def ids(self, inner: str) -> np.ndarray:
        """The ids of text that is already in the inner form, as unsigned bytes."""
        ids = np.frombuffer(inner.encode("ascii").translate(self._table), dtype=np.uint8)
        if ids.size and not ids.min():
            strange = next(c for c in inner if c not in self.symbols)
            raise BadInput(f"symbol {strange!r} is not in the alphabet of this codec ({self.symbols!r})")
        return ids

    def inner(self, question: str, answer: str) -> Inner:
        """The inner form of a question and answer in canonical spelling; without an answer, no steps."""
        steps = self._steps_in(question) if self.scratchpad and answer else ""
        return Inner(
            self._question_in(question) + "=",
            steps,
            self._answer_in(question, answer) if answer else "",
        )

    def encode(self, value: str) -> Encoded:
        if not value.strip(" "):
            return Encoded(np.empty(0, np.int64))
        inner = "".join(self.inner(*read_value(self.task, self.signs, value)))
        return Encoded(self.ids(inner).astype(np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        question, equals, rest = self._text(ids).partition("=")
        if not question and not equals:
            return ""
        question_text = self._question_out(question)
        return question_text + equals + self._rest_out(question_text, rest)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        before, whole = self.decode(prompt), self.decode([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else whole.partition("=")[2]

    @property
    def pieces(self) -> None:
        """A number is turned around, padded or shown after a `?`: no digit knows its index before the end."""
        return None

    def settled(self, ids: Sequence[int]) -> int:
        return 0

    def steps(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The steps of a scratchpad that were written, as a person reads them: `8+7+0=15`."""
        rest = self._text(ids).partition("=")[2].partition(">")[0]
        return tuple(self._numbers_reversed(step) for step in rest.split(";") if step) if self.scratchpad else ()

    @property
    def rewriting(self) -> tuple[str, ...]:
        rules = []
        if self.reverse != "none":
            rules.append(f"reverses the digits of {'answers' if self.reverse == 'answer' else 'numbers'}")
        if self.width is not None:
            rules.append(f"pads numbers to {self.width} digits")
        if self.scratchpad:
            rules.append("writes steps between question and answer")
        if self.task == "base":
            rules.append("has one token for words")
        return tuple(rules)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "arithmetic", **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ArithmeticCodec:
        return cast(ArithmeticCodec, checked(cls, stored, ""))

    def answer_width(self, base: int = 10) -> int:
        """Digits that the largest possible answer has, when operands have `width` digits."""
        if self.width is None:
            raise BadInput("only a padded codec has a width")
        largest = 10**self.width - 1
        if self.task == "base":
            return len(f"{largest:b}" if base == 2 else f"{largest:X}")
        if self.task == "polynomial":
            return len(str(4 * largest * largest))
        if self.task == "add" or (self.task == "subtract" and self.signs):
            return len(str(self.operands * largest))
        if self.task == "subtract":
            return len(str(max(1, self.operands - 1) * largest))
        return len(str(largest**self.operands))

    @property
    def negative_answers(self) -> bool:
        return answers_may_be_negative(self.task, self.signs)

    def _text(self, ids: Iterable[int]) -> str:
        first = len(SPECIALS)
        return "".join(self.symbols[i - first] for i in known(ids, len(self.tokens)) if i >= first)

    def _question_in(self, question: str) -> str:
        if self.task == "base":
            number, name = question.split(" to ")
            return self._number_in("", number, self.width, False, self.reverse == "all") + name[0].replace(
                "h", "x"
            )
        if self.width is None and self.reverse != "all":
            return question
        return _SIGNED_NUMBER.sub(
            lambda m: self._number_in(m[1] or "", m[2], self.width, self.signs, self.reverse == "all"), question
        )

    def _answer_in(self, question: str, answer: str) -> str:
        width = None if self.width is None else self.answer_width(base_of(question))
        turned = self.reverse != "none"
        if width is None and not turned:
            return answer
        signed = self.negative_answers
        return _SIGNED_NUMBER.sub(lambda m: self._number_in(m[1] or "", m[2], width, signed, turned), answer)

    @staticmethod
    def _number_in(sign: str, digits: str, width: int | None, signed: bool, turned: bool) -> str:
        if width is not None:
            if len(digits) > width:
                raise BadInput(
                    f"the number {sign}{digits[:40]} has {len(digits)} digits and this codec pads to {width}; "
                    "a model for longer numbers needs a larger data.width (or data.digits)"
                )
            digits = digits.zfill(width)
            sign = sign or ("_" if signed else "")
        return sign + (digits[::-1] if turned else digits)

    def _steps_in(self, question: str) -> str:
        return self._numbers_reversed(";".join(equations(self.task, question))) + ">"

    def _numbers_reversed(self, text: str) -> str:
        """Steps are never padded; their digits are reversed only where all numbers are."""
        if self.reverse != "all":
            return text
        return _BARE_NUMBER.sub(lambda m: m[2][::-1], text)

    def _number_out(self, sign: str, digits: str, turned: bool) -> str:
        digits = digits[::-1] if turned else digits
        if self.width is not None:
            digits = digits.lstrip("0") or "0"
        return ("-" if sign == "-" else "") + digits

    def _numbers_out(self, text: str, signed: bool, turned: bool) -> str:
        pattern = _PADDED_SIGNED if signed and self.width is not None else _BARE_NUMBER
        return pattern.sub(lambda m: self._number_out(m[1], m[2], turned), text)

    def _question_out(self, inner: str) -> str:
        signed = self.signs and self.task != "base"
        if self.task == "base":
            name = {"b": " to binary", "x": " to hex"}.get(inner[-1:], "?")
            question_text = self._numbers_out(inner[:-1], signed, self.reverse == "all") + name
        else:
            question_text = self._numbers_out(inner, signed, self.reverse == "all")
        return question_text if self._gives(question_text, inner + "=") else f"?{inner}"

    def _rest_out(self, question_text: str, rest: str) -> str:
        steps, ended, answer = rest.partition(">") if self.scratchpad else ("", "", rest)
        if self.scratchpad and not ended:
            return f"?{rest}" if rest else ""
        answer_text = self._numbers_out(answer, self.negative_answers, self.reverse != "none")
        if question_text.startswith("?") or not answer_text:
            return f"?{steps}{ended}{answer}" if answer or ended else ""
        try:
            question, read = read_value(self.task, self.signs, f"{question_text}={answer_text}")
            right = self._answer_in(question, read) == answer
        except BadInput:
            right = False
        return answer_text if right else f"?{answer}"

    def _gives(self, question: str, inner: str) -> bool:
        """Whether this question is what the inner form stands for."""
        try:
            return "".join(self.inner(*read_value(self.task, self.signs, question))) == inner
        except BadInput:
            return False
