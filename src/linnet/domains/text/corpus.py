"""A corpus and its parts: which documents train, and which are held out.

The parts are streams that can be read again and again; the same settings give the same parts. A test part
(rows whose `split` column says so) is in neither of them. Documents are drawn as the stream goes by: neither the
sample nor the split needs the corpus in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from linnet.domains.text.finding import Source, find
from linnet.domains.text.sources import Passage, Reading, Stream, Tally, read_passages
from linnet.errors import BadInput, counted

TRAINING = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("test", "testing")
MARKS = 1 << 16  # documents decided at a time
SHORT = 10_000  # characters of training text from which a model learns hardly anything
ADVICE = (
    "a model of text begins with about 100,000 characters, such as a book: --data takes several files and folders"
)

Marks = Callable[[], Iterator[bool]]


def drawn(total: int, take: int, seed: int, purpose: int = 0) -> Iterator[bool]:
    """A mark for each of `total` documents, `take` of them true, each set of that size equally likely.

    `purpose` keeps draws of one seed apart.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, purpose]))
    while total:
        size = min(MARKS, total)
        here = int(rng.hypergeometric(take, total - take, size)) if 0 < take < total else min(take, size)
        block = np.zeros(size, bool)
        block[rng.choice(size, here, replace=False)] = True
        yield from block.tolist()
        total, take = total - size, take - here


class Parts(NamedTuple):
    """The streams of the two parts, how many characters train, and what a person should know about them."""

    train: Stream
    validation: Stream
    characters: int  # about so many, where documents are drawn
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Files, how they are read, and how they are divided."""

    names: tuple[Path, ...]
    reading: Reading
    sample: int | None = None
    share: float = 0.1
    how: Literal["shuffled", "tail"] = "shuffled"
    validation_names: tuple[Path, ...] = ()
    seed: int = 0

    def sources(self) -> tuple[Source, ...]:
        return find(self.names).sources

    def left_out(self) -> tuple[str, ...]:
        """What a person should know about the files that are not read."""
        return find((*self.names, *self.validation_names)).notes

    def everything(self, count: bool = False) -> tuple[Stream, int | None]:
        """All documents (or a sample) as one part, and about how many characters where those were counted."""
        if self.sample is None and not count:
            return self._all, None
        sizes = _Sizes()
        for passage in self._all(Tally()):
            sizes.add(passage._replace(splits=None))
        taken = min(self.sample or sizes.training, sizes.training)
        stream = _choosing(self._all, lambda: drawn(sizes.training, taken, self.seed, purpose=1), True)
        return stream, sizes.characters * taken // max(1, sizes.training)

    def divide(self) -> Parts:
        """Count what there is (one reading), and say which documents belong to which part."""
        tally, sizes = Tally(), _Sizes()
        for passage in self._all(tally):
            sizes.add(passage)
        self._refuse_unusable(tally, sizes)
        usable = sizes.training
        taken = min(self.sample or usable, usable)
        mean = sizes.characters / usable
        notes = [*self.left_out(), *tally.remarks()]
        if mean * taken < SHORT:
            notes.append(f"there are only {int(mean * taken):,} characters to learn from; {ADVICE}")
        if self.sample is not None:
            notes.append(f"{taken:,} of {usable:,} documents are used (sample)")
        used = self._sampled(usable, taken)
        undivided = sizes.training - sum(n for word, n in sizes.words.items() if word in TRAINING)
        if sizes.words and undivided:
            notes.append(f"{counted(undivided, 'document')} of no split are read as those of the split train")
        if self.validation_names or set(sizes.words) & set(VALIDATION):
            validation, notes_of_files = self._given_validation(sizes)
            return Parts(used, validation, int(taken * mean), (*notes, *notes_of_files))
        if taken == 1 or (self.how == "tail" and self.reading.documents == "file"):
            notes.append(f"the last {self.share:.0%} of the characters are held out for validation")
            characters = sum(len(text) for passage in used(Tally()) for text in passage.texts)
            boundary = math.floor(characters * (1 - self.share))
            return Parts(_cut(used, boundary, False), _cut(used, boundary, True), boundary, tuple(notes))
        held = min(taken - 1, max(1, round(taken * self.share)))
        notes.append(f"{held:,} of {taken:,} documents are held out for validation ({self.how})")

        def marks() -> Iterator[bool]:
            last = (i >= taken - held for i in range(taken))
            return drawn(taken, held, self.seed, purpose=2) if self.how == "shuffled" else last

        train, validation = (_choosing(used, marks, wanted) for wanted in (False, True))
        return Parts(train, validation, int((taken - held) * mean), tuple(notes))

    def _refuse_unusable(self, tally: Tally, sizes: _Sizes) -> None:
        if not tally.documents:
            nothing = f", and nothing but {counted(tally.empty, 'empty line')}" if tally.empty else ""
            size = f"{counted(tally.files, 'file')} with {counted(tally.stored_bytes, 'byte')}"
            raise BadInput(f"no documents in {', '.join(map(str, self.names))}: {size}{nothing}")
        if unknown := set(sizes.words) - {*TRAINING, *VALIDATION, *TEST}:
            raise BadInput(f'the split "{min(unknown)}" is none of train, validation and test')
        if not sizes.training:
            raise BadInput(f"no row of {self.names[0]} has the split train; there is {', '.join(sizes.words)}")
        if sizes.characters < 2:
            raise BadInput(f"{self.names[0]} holds 1 character, and half of it cannot be held out; {ADVICE}")

    def _given_validation(self, sizes: _Sizes) -> tuple[Stream, list[str]]:
        """The rows that a `split` column holds out, or else the files that are named for it."""
        if set(sizes.words) & set(VALIDATION):
            return lambda tally: _with_word(self._all(tally), VALIDATION), []
        sources, tally = find(self.validation_names).sources, Tally()
        if not sum(len(passage.texts) for passage in read_passages(sources, self.reading, tally)):
            raise BadInput("the validation part has no documents")
        notes = [f"validation files: {remark}" for remark in tally.remarks()]
        return lambda tally: read_passages(sources, self.reading, tally), notes

    def _all(self, tally: Tally) -> Iterator[Passage]:
        return read_passages(self.sources(), self.reading, tally)

    def _sampled(self, usable: int, taken: int) -> Stream:
        """The documents that training may see, all or those of the split train, or a sample of them."""

        def training(tally: Tally) -> Iterator[Passage]:
            return _with_word(self._all(tally), TRAINING)

        if taken == usable:
            return training
        return _choosing(training, lambda: drawn(usable, taken, self.seed, purpose=1), True)


class _Sizes:
    """Documents and characters by the word of their split."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.training = self.characters = 0

    def add(self, passage: Passage) -> None:
        for word in passage.splits or ():
            self.words[word] = self.words.get(word, 0) + 1
        kept = next(_with_word(iter([passage]), TRAINING), None)
        if kept is not None:
            # The pieces of a document that was cut count once, and stay in one part.
            self.training += len(kept.texts) - (passage.continues and self.training > 0)
            self.characters += sum(map(len, kept.texts))


def with_split(passages: Iterator[Passage], split: str) -> Iterator[Passage]:
    """Only the rows with this word in their `split` column; files without one are refused."""
    words = next((group for group in (TRAINING, VALIDATION, TEST) if split in group), (split,))
    for passage in passages:
        if passage.splits is None:
            raise BadInput(f'these files have no "split" column, so nothing in them is the split "{split}"')
        yield from _with_word(iter([passage]), words)


def _with_word(passages: Iterator[Passage], words: Sequence[str]) -> Iterator[Passage]:
    """The documents of these splits; those without a split are of the split train."""
    for passage in passages:
        splits = passage.splits or TRAINING[:1] * len(passage.texts)
        if (kept := passage.keep([word in words for word in splits])).texts:
            yield kept._replace(splits=None)


def _choosing(stream: Stream, marks: Marks, wanted: bool) -> Stream:
    """The documents whose mark is the wanted one."""

    def chosen(tally: Tally) -> Iterator[Passage]:
        left: Iterator[bool] = marks()
        mark: bool | None = None
        for passage in stream(tally):
            ongoing = [mark] if passage.continues and mark is not None else []
            drawn = [*ongoing, *itertools.islice(left, len(passage.texts) - len(ongoing))]
            mark = drawn[-1] if drawn else None
            if (kept := passage.keep([mark is wanted for mark in drawn])).texts:
                yield kept._replace(splits=None)

    return chosen


def _cut(stream: Stream, boundary: int, after: bool) -> Stream:
    """The characters before a boundary, or those after it."""

    def cut(tally: Tally) -> Iterator[Passage]:
        seen = 0
        for passage in stream(tally):
            texts = []
            for text in passage.texts:
                here = min(max(boundary - seen, 0), len(text))
                texts.append(text[here:] if after else text[:here])
                seen += len(text)
            if kept := [text for text in texts if text]:
                yield Passage(kept)

    return cut
