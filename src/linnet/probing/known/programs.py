"""Known circuits: each a small program, the model that computes it, prompts, and the right answer at each step.

`sharpness` multiplies attention scores: at 40 attention is hard (other weights vanish in float32, and so does
the gradient), at 2 to 5 it is soft. Every prompt begins with `<begin>`.
Legend: n = prompts, T = positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnet.errors import refuse_unknown
from linnet.model.model import Model
from linnet.probing.known.assembly import Assembly, Circuit, Match, Neuron, Variable

HARD = 40.0
BEGIN, NOTHING = "<begin>", -1

Drawn = tuple[list[str], Sequence[str | None]]  # a prompt, and what follows each step
Draw = Callable[[np.random.Generator], Drawn]


@dataclass(frozen=True)
class KnownCircuit:
    """A model with known parts. `draw` gives prompts and, at each step, the right next token or None."""

    name: str
    tokens: tuple[str, ...]
    model: Model
    circuit: Circuit
    draw: Draw

    def prompts(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Ids [n, T], and the right next id at each step, -1 where nothing is predicted."""
        random, ids, answers = np.random.default_rng(seed), [], []
        for _ in range(n):
            prompt, wanted = self.draw(random)
            ids.append([self.tokens.index(token) for token in prompt])
            answers.append([NOTHING if token is None else self.tokens.index(token) for token in wanted])
        return torch.tensor(ids), torch.tensor(answers)

    def pairs(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Clean and corrupt prompts [n, T], and the step [n] of each pair at which their right answers differ."""
        random = np.random.default_rng(seed)
        found: list[tuple[Tensor, Tensor, int]] = []
        while len(found) < n:
            ids, answers = self.prompts(2, int(random.integers(1 << 30)))
            differ = ((answers[0] != answers[1]) & (answers >= 0).all(0)).nonzero()[:, 0]
            if len(differ):
                found.append((ids[0], ids[1], int(differ[int(random.integers(len(differ)))])))
        clean, corrupt, steps = zip(*found, strict=True)
        return torch.stack(clean), torch.stack(corrupt), torch.tensor(steps)


def known_circuit(name: str, sharpness: float = HARD, seed: int = 0) -> KnownCircuit:
    """The circuit of this name; one of `PROGRAMS`."""
    refuse_unknown(name, PROGRAMS, "there is no known circuit")
    assembly, draw = PROGRAMS[name](sharpness)
    return KnownCircuit(name, assembly.tokens, assembly.model(seed), assembly.circuit(), draw)


def letters(n: int) -> tuple[str, ...]:
    return tuple("abcdefgh"[:n])


def shifted(length: int, back: int) -> Tensor:
    """Scores [T, T]: 1 where the key stands `back` steps before the query, or is the first step."""
    scores = torch.zeros(length, length)
    for query in range(length):
        scores[query, max(0, query - back)] = 1
    return scores


def counting(assembly: Assembly, total: int) -> Match:
    """Give each token the weight 1/total, whatever the position, by leaving the rest to the first step."""
    scores = torch.zeros(assembly.length, assembly.length)
    for query in range(assembly.length):
        scores[query, 0] = math.log(total - query)
    return Match(assembly.position, assembly.position, scores)


def previous(sharpness: float) -> tuple[Assembly, Draw]:
    """The token before."""
    made = Assembly((BEGIN, *letters(6)), 10)
    back = Match(made.position, made.position, sharpness * shifted(10, 1))
    made.attend((0, 1), [back], made.token, made.out)

    def draw(random: np.random.Generator) -> Drawn:
        prompt = [BEGIN, *random.choice(letters(6), 9).tolist()]
        return prompt, [None, *prompt[:-1]]

    return made, draw


def induction(sharpness: float) -> tuple[Assembly, Draw]:
    """What came after the last time: a head copies the token before, a second one looks for it."""
    made = Assembly((BEGIN, *letters(8)), 11, layers=2)
    before = made.variable("before", len(made.tokens))
    back = Match(made.position, made.position, sharpness * shifted(11, 1))
    made.attend((0, 2), [back], made.token, before)
    same = Match(made.token, before, sharpness * torch.eye(len(made.tokens)))
    made.attend((1, 1), [same], made.token, made.out)

    def draw(random: np.random.Generator) -> Drawn:
        half = random.permutation(letters(8))[:5].tolist()
        return [BEGIN, *half, *half], [*[None] * 6, *half[1:], half[0]]

    return made, draw


def duplicate(sharpness: float) -> tuple[Assembly, Draw]:
    """Whether the token was there before: a head looks for it, and for the first step where it was not."""
    made = Assembly((BEGIN, *letters(6), "new", "seen"), 8)
    own = torch.zeros(8, 8)
    own[:, 0], own[range(8), range(8)] = 1.5 * sharpness, -6 * sharpness
    same = Match(made.token, made.token, 3 * sharpness * torch.eye(len(made.tokens)))
    values = made.one("seen").repeat(8, 1)
    values[0] = made.one("new")
    made.attend((0, 3), [same, Match(made.position, made.position, own)], made.position, made.out, values)

    def draw(random: np.random.Generator) -> Drawn:
        prompt = [BEGIN, *random.choice(letters(6), 7).tolist()]
        return prompt, [None, *("seen" if prompt[at] in prompt[:at] else "new" for at in range(1, 8))]

    return made, draw


def reverse(sharpness: float) -> tuple[Assembly, Draw]:
    """The letters backwards, after a bar."""
    made = Assembly((BEGIN, *letters(6), "|"), 10)
    scores = torch.zeros(10, 10)
    for step in range(4):
        scores[5 + step, 4 - step] = sharpness  # letters stand at 1 to 4, the bar at 5
    made.attend((0, 0), [Match(made.position, made.position, scores)], made.token, made.out)

    def draw(random: np.random.Generator) -> Drawn:
        word = random.choice(letters(6), 4).tolist()
        return [BEGIN, *word, "|", *word[::-1]], [*[None] * 5, *word[::-1], None]

    return made, draw


def sort(sharpness: float) -> tuple[Assembly, Draw]:
    """The letters in order, after a bar: a head looks for the least letter above the one just written."""
    made = Assembly((BEGIN, *letters(8), "|"), 11)
    scores = torch.full((10, 10), -20.0)
    scores[:, 0] = -12.0  # where no letter is above, the first step ends the list
    for query in range(1, 10):
        written = 0 if query == 9 else query  # after the bar, every letter is above
        for key in range(written + 1, 9):
            scores[query, key] = -float(key)
    made.attend((0, 2), [Match(made.token, made.token, sharpness * scores)], made.token, made.out)

    def draw(random: np.random.Generator) -> Drawn:
        word = random.permutation(letters(8))[:5].tolist()
        return [BEGIN, *word, "|", *sorted(word)[:4]], [None] * 6 + sorted(word)

    return made, draw


def histogram(sharpness: float) -> tuple[Assembly, Draw]:
    """How often the token was there so far: the weight of the first step falls with each equal token."""
    names = tuple("12345")
    made = Assembly((BEGIN, *letters(4), *names), 10)
    same = -2 * sharpness * (1 - torch.eye(len(made.tokens)))
    same[:, 0] = 0
    weight = made.variable("weight", 1)
    first = torch.eye(10)[:, :1]
    made.attend((0, 1), [Match(made.token, made.token, same)], made.position, weight, first)
    grid = [1 / (1 + count) for count in (5, 4, 3, 2, 1)]
    made.staircase(0, {"weight": (weight, torch.ones(1))}, grid, names[::-1])

    def draw(random: np.random.Generator) -> Drawn:
        word = random.choice(letters(4), 9).tolist()
        while max(map(word.count, word)) > 5:
            word = random.choice(letters(4), 9).tolist()
        return [BEGIN, *word], [None, *(str(word[: at + 1].count(token)) for at, token in enumerate(word))]

    return made, draw


def depth(sharpness: float) -> tuple[Assembly, Draw]:
    """How many brackets are open."""
    names = tuple("01234")
    made = Assembly((BEGIN, "(", ")", *names), 11)
    share = made.variable("share", 1)
    values = (made.one("(") - made.one(")"))[:, None]
    made.attend((0, 0), [counting(made, 12)], made.token, share, values)
    made.staircase(0, {"share": (share, torch.ones(1))}, [level / 12 for level in range(5)], names)

    def draw(random: np.random.Generator) -> Drawn:
        prompt, answers, level = [BEGIN], list[str | None]([None]), 0
        for _ in range(10):
            up = level == 0 or (level < 4 and random.random() < 0.5)
            level += 1 if up else -1
            prompt.append("(" if up else ")")
            answers.append(str(level))
        return prompt, answers

    return made, draw


def majority(sharpness: float) -> tuple[Assembly, Draw]:
    """Whether more ones or more zeros were there so far."""
    made = Assembly((BEGIN, "0", "1", "="), 11)
    share = made.variable("share", 1)
    values = (made.one("1") - made.one("0"))[:, None]
    made.attend((0, 2), [counting(made, 12)], made.token, share, values)
    made.staircase(0, {"share": (share, torch.ones(1))}, [-1 / 12, 0, 1 / 12], ("0", "=", "1"))
    return made, _of_bits(lambda ones, zeros: "1" if ones > zeros else "0" if zeros > ones else "=")


def parity(sharpness: float) -> tuple[Assembly, Draw]:
    """Whether an odd number of ones was there so far, by counting them."""
    made = Assembly((BEGIN, "0", "1"), 11)
    share = made.variable("share", 1)
    made.attend((0, 3), [counting(made, 12)], made.token, share, made.one("1")[:, None])
    grid, names = [count / 12 for count in range(11)], [str(count % 2) for count in range(11)]
    made.staircase(0, {"share": (share, torch.ones(1))}, grid, names)
    return made, _of_bits(lambda ones, zeros: str(ones % 2))


def _of_bits(answer: Callable[[int, int], str]) -> Draw:
    def draw(random: np.random.Generator) -> Drawn:
        bits = random.choice(("0", "1"), 10).tolist()
        counts = [bits[: at + 1] for at in range(10)]
        return [BEGIN, *bits], [None, *(answer(seen.count("1"), seen.count("0")) for seen in counts)]

    return draw


def adder(sharpness: float) -> tuple[Assembly, Draw]:
    """Three-digit sums, least significant digit first.

    Two heads fetch the digits of this column and two those of the column before; a feed-forward finds the carry
    from that column and the digit just written (9 and a 0 written means that a carry came in), a second one adds.
    """
    digits = tuple("0123456789")
    made = Assembly((BEGIN, *digits, "+", "="), 12, layers=2)
    column, before, carry = (made.variable(name, 1) for name in ("column", "before", "carry"))
    values = torch.tensor([[0.0], *[[float(digit)] for digit in range(10)], [0.0], [0.0]])
    for head, (first, back, into) in enumerate([(1, 0, column), (5, 0, column), (1, 1, before), (5, 1, before)]):
        scores = torch.zeros(12, 12)
        for step in range(4):  # operands stand at 1 to 3 and 5 to 7, the equals sign at 8
            digit = step - back
            scores[8 + step, first + digit if 0 <= digit < 3 else 0] = 4 * sharpness
        made.attend((0, head), [Match(made.position, made.position, scores)], made.token, into, values)
    written = made.one("0") / 2
    passed: dict[str, tuple[Variable, Tensor]] = {
        "before": (before, torch.ones(1)),
        "token": (made.token, written),
    }
    made.step(0, passed, (9.0, 9.5), (carry, torch.ones(1)))
    total = {"column": (column, torch.ones(1)), "carry": (carry, torch.ones(1))}
    made.staircase(1, total, [float(n) for n in range(20)], [digits[n % 10] for n in range(20)])

    def draw(random: np.random.Generator) -> Drawn:
        first, second = (int(n) for n in random.integers(0, 1000, 2))
        texts = [f"{first:03d}"[::-1], f"{second:03d}"[::-1], f"{first + second:04d}"[::-1]]
        return [BEGIN, *texts[0], "+", *texts[1], "=", *texts[2][:3]], [None] * 8 + list(texts[2])

    return made, draw


def pointer(sharpness: float) -> tuple[Assembly, Draw]:
    """The letter as many steps back as the number just read says: neurons find where, a head fetches."""
    made = Assembly((BEGIN, *letters(5), "1", "2", "3"), 10, layers=2)
    target = made.variable("target", 10)
    for step in range(4, 10):  # numbers stand behind four letters or more
        for back in range(1, 4):
            reads = ((made.position, torch.eye(10)[step]), (made.token, made.one(str(back))))
            made.neurons.append(Neuron(0, reads, -1.0, target, torch.eye(10)[step - back]))
    wanted = Match(target, made.position, 2 * sharpness * torch.eye(10))
    made.attend((1, 3), [wanted], made.token, made.out)

    def draw(random: np.random.Generator) -> Drawn:
        prompt, answers = [BEGIN], list[str | None]([None])
        for step in range(1, 10):
            number = step > 3 and prompt[-1] in letters(5) and random.random() < 0.5
            prompt.append(str(random.integers(1, 4)) if number else str(random.choice(letters(5))))
            answers.append(prompt[step - int(prompt[step])] if number else None)
        return prompt, answers

    return made, draw


def two_steps(sharpness: float) -> tuple[Assembly, Draw]:
    """What came after what came after the last time: induction, and from its result induction again."""
    made = Assembly((BEGIN, *letters(8)), 12, layers=3)
    before, after = (made.variable(name, len(made.tokens)) for name in ("before", "after"))
    back = Match(made.position, made.position, 2 * sharpness * shifted(12, 1))
    same = 2 * sharpness * torch.eye(len(made.tokens))
    made.attend((0, 0), [back], made.token, before)
    made.attend((1, 2), [Match(made.token, before, same)], made.token, after)
    made.attend((2, 1), [Match(after, before, same)], made.token, made.out)

    def draw(random: np.random.Generator) -> Drawn:
        row = random.permutation(letters(8))[:6].tolist()
        return [BEGIN, *row, *row[:5]], [*[None] * 7, *row[2:6], None]

    return made, draw


def balanced(sharpness: float) -> tuple[Assembly, Draw]:
    """Whether all brackets are closed, some are open, or one was closed that never was opened."""
    made = Assembly((BEGIN, "(", ")", "closed", "open", "broken"), 11, layers=2)
    share, below, broken = (made.variable(name, 1) for name in ("share", "below", "broken"))
    made.attend((0, 1), [counting(made, 12)], made.token, share, (made.one("(") - made.one(")"))[:, None])
    made.neurons.append(Neuron(0, ((share, torch.tensor([-12.0])),), 0.0, below, torch.ones(1)))
    first = torch.zeros(11, 11)
    first[:, 0] = 2 * sharpness
    flagged = Match(made.position, below, torch.full((11, 1), 4 * sharpness))
    made.attend((1, 0), [Match(made.position, made.position, first), flagged], below, broken)
    total = {"share": (share, torch.ones(1)), "broken": (broken, -1.5 * torch.ones(1))}
    made.staircase(1, total, [-1.0, 0.0, 1 / 12], ("broken", "closed", "open"))

    def draw(random: np.random.Generator) -> Drawn:
        brackets = random.choice(("(", ")"), 10, p=(0.6, 0.4)).tolist()
        levels = np.cumsum([1 if bracket == "(" else -1 for bracket in brackets])
        lowest = np.minimum.accumulate(levels)
        names = [
            "broken" if low < 0 else "open" if level else "closed"
            for low, level in zip(lowest, levels, strict=True)
        ]
        return [BEGIN, *brackets], [None, *names]

    return made, draw


_ALL = (previous, induction, duplicate, reverse, sort, histogram, depth, majority, parity, adder)
_LATER = (pointer, two_steps, balanced)  # written after the analyses
PROGRAMS: dict[str, Callable[[float], tuple[Assembly, Draw]]] = {made.__name__: made for made in _ALL + _LATER}
