"""Arithmetic: problems that are drawn or read, split by a stable hash, and checked exactly.

The inner form of a value is in `codec`, the steps in `steps`, files in `files`, `making` and `checking`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from linnet.codecs import Codec
from linnet.domains.arithmetic.codec import ArithmeticCodec, Reverse
from linnet.domains.arithmetic.columns import frame_sums, sum_texts
from linnet.domains.arithmetic.drawing import draw_distinct, draw_training_sums, draw_training_texts
from linnet.domains.arithmetic.files import Row, read_rows, split_name
from linnet.domains.arithmetic.labels import carry_hypotheses, labels_of
from linnet.domains.arithmetic.problems import Space, Task, groups_of, operands_of, solve
from linnet.domains.arithmetic.reading import checked_pairs, codec_for, part_rows
from linnet.domains.arithmetic.rows import Supervise, frame_texts
from linnet.domains.contract import Hypothesis, Material, Part, Question
from linnet.domains.tokens import TokenDomain
from linnet.errors import BadInput, nearest
from linnet.records import Baseline
from linnet.rows import Rows

HELD_OUT = ("test", "out_of_distribution")
VALIDATION_ROWS = 2000  # at most; an eighth of the training rows where that is less


class ArithmeticData(TokenDomain):
    """The `[data]` part of an arithmetic run. Ranges may be given as one number: `digits=3` is 1 to 3.

    `supervise` says which tokens a model is asked for: `answer` (the first answer token up to and with the
    end token), `steps` (the scratchpad only), `all` (everything after the begin token). Unset, it is
    `answer`, and `all` with a scratchpad, since a model that is never asked for its steps will not write
    them. The older names none, mask_steps and mask_answer say what is hidden from the loss: none = `all`,
    mask_steps = `answer`, mask_answer = `steps`.
    """

    domain: Literal["arithmetic"] = Field("arithmetic", description="kind of sequences")
    task: Task = Field("add", description="what is asked")
    digits: tuple[int, int] = Field((1, 3), description="of each operand, fewest and most")
    operands: tuple[int, int] | None = Field(None, description="how many; unset: 2, in expressions 2 to 4")
    signs: bool = Field(False, description="negative operands")
    depth: tuple[int, int] = Field((0, 2), description="of brackets, in expressions")
    reverse: Reverse = Field("all", description="which numbers are written least significant digit first inside")
    padded: bool = Field(True, description="zeros in front up to one width, inside")
    width: int | None = Field(None, description="that width; unset: the most digits")
    scratchpad: bool = Field(False, description="true steps between the question and the answer, inside")
    supervise: Supervise | None = Field(None, description="which tokens are predicted")
    balanced: bool = Field(True, description="training rows: short numbers and long carries are drawn more often")
    uncarried: bool = Field(
        False, description="balanced rows also have columns that would pass a carry on, without one"
    )
    instances: int = Field(100_000, description="training rows to draw")
    paths: tuple[Path, ...] = Field((), description="files to read instead of drawing")

    @field_validator("digits", "operands", "depth", mode="before")
    @classmethod
    def _as_range(cls, value: Any, info: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"digits": (1, value), "operands": (value, value), "depth": (0, value)}[info.field_name]
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> ArithmeticData:
        for name, (low, high), least, most in (
            ("digits", self.digits, 1, 100),
            ("operands", self.operand_range, 2, 20),
            ("depth", self.depth, 0, 50),
        ):
            if not least <= low <= high <= most:
                raise BadInput(f"data.{name} is a range from {least} to {most}, not {low} to {high}")
        if self.instances < 1:
            raise BadInput(f"data.instances has to be at least 1, not {self.instances}")
        if self.width is not None and self.width < self.digits[1]:
            raise BadInput(f"data.width={self.width} is too small for operands of {self.digits[1]} digits")
        if self.supervise == "steps" and not self.scratchpad:
            raise BadInput('data.supervise="steps" needs data.scratchpad=true: without it there are no steps')
        if self.uncarried and not (self.balanced and self.task in ("add", "subtract")):
            raise BadInput("data.uncarried=true is for balanced sums and differences")
        return self

    @property
    def operand_range(self) -> tuple[int, int]:
        return self.operands or ((2, 4) if self.task == "expression" else (2, 2))

    @property
    def space(self) -> Space:
        return Space(self.task, self.digits, self.operand_range, self.signs, self.depth)

    @property
    def supervised(self) -> Supervise:
        return self.supervise or ("all" if self.scratchpad else "answer")

    def codec(self) -> ArithmeticCodec:
        """The codec of drawn problems; files may need a wider one (see `load`)."""
        width = (self.width or self.digits[1]) if self.padded else None
        return ArithmeticCodec(self.task, self.reverse, width, self.operand_range[1], self.signs, self.scratchpad)

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return ArithmeticCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        if self.paths:
            return self._load_files(codec)
        own = self.codec()
        return Material(own, Part(self._training_rows(own, seed)), self.validation_part(own, seed), self._notes())

    def validation_part(self, codec: Codec, seed: int) -> Part:
        if self.paths:
            return self._load_files(codec).validation
        assert isinstance(codec, ArithmeticCodec)
        rows = max(1, min(VALIDATION_ROWS, self.instances // 8))
        return self.part(codec, draw_distinct(self.space, seed, rows, "validation"))

    def token_labels(self, codec: Codec, ids: Sequence[int]) -> Mapping[str, Sequence[str | None]]:
        assert isinstance(codec, ArithmeticCodec)
        return labels_of(codec, ids)

    def hypotheses(self, codec: Codec) -> Mapping[str, tuple[int, Hypothesis]]:
        assert isinstance(codec, ArithmeticCodec)
        return carry_hypotheses(codec)

    def _load_files(self, codec: Codec | None) -> Material:
        rows = read_rows(self.paths, self.task)
        if not rows:
            raise BadInput(f"{', '.join(map(str, self.paths))} has no rows")
        train, validation, notes = part_rows(rows)
        codec = codec if isinstance(codec, ArithmeticCodec) else codec_for([*train, *validation], self.codec())
        return Material(
            codec,
            Part(frame_texts(codec, checked_pairs(train, codec), self.supervised)),
            self._part(codec, checked_pairs(validation, codec)),
            (*self._notes(), *notes, *self._unread_steps(rows)),
        )

    def _unread_steps(self, rows: Sequence[Row]) -> tuple[str, ...]:
        if self.scratchpad or not any(row.steps for row in rows):
            return ()
        return ("the rows have steps, which are not trained on: --set scratchpad=true puts them before answers",)

    def _notes(self) -> tuple[str, ...]:
        if self.scratchpad and self.supervise == "answer":
            return (
                "the model sees steps but is never asked for them (supervise=answer with a scratchpad): "
                "it will not write them by itself; supervise=all trains the steps too",
            )
        return ()

    def _training_rows(self, codec: ArithmeticCodec, seed: int) -> Rows:
        if self.task in ("add", "subtract"):
            sums = draw_training_sums(self.space, seed, self.instances, self.balanced, self.uncarried)
            if not self.scratchpad:
                return frame_sums(codec, sums.operands, sums.counts, self.supervised)
            questions = sum_texts(self.task, *sums)
        else:
            questions = draw_training_texts(self.space, seed, self.instances)
        return frame_texts(codec, ((q, solve(self.task, q)) for q in questions), self.supervised)

    def part(self, codec: ArithmeticCodec, questions: Sequence[str]) -> Part:
        """Rows and questions of these problems with their right answers."""
        return self._part(codec, [(question, solve(self.task, question)) for question in questions])

    def _part(self, codec: ArithmeticCodec, pairs: Sequence[tuple[str, str]]) -> Part:
        return Part(frame_texts(codec, pairs, self.supervised), tuple(self._question(*pair) for pair in pairs))

    def _question(self, question: str, answer: str) -> Question:
        return Question(f"{question}=", answer, groups_of(self.task, question))

    def held_out(self, codec: Codec, split: str | None, n: int, seed: int) -> Part:
        """Problems that training never saw: the test share of the space, or what lies beyond it."""
        if self.paths:
            raise BadInput("this run was trained on files, so its scores need --data")
        if split not in (None, *HELD_OUT):
            raise BadInput(f'there is no split "{split}"{nearest(str(split), HELD_OUT)}')
        draw = self.out_of_distribution if split == "out_of_distribution" else self.test_questions
        return Part(Rows.frame(codec, []), draw(n, seed))

    def test_questions(self, n: int, seed: int) -> tuple[Question, ...]:
        """`n` distinct problems of the test share, drawn evenly (operands 0 .. 10^d-1); fewer in a small space."""
        if self.paths:
            raise BadInput("a run on own files has no drawn test problems: which ones it saw is not known")
        drawn = draw_distinct(self.space, seed, n, "test")
        return tuple(self._question(question, solve(self.task, question)) for question in drawn)

    def out_of_distribution(self, n: int, seed: int) -> tuple[Question, ...]:
        """`n` distinct problems beyond the training ones: one bracket deeper, or one or two digits longer."""
        codec, longest = self.codec(), self.digits[1]
        if self.task == "expression":
            deeper = self.depth[1] + 1
            space = replace(self.space, depth=(deeper, deeper))
        else:
            most = longest + 2 if codec.width is None else min(longest + 2, codec.width)
            if most == longest:
                raise BadInput(
                    f"numbers of more than {longest} digits do not fit into the padded width {codec.width}; "
                    f"a model that can be asked for them is trained with data.width={longest + 1} or more"
                )
            space = replace(self.space, digits=(longest + 1, most))
        drawn = draw_distinct(space, seed, n, None)
        return tuple(self._question(question, solve(self.task, question)) for question in drawn)

    def right(self, question: Question, answer: str) -> bool:
        """Exactly the answer; with a scratchpad that is the result after the steps."""
        return answer.replace(" ", "") == question.answer

    def baseline(self, questions: Sequence[Question]) -> Baseline:
        """The better of always saying the most common answer and of copying one operand, on these questions."""
        if not questions:
            return Baseline(name="most common answer", value=0.0)
        answer, times = Counter(question.answer for question in questions).most_common(1)[0]
        best = Baseline(name=f"most common answer ({answer})", value=times / len(questions))
        copies: Counter[int] = Counter()
        for question in questions:
            operands = operands_of(self.task, question.prompt.rstrip("="))
            copies.update(position for position, n in enumerate(operands) if str(n) == question.answer)
        for position, hits in sorted(copies.items()):
            if hits / len(questions) > best.value:
                best = Baseline(name=f"copy of operand {position + 1}", value=hits / len(questions))
        return best

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        """All rows of these files (of one split), with the answers that the files give."""
        if not isinstance(codec, ArithmeticCodec):
            raise BadInput("this run was not trained on arithmetic: its codec is of another kind")
        rows = read_rows(paths, codec.task)
        wanted = None if split is None else split_name(split)
        chosen = [row for row in rows if wanted is None or row.split == wanted]
        if not chosen:
            splits = ", ".join(sorted({str(row.split) for row in rows})) or "none"
            raise BadInput(
                f"{', '.join(map(str, paths))} has no rows"
                + (f" of split {split!r}; it has {splits}" if split else "")
            )
        return self._part(codec, checked_pairs(chosen, codec))
