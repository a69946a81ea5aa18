"""The two checkers of captions beside each other, and on sentences of another hand.

    python -m bench.captions_checkers
    python -m bench.captions_checkers --series 400

The sentences (`tests/captions_cases.json`) were written from the definitions of `docs/guides/captions.md` alone.
Both readers got more words by the first half of each list, so the second half tells what they are worth.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.series.captions import facts, grammar, judging, making, reading

CASES = Path(__file__).parent.parent / "tests" / "captions_cases.json"
NAMES = ("kind", "value", "denied", "step", "third", "amount", "period")
DIRECTIONS: Mapping[str, tuple[str, str, str]] = {  # no change, up, down
    "trend": ("flat", "up", "down"),
    "jump": ("none", "up", "down"),
    "season": ("none", "present", ""),
    "volatility": ("steady", "grows", "shrinks"),
    "halves": ("same", "higher", "lower"),
}
VERDICTS = {True: "true", False: "false", None: "unclear"}
Claims = Counter[tuple[Any, ...]]


def claims_read(text: str) -> Claims:
    """What the reader of the reward finds."""
    return Counter(
        (one.kind, one.value, one.negated, one.step, one.third, one.amount, one.period)
        for one in reading.read(text)
    )


def claims_judged(text: str) -> Claims:
    """What the reader of the scores finds."""
    found: Claims = Counter()
    for one in judging.statements(text):
        value = "" if one.direction is None else DIRECTIONS[one.kind][one.direction]
        found[one.kind, value, one.denied, one.step, one.third or None, one.amount, one.period] += 1
    return found


def precision_and_recall(cases: Sequence[Mapping[str, Any]], read: Callable[[str], Claims]) -> tuple[float, float]:
    right = found = wanted = 0
    for case in cases:
        there: Claims = Counter(tuple(claim[name] for name in NAMES) for claim in case["claims"])
        given = read(case["text"])
        right, found, wanted = right + (there & given).total(), found + given.total(), wanted + there.total()
    return right / max(1, found), right / max(1, wanted)


def agreement(count: int, seed: int) -> tuple[float, int]:
    """How often both give the same verdict on true and false claims that both can decide, and of how many."""
    random = np.random.default_rng(seed)
    series = list(making.draw(count, seed))
    measures = [facts.measure(values) for values in series]
    agreed = decided = 0
    for index, values in enumerate(series):
        numbers = judging.Numbers.of(values)
        for other in (measures[index], measures[(index + 1) % count]):
            claims = grammar.true_claims(other, random)
            chosen = [claims[at] for at in random.permutation(len(claims))[:4]]
            text = grammar.write(chosen, random)
            for claim, statement in zip(reading.read(text), judging.statements(text), strict=True):
                pair = facts.check(claim, measures[index]), VERDICTS[judging.judge(statement, numbers)]
                if "unclear" not in pair:
                    decided, agreed = decided + 1, agreed + (pair[0] == pair[1])
    return agreed / decided, decided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    share, decided = agreement(given.series, given.seed)
    print(f"the two agree on {share:.4f} of {decided:,} claims that both decide")
    stored = json.loads(CASES.read_text(encoding="utf-8"))
    for name, cases in stored.items():
        half = len(cases) // 2
        for part, chosen in (("used", cases[:half]), ("not used", cases[half:])):
            for reader, read in (("reward", claims_read), ("scores", claims_judged)):
                precision, recall = precision_and_recall(chosen, read)
                print(f"{name}, {part}, reader of the {reader}: precision {precision:.3f}, recall {recall:.3f}")


if __name__ == "__main__":
    main()
