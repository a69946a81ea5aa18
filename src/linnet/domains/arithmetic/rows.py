"""Problems as framed rows, and which of their tokens a model predicts.

Three ways to the same bytes: `example` (one value, the oracle), `frame_texts` (many texts at once) and
`linnet.domains.arithmetic.columns` (sums as digit matrices).
Legend: rows = problems, tokens = all tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from linnet.codecs import Encoded
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.rows import Example, Rows

Supervise = Literal["all", "answer", "steps"]


def example(codec: ArithmeticCodec, question: str, answer: str, supervise: Supervise) -> Example:
    """One value with its marks: `answer` is the first answer token up to and with the end token; `steps`
    the first step token up to and with the `>` that ends the steps; `all` everything.

    Characters are those that a person reads: of the answer, of the steps, or of question, `=`, steps and answer.
    """
    inner = codec.inner(question, answer)
    questions, steps, answers = len(inner.question), len(inner.steps), len(inner.answer)
    first, last = _span(supervise, questions, steps, answers)
    scored = np.zeros(questions + steps + answers + 1, bool)
    scored[first:last] = True
    characters = _characters(supervise, question, steps, answer)
    ids = codec.ids("".join(inner)).astype(np.int64)
    return Example(Encoded(ids), scored, characters, characters)


def _span(supervise: Supervise, questions: int, steps: int, answers: int) -> tuple[int, int]:
    """First and one past the last scored token, counted without the begin token."""
    if supervise == "answer":
        return questions + steps, questions + steps + answers + 1
    if supervise == "steps":
        return questions, questions + steps
    return 0, questions + steps + answers + 1


def _characters(supervise: Supervise, question: str, steps: int, answer: str) -> int:
    if supervise == "answer":
        return len(answer)
    return steps if supervise == "steps" else len(question) + 1 + steps + len(answer)


def frame_texts(codec: ArithmeticCodec, pairs: Iterable[tuple[str, str]], supervise: Supervise) -> Rows:
    """Questions and answers in canonical spelling, framed: the same as `Rows.frame` of their examples."""
    texts: list[str] = []
    spans: list[tuple[int, int, int]] = []
    characters: list[int] = []
    for question, answer in pairs:
        inner = codec.inner(question, answer)
        questions, steps, answers = len(inner.question), len(inner.steps), len(inner.answer)
        texts.append("".join(inner))
        spans.append((*_span(supervise, questions, steps, answers), questions + steps + answers))
        characters.append(_characters(supervise, question, steps, answer))
    first, last, length = np.array(spans, dtype=np.int64).reshape(-1, 3).T
    starts = np.concatenate([[0], np.cumsum(length + 2)]).astype(np.int64)
    ids = np.full(starts[-1], codec.end, np.uint16)
    inside = np.ones(starts[-1], bool)
    inside[starts[:-1]] = inside[starts[1:] - 1] = False
    ids[starts[:-1]] = codec.begin
    ids[inside] = codec.ids("".join(texts))
    marks = np.zeros(starts[-1] + 1, np.int8)
    np.add.at(marks, starts[:-1] + 1 + first, 1)
    np.add.at(marks, starts[:-1] + 1 + last, -1)
    scored = np.cumsum(marks[:-1], dtype=np.int8).astype(bool)
    sizes = np.array(characters, np.int64)
    return Rows.of_ids(ids, starts, scored, sizes, sizes)
