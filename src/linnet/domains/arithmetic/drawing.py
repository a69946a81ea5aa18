"""Drawing problems of a space, the same ones for the same seed on any machine, each part from its own share.

Sums and differences are drawn as arrays, other tasks one by one. A training part may be balanced: half of it is
uniform, a quarter has operand lengths drawn evenly, a quarter has a chain of columns that pass a carry (or borrow)
on, its length drawn evenly. With `uncarried`, one row of sixteen is not uniform: it has such columns, and no carry
starts in them.
Legend: rows = problems, k = largest operand count, w = largest number of digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from linnet.domains.arithmetic.columns import LONGEST_INT64, digit_counts, sum_texts
from linnet.domains.arithmetic.problems import OPERATORS, PartName, Space, hash_point, part_bounds, part_of
from linnet.errors import BadInput

STREAMS = {"train": 0, "validation": 1, "test": 2, "beyond": 3}  # one random stream for each use
TRIES = 5000  # draws in a row without a new problem after which a small space counts as used up


class Sums(NamedTuple):
    """Operands [rows, k] of sums or differences, and how many of each row's operands are there."""

    operands: np.ndarray
    counts: np.ndarray


def generator(seed: int, stream: str) -> np.random.Generator:
    if seed < 0:
        raise BadInput(f"a seed is a whole number from 0 on, not {seed}")
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]]))


def draw_training_sums(space: Space, seed: int, rows: int, balanced: bool, uncarried: bool = False) -> Sums:
    """So many sums of the training share; they may repeat, as small problems have to."""
    random, kept, have, fruitless = generator(seed, "train"), [], 0, 0
    while have < rows:
        drawn = _draw_sums(space, random, int((rows - have) * 1.3) + 64, balanced, uncarried)
        inside = drawn.operands[mask := _in_part(space.task, drawn, "train")], drawn.counts[mask]
        kept.append(inside)
        have += len(inside[1])
        fruitless = 0 if len(inside[1]) else fruitless + 1
        if fruitless > 20:
            raise _empty(space, "train")
    return Sums(
        np.concatenate([operands for operands, _ in kept])[:rows],
        np.concatenate([counts for _, counts in kept])[:rows],
    )


def draw_distinct(
    space: Space, seed: int, rows: int, part: PartName | None, balanced: bool = False, stream: str = ""
) -> list[str]:
    """Up to `rows` distinct questions of a part (None = of any), fewer where the space holds fewer."""
    random = generator(seed, stream or part or "beyond")
    if space.task in ("add", "subtract"):
        found = _distinct_sums(space, random, rows, part, balanced)
    else:
        found = _distinct_texts(space, random, rows, part)
    if not found and rows:
        raise _empty(space, part or "out-of-distribution")
    return found


def draw_training_texts(space: Space, seed: int, rows: int) -> list[str]:
    """So many questions of the training share of any task, possibly repeated."""
    random = generator(seed, "train")
    draw = question_maker(space, random)
    found: list[str] = []
    tried = 0
    while len(found) < rows:
        tried += 1
        question = draw()
        if part_of(space.task, question) == "train":
            found.append(question)
        elif tried > TRIES and not found:
            raise _empty(space, "train")
    return found


def _empty(space: Space, part: str) -> BadInput:
    return BadInput(
        f"the {part} part holds no problem of task {space.task!r} with digits {space.digits}, "
        f"operands {space.operands} and depth {space.depth}; allow more digits"
    )


def _distinct_texts(space: Space, random: np.random.Generator, rows: int, part: PartName | None) -> list[str]:
    draw = question_maker(space, random)
    found: dict[str, None] = {}
    passed: set[str] = set()
    fruitless = 0
    while len(found) < rows and fruitless < TRIES:
        question = draw()
        fruitless += 1
        if question in found or question in passed:
            continue
        if part is None or part_of(space.task, question) == part:
            found[question] = None
            fruitless = 0
        elif len(passed) < 1 << 20:
            passed.add(question)
    return list(found)


def _distinct_sums(
    space: Space, random: np.random.Generator, rows: int, part: PartName | None, balanced: bool
) -> list[str]:
    share = 1.0 if part is None else (part_bounds(part)[1] - part_bounds(part)[0]) / 2**64
    seen: set[tuple[int, ...]] = set()
    found: list[str] = []
    fruitless = 0
    while len(found) < rows and fruitless < 2:
        tries = int((rows - len(found)) / share * 1.2) + (TRIES if fruitless else 64)
        drawn = _draw_sums(space, random, tries, balanced)
        new = []
        for position, (row, count) in enumerate(zip(drawn.operands.tolist(), drawn.counts.tolist(), strict=True)):
            problem = tuple(row[:count])
            if problem not in seen:
                seen.add(problem)
                new.append(position)
        fresh = Sums(drawn.operands[new], drawn.counts[new])
        if part is not None and len(new):
            mask = _in_part(space.task, fresh, part)
            fresh = Sums(fresh.operands[mask], fresh.counts[mask])
        found += sum_texts(space.task, *fresh)
        fruitless = 0 if len(fresh.counts) else fruitless + 1
    return found[:rows]


def _in_part(task: str, sums: Sums, part: PartName) -> np.ndarray:
    """Which rows belong to a part: the same answer as `part_of` of their questions."""
    operands, counts = sums
    if task == "add":  # absent operands sort behind all others
        absent = np.arange(operands.shape[1]) >= counts[:, None]
        behind = (abs(operands).max(initial=0) if operands.size else 0) + 1
        operands = np.sort(np.where(absent, behind, operands), 1)
    operator = OPERATORS[task].encode()
    if operands.shape[1] == 2 and counts.min(initial=2) == 2:
        template = b"%d" + operator + b"%d"
        texts: Iterator[bytes] = (template % (a, b) for a, b in operands.tolist())
    else:
        texts = (text.encode() for text in sum_texts(task, operands, counts))
    points = np.frombuffer(b"".join([hash_point(text) for text in texts]), dtype=">u8")
    low, high = part_bounds(part)
    return np.asarray((points >= np.uint64(low)) & (points <= np.uint64(high)))


def _draw_sums(
    space: Space, random: np.random.Generator, rows: int, balanced: bool, uncarried: bool = False
) -> Sums:
    """About so many sums; those whose operands came out with too few digits are left out."""
    (shortest, w), (fewest, k) = space.digits, space.operands
    counts = random.integers(fewest, k + 1, rows)
    digits = random.integers(0, 10, (rows, k, w), dtype=np.int8)  # the least significant digit first
    if balanced:
        kind = random.integers(0, 16 if uncarried else 4, (rows, 1, 1))
        short, chained = (kind < 4, kind >= 11) if uncarried else (kind == 2, kind == 3)
        digits = np.where(short, _of_even_lengths(digits, shortest, random), digits)
        digits = np.where(chained, _with_chains(digits, space.task, random, uncarried), digits)
    numbers = _numbers(digits)
    if space.signs:
        numbers = np.where(random.integers(0, 2, (rows, k)) == 1, -numbers, numbers)
    there = np.arange(k) < counts[:, None]
    long_enough = ((digit_counts(numbers) >= shortest) | ~there).all(1)
    return Sums(numbers[long_enough], counts[long_enough])


def _numbers(digits: np.ndarray) -> np.ndarray:
    """The numbers [rows, k] of digits [rows, k, w]; Python integers where 64 bits are too few."""
    w = digits.shape[2]
    kind = np.int64 if w <= LONGEST_INT64 else object
    total = np.zeros(digits.shape[:2], kind)
    for position in range(w):
        total = total + digits[:, :, position].astype(kind) * 10**position
    return total


def _of_even_lengths(digits: np.ndarray, shortest: int, random: np.random.Generator) -> np.ndarray:
    """Cut each operand to a length drawn evenly, with a first digit that is not 0."""
    rows, k, w = digits.shape
    lengths = random.integers(shortest, w + 1, (rows, k, 1))
    cut = np.where(np.arange(w) < lengths, digits, 0)
    first = np.arange(w) == lengths - 1
    return np.where(first & (cut == 0) & (lengths > 1), random.integers(1, 10, cut.shape, dtype=np.int8), cut)


def _with_chains(digits: np.ndarray, task: str, random: np.random.Generator, uncarried: bool) -> np.ndarray:
    """Rewrite the second operand so that a carry (borrow) starts at some column and passes through several.

    With `uncarried` no carry starts in one chain of five, so that columns which would pass one on do not alone say
    that there is one: it comes from further below, or not at all.
    """
    rows, _, w = digits.shape
    start = random.integers(0, w, (rows, 1))
    length = random.integers(0, w + 1, (rows, 1))
    carried = random.integers(0, 5, (rows, 1)) > 0 if uncarried else np.ones((rows, 1), bool)
    first, second = digits[:, 0].copy(), digits[:, 1].copy()
    position = np.arange(w)
    starts = carried & (position == start) & (length > 0)
    passes = (position >= start + carried) & (position < start + length)
    spread = random.integers(0, 10, (rows, w), dtype=np.int8)
    if task == "add":
        first = np.where(starts & (first == 0), np.int8(1) + spread % 9, first)
        second = np.where(starts, 10 - first + spread % np.maximum(first, 1), second)
        second = np.where(passes, 9 - first, second)
    else:
        first = np.where(starts & (first == 9), spread % 9, first)
        second = np.where(starts, first + 1 + spread % np.maximum(9 - first, 1), second)
        second = np.where(passes, first, second)
    return np.concatenate([first[:, None], second[:, None], digits[:, 2:]], 1)


def question_maker(space: Space, random: np.random.Generator) -> Callable[[], str]:
    """A function that draws one question of a task that is not drawn as arrays."""
    pick = _picker(random)
    makers: dict[str, Callable[..., str]] = {
        "multiply": _product,
        "expression": _expression,
        "base": _conversion,
        "polynomial": _brackets_product,
    }
    return functools.partial(makers[space.task], space, pick)


Pick = Callable[[int], int]


def _picker(random: np.random.Generator) -> Pick:
    """`pick(n)` is an even draw from 0 .. n-1; for numbers of any length."""

    def stream() -> Iterator[float]:
        while True:
            yield from random.random(8192).tolist()

    draw = stream().__next__

    def pick(n: int) -> int:
        if n < 1 << 40:
            return int(draw() * n)
        return (pick(1 << 40) + (pick((n >> 40) + 1) << 40)) % n

    return pick


def _number(space: Space, pick: Pick, smallest: int = 0) -> int:
    """A length drawn evenly, then a number of that length, with a sign where there are signs."""
    shortest, longest = space.digits
    length = shortest + pick(longest - shortest + 1)
    low = max(smallest, 0 if length == 1 else 10 ** (length - 1))
    number = low + pick(10**length - low)
    return -number if space.signs and pick(2) else number


def _count(space: Space, pick: Pick) -> int:
    fewest, most = space.operands
    return fewest + pick(most - fewest + 1)


def _product(space: Space, pick: Pick) -> str:
    return "*".join(str(_number(space, pick)) for _ in range(_count(space, pick)))


def _conversion(space: Space, pick: Pick) -> str:
    shortest, longest = space.digits
    low = 1 if shortest == 1 else 10 ** (shortest - 1)
    return f"{low + pick(10**longest - low)} to {('binary', 'hex')[pick(2)]}"


def _brackets_product(space: Space, pick: Pick) -> str:
    a, b, c, d = (_number(space, pick, 1) for _ in range(4))
    return f"({a}+{b})({c}+{d})"


def _expression(space: Space, pick: Pick) -> str:
    """Numbers from 1 on, joined by + - *, with brackets nested exactly to a depth drawn evenly."""
    shallow, deep = space.depth
    depth = shallow + pick(deep - shallow + 1)
    low = 1 if space.digits[0] == 1 else 10 ** (space.digits[0] - 1)
    span = 10 ** space.digits[1] - low
    numbers = [
        str((low + pick(span)) * (-1 if space.signs and pick(2) else 1)) for _ in range(_count(space, pick))
    ]
    return _nested(numbers, depth, pick)


def _nested(numbers: list[str], depth: int, pick: Pick) -> str:
    """These numbers in order; an inner group carries the depth, a neighbouring one may get brackets too."""
    if depth == 0:
        return _joined(numbers, pick)
    n = len(numbers)
    if depth > n - 2:  # too few numbers for that many useful brackets: one pair goes around all
        return f"({_nested(numbers, depth - 1, pick)})"
    size = depth + 1 + pick(n - 1 - depth)
    start = pick(n - size + 1)
    group = f"({_nested(numbers[start : start + size], depth - 1, pick)})"
    before, after = numbers[:start], numbers[start + size :]
    sides = [
        f"({_joined(side, pick)})" if len(side) > 1 and pick(2) else _joined(side, pick)
        for side in (before, after)
    ]
    return _joined([text for text in (sides[0], group, sides[1]) if text], pick)


def _joined(texts: list[str], pick: Pick) -> str:
    return "".join(text if not position else "+-*"[pick(3)] + text for position, text in enumerate(texts))
