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
from typing import Literal

import numpy as np

from linnet.domains.text.finding import Source, files, find, find_sources
from linnet.domains.text.sources import Passage, Reading, Tally, read_passages
from linnet.errors import BadInput

TRAINING = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("test", "testing")
MARKS = 1 << 16  # documents decided at a time
SHORT = 10_000  # characters of training text from which a model learns hardly anything
OVERLAP_LIMIT = 2_000_000  # held-out documents that are compared with the training part

ADVICE = (
    "a model of text begins with about 100,000 characters, such as a book: --data takes several files and folders"
)

Stream = Callable[[Tally], Iterator[Passage]]


@dataclass(frozen=True)
class Draw:
    """`take` of `total` documents, each set of that size equally likely."""

    total: int
    take: int
    seed: int
    purpose: int = 0  # keeps draws of one seed apart

    def __post_init__(self) -> None:
        if not 0 <= self.take <= self.total:
            raise BadInput(f"{self.take:,} documents cannot be taken from {self.total:,}")

    def marks(self) -> Iterator[bool]:
        """One mark a document, in the order of reading."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.purpose]))
        left, wanted = self.total, self.take
        while left:
            size = min(MARKS, left)
            here = int(rng.hypergeometric(wanted, left - wanted, size)) if 0 < wanted < left else min(wanted, size)
            block = np.zeros(size, bool)
            block[rng.choice(size, here, replace=False)] = True
            yield from block.tolist()
            left -= size
            wanted -= here


@dataclass(frozen=True)
class Last:
    """The last `take` of `total` documents."""

    total: int
    take: int

    def marks(self) -> Iterator[bool]:
        return (i >= self.total - self.take for i in range(self.total))


@dataclass(frozen=True)
class Parts:
    """The streams of the two parts, how large they are, and what a person should know about them."""

    train: Stream
    validation: Stream
    documents: tuple[int, int]
    characters: int  # of the training part; about so many, where documents are drawn
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
        return find_sources(self.names)

    def left_out(self) -> tuple[str, ...]:
        """What a person should know about the files that are not read."""
        return find((*self.names, *self.validation_names)).notes

    def everything(self, count: bool = False) -> tuple[Stream, int | None]:
        """All documents (or a sample) as one part, and about how many characters where those were counted."""
        if self.sample is None and not count:
            return lambda tally: read_passages(self.sources(), self.reading, tally), None
        tally, sizes = Tally(), _Sizes()
        for passage in read_passages(self.sources(), self.reading, tally):
            sizes.add(passage._replace(splits=None))
        total = sizes.training
        taken = total if self.sample is None else min(self.sample, total)
        marks = Draw(total, taken, self.seed, purpose=1)

        def stream(tally: Tally) -> Iterator[Passage]:
            return _marked(read_passages(self.sources(), self.reading, tally), marks.marks(), True)

        return stream, sizes.characters * taken // max(1, total)

    def divide(self) -> Parts:
        """Count what there is (one reading), and say which documents belong to which part."""
        tally, sizes = Tally(), _Sizes()
        for passage in read_passages(self.sources(), self.reading, tally):
            sizes.add(passage)
        if not tally.documents:
            raise BadInput(f"no documents in {', '.join(map(str, self.names))}: {_how_empty(tally)}")
        notes = [*self.left_out(), *tally.remarks()]
        held_out = self._by_word(sizes)
        usable = sizes.training
        if not usable:
            raise BadInput(f"no row of {self.names[0]} has the split train; there is {', '.join(sizes.words)}")
        taken = usable if self.sample is None else min(self.sample, usable)
        if self.sample is not None:
            notes.append(f"{taken:,} of {usable:,} documents are used (sample)")
        mean = sizes.characters / usable
        if sizes.characters < 2:
            raise BadInput(f"{self.names[0]} holds 1 character, and half of it cannot be held out; {ADVICE}")
        if mean * taken < SHORT:
            notes.append(f"there are only {int(mean * taken):,} characters to learn from; {ADVICE}")
        if self.validation_names or held_out:
            stream = held_out or self._other_files
            met = Tally()
            count = _count(stream, met)
            if not held_out:
                notes += [f"validation files: {said}" for said in met.remarks()]
            return Parts(self._sampled(usable, taken), stream, (taken, count), int(taken * mean), tuple(notes))
        if taken == 1 or (self.how == "tail" and self.reading.documents == "file"):
            notes.append(f"the last {self.share:.0%} of the characters are held out for validation")
            boundary = math.floor(_characters(self._sampled(usable, taken)) * (1 - self.share))
            before, after = self._cut(usable, taken, boundary, False), self._cut(usable, taken, boundary, True)
            return Parts(before, after, (taken, 1), boundary, tuple(notes))
        held = min(taken - 1, max(1, round(taken * self.share)))
        notes.append(f"{held:,} of {taken:,} documents are held out for validation ({self.how})")
        train, validation = (self._marked(usable, taken, held, wanted) for wanted in (False, True))
        return Parts(train, validation, (taken - held, held), int((taken - held) * mean), tuple(notes))

    def _read(self, tally: Tally) -> Iterator[Passage]:
        """The documents that training may see: all, or those of the split train."""
        return _with_word(read_passages(self.sources(), self.reading, tally), TRAINING)

    def _other_files(self, tally: Tally) -> Iterator[Passage]:
        return read_passages(find_sources(self.validation_names), self.reading, tally)

    def _by_word(self, sizes: _Sizes) -> Stream | None:
        """The rows that a `split` column holds out, where there are any."""
        if unknown := set(sizes.words) - {*TRAINING, *VALIDATION, *TEST}:
            raise BadInput(f'the split "{min(unknown)}" is none of train, validation and test')
        if not set(sizes.words) & set(VALIDATION):
            return None
        return lambda tally: _with_word(read_passages(self.sources(), self.reading, tally), VALIDATION)

    def _sampled(self, usable: int, taken: int) -> Stream:
        if taken == usable:
            return self._read
        return lambda tally: _marked(self._read(tally), Draw(usable, taken, self.seed, purpose=1).marks(), True)

    def _marked(self, usable: int, taken: int, held: int, wanted: bool) -> Stream:
        chosen = Draw(taken, held, self.seed, purpose=2) if self.how == "shuffled" else Last(taken, held)
        sampled = self._sampled(usable, taken)
        return lambda tally: _marked(sampled(tally), chosen.marks(), wanted)

    def _cut(self, usable: int, taken: int, boundary: int, after: bool) -> Stream:
        sampled = self._sampled(usable, taken)

        def stream(tally: Tally) -> Iterator[Passage]:
            place = 0
            for passage in sampled(tally):
                texts = []
                for text in passage.texts:
                    here = min(max(boundary - place, 0), len(text))
                    texts.append(text[here:] if after else text[:here])
                    place += len(text)
                if kept := [text for text in texts if text]:
                    yield Passage(kept)

        return stream


class _Sizes:
    """Documents and characters by the word of their split."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.training = self.characters = 0

    def add(self, passage: Passage) -> None:
        if passage.splits is None:
            # The pieces of a document that was cut count once, and stay in one part.
            self.training += len(passage.texts) - (passage.continues and self.training > 0)
            self.characters += sum(map(len, passage.texts))
            return
        for text, word in zip(passage.texts, passage.splits, strict=True):
            self.words[word] = self.words.get(word, 0) + 1
            if word in TRAINING:
                self.training += 1
                self.characters += len(text)


def _with_word(passages: Iterator[Passage], words: Sequence[str]) -> Iterator[Passage]:
    for passage in passages:
        if passage.splits is None:
            yield passage
        elif (kept := passage.keep([word in words for word in passage.splits])).texts:
            yield kept._replace(splits=None)


def with_split(passages: Iterator[Passage], split: str) -> Iterator[Passage]:
    """Only the rows with this word in their `split` column; files without one are refused."""
    words = next((group for group in (TRAINING, VALIDATION, TEST) if split in group), (split,))
    for passage in passages:
        if passage.splits is None:
            raise BadInput(f'these files have no "split" column, so nothing in them is the split "{split}"')
        yield from _with_word(iter([passage]), words)


def _marked(passages: Iterator[Passage], marks: Iterator[bool], wanted: bool) -> Iterator[Passage]:
    mark: bool | None = None
    for passage in passages:
        ongoing = [mark] if passage.continues and mark is not None else []
        drawn = [*ongoing, *itertools.islice(marks, len(passage.texts) - len(ongoing))]
        mark = drawn[-1] if drawn else None
        if (kept := passage.keep([mark is wanted for mark in drawn])).texts:
            yield kept._replace(splits=None)


def _count(stream: Stream, tally: Tally) -> int:
    count = sum(len(passage.texts) for passage in stream(tally))
    if not count:
        raise BadInput("the validation part has no documents")
    return count


def _characters(stream: Stream) -> int:
    return sum(len(text) for passage in stream(Tally()) for text in passage.texts)


def _how_empty(tally: Tally) -> str:
    if not tally.empty:
        return f"{files(tally.files)} with {tally.stored_bytes:,} bytes"
    lines = "empty line or row" if tally.empty == 1 else "empty lines or rows"
    what = f"nothing in {'it' if tally.files == 1 else 'them'} but {tally.empty:,} {lines}"
    return f"{files(tally.files)} with {tally.stored_bytes:,} bytes, and {what}"


def repeated(train: Stream, validation: Stream, held: int) -> str:
    """How many held-out documents also occur, word for word, in the training part."""
    if held > OVERLAP_LIMIT:
        return ""
    unseen: dict[int, int] = {}
    for passage in validation(Tally()):
        for text in passage.texts:
            unseen[hash(text)] = unseen.get(hash(text), 0) + 1
    found = 0
    for passage in train(Tally()):
        for text in passage.texts:
            if unseen:
                found += unseen.pop(hash(text), 0)
    if not found:
        return ""
    return f"{found:,} of the {held:,} validation documents also occur word for word in the training part"
