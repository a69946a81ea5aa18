"""How many facts captions state, and how many are true: by `judging`, which nothing is trained or searched on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linnet.domains.contract import Scored
from linnet.domains.series.captions import grammar, judging
from linnet.domains.series.captions.facts import KINDS
from linnet.intervals import Bootstrap, ratio_interval, wilson
from linnet.records import Baseline, CaptionRecord, Fact, Score

EXAMPLES = 6  # captioned series that a report draws
DIRECTIONS = {1: "up", -1: "down", 0: "no change"}
NOTHING = "the same caption for every series"
CONSTANT = (
    "there is no clear trend; there is no sudden jump; no season is visible; the maximum is reached late on; "
    "the minimum is reached early on; volatility is steady; both halves have the same mean."
)


@dataclass(frozen=True)
class Tally:
    """Statements of one caption by kind: true, false, and too close to call. A kind stated twice counts once."""

    true: frozenset[str]
    false: frozenset[str]
    unclear: frozenset[str]

    @classmethod
    def of(cls, text: str, numbers: judging.Numbers) -> Tally:
        found: dict[bool | None, set[str]] = {True: set(), False: set(), None: set()}
        for statement in judging.statements(text):
            if statement.says_something:
                found[judging.judge(statement, numbers)].add(statement.kind)
        wrong = frozenset(found[False])
        return cls(frozenset(found[True]) - wrong, wrong, frozenset(found[None]) - wrong - found[True])

    @property
    def decided(self) -> int:
        return len(self.true) + len(self.false)

    @property
    def stated(self) -> int:
        return self.decided + len(self.unclear)


def table(tallies: Sequence[Tally]) -> tuple[np.ndarray, np.ndarray]:
    """[captions, kinds]: whether a kind is stated truly, and whether it is stated and can be decided."""
    true = np.array([[kind in tally.true for kind in KINDS] for tally in tallies], float)
    false = np.array([[kind in tally.false for kind in KINDS] for tally in tallies], float)
    return true, true + false


def macro(true: np.ndarray, decided: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The share of true statements of each kind, averaged over the kinds that any caption states."""
    weights = np.ones(len(true)) if weights is None else weights
    sums, counts = weights @ true, weights @ decided
    shares = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return np.asarray(shares.sum(-1) / np.maximum((counts > 0).sum(-1), 1))


def fact_scores(texts: Sequence[str], numbers: Sequence[judging.Numbers]) -> Scored:
    """`facts_true` over all kinds and by kind, and `facts_said`, beside one caption for all series."""
    tallies = [Tally.of(text, one) for text, one in zip(texts, numbers, strict=True)]
    constant = [Tally.of(CONSTANT, one) for one in numbers]
    (true, decided), (plain_true, plain_decided) = table(tallies), table(constant)
    low, high = Bootstrap.draw(len(true)).share_interval(functools.partial(macro, true, decided))
    overall = Baseline(name=NOTHING, value=float(macro(plain_true, plain_decided)))
    value, note = float(macro(true, decided)), "mean of the kinds; a writer by rules has 1"
    scores = [Score(name="facts_true", value=value, n=len(texts), low=low, high=high, baseline=overall, note=note)]
    for index, kind in enumerate(KINDS):
        right, n = int(true[:, index].sum()), int(decided[:, index].sum())
        if n:
            counted = max(1.0, float(plain_decided[:, index].sum()))
            baseline = Baseline(name=NOTHING, value=float(plain_true[:, index].sum()) / counted)
            low, high = wilson(right, n)
            name = f"facts_true.kind={kind}"
            scores.append(Score(name=name, value=right / n, n=n, low=low, high=high, baseline=baseline))
    stated = np.array([tally.stated for tally in tallies], float)
    low, high = ratio_interval(stated, np.ones_like(stated))
    baseline = Baseline(name=NOTHING, value=float(np.mean([one.stated for one in constant])))
    scores.append(
        Score(name="facts_said", value=float(stated.mean()), n=len(stated), low=low, high=high, baseline=baseline)
    )
    return Scored(tuple(scores))


def examples(texts: Sequence[str], found: Sequence[np.ndarray]) -> tuple[CaptionRecord, ...]:
    """Series at equal distances in a part, each with its caption and the verdicts on it."""
    chosen = np.linspace(0, len(texts) - 1, min(EXAMPLES, len(texts))).astype(int)
    return tuple(
        CaptionRecord(
            id=f"series {row + 1}",
            text=texts[row],
            facts=facts_of(texts[row], found[row]),
            values=tuple(found[row]),
        )
        for row in chosen.tolist()
    )


def facts_of(text: str, values: np.ndarray) -> tuple[Fact, ...]:
    """Each statement with the verdict of the checker that scores."""
    numbers = judging.Numbers.of(values)
    return tuple(
        Fact(name=one.kind, text=in_words(one), true=judging.judge(one, numbers))
        for one in judging.statements(text)
        if one.says_something
    )


def in_words(statement: judging.Statement) -> str:
    """A statement as it was understood."""
    parts = ["not"] if statement.denied else []
    if statement.kind in ("season", "jump") and statement.direction == 0:
        parts.append("none")
    elif statement.direction is not None:
        parts.append(DIRECTIONS[statement.direction])
    if statement.period is not None:
        parts.append(f"period {statement.period}")
    if statement.amount is not None:
        parts.append(grammar.number(statement.amount))
    if statement.step is not None:
        parts.append(f"at step {statement.step}")
    return " ".join([*parts, statement.third]).strip()
