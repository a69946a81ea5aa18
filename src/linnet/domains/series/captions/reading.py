"""From a caption to the claims that it makes, for the reward: clauses are told apart and sorted by their words.

Wordings beyond those of `grammar` are read too, such as "does not rise", "the 37th value" or "about 1,240". A
clause that names no kind of fact makes no claim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from linnet.domains.series.captions.facts import Claim, Measures, Third, Verdict, check


def words(text: str) -> re.Pattern[str]:
    """Any of these words or phrases; a star stands for any ending, a comma parts phrases."""
    phrases = [phrase.strip().replace("*", r"\w*") for phrase in text.split(",")]
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b")


JOINT = re.compile(
    r",\s+(?:(?:and|but|so|with|then|yet)\s+)?|(?=\bnor\b)"
    r"|\s+(?:and|but|while|whereas|although|though|with|so|since|because|then)\s+|\s+around\s+(?=an?\s)"
)
STOP = re.compile(r"(?<!\d)[.!?](?=\s|$)|(?<=\d)[.!?](?=\s+\D|\s*$)|[;:]|,\s+which\s|,\s+(?=not\b)")
NEGATION = re.compile(r"\b(?:no|not|never|nothing|neither|without|lacks?|none|nor|hardly any|free of)\b|n't\b")
ORDINAL = r"(?!\s*(?:%|percent|st\b|nd\b|rd\b|th\b))"
AMOUNT = re.compile(r"(?<![\w.])([-–]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?)" + ORDINAL)
STEP = re.compile(
    r"\b(?:step|index|point|position|observation|sample|time|t\s*=|number)\s*#?\s*(\d+)"
    r"|\b(\d+)(?:st|nd|rd|th)\s+(?:value|step|point|observation|sample)"
)
ROUGHLY = r"(?:about |around |roughly )?"
UNIT = r"(?:step|point|value|sample|week|day|month|hour)s?"
PERIOD = re.compile(
    rf"\bperiod(?:icity)?\s+(?:of|is|at|about|around|close to|near|not|=| )*\s*{ROUGHLY}(\d+)"
    rf"|\bevery\s+{ROUGHLY}(\d+)\b|\b(\d+)[- ]{UNIT}\s+(?:cycle|period|season|pattern|oscillation|rhythm)"
    rf"|\bcycles?\s+of\s+{ROUGHLY}(\d+)"
    r"|\b(?:length|lag|season)\s+(?:of\s+)?(\d+)|(\d+)\s+steps"
)
NUMBER_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "ten": 10,
    "twelve": 12,
}
THIRDS: Sequence[tuple[Third, re.Pattern[str]]] = (
    ("middle", words("middle, halfway, half way, central*, centre, center, midway, mid")),
    ("early", words("early, first third, first value, start, beginning, opening, first part, onset")),
    (
        "late",
        words("late, last third, last value, final third, end, closing, final part, last part, towards the close"),
    ),
)
UP = words(
    "up, upward*, rise, rises, rising, rose, climb*, increas*, grow*, gain*, higher, above, exceed*, "
    "greater, lifted, raised, outperform*, stronger"
)
DOWN = words(
    "down, downward*, fall*, fell, declin*, decreas*, drop*, lower, below, sink*, lose, loses, losing, "
    "descend*, plunge*, plummet*, reduced, collapse*, weaker"
)
FLAT = words(
    "flat, level from, same, steady, stable, constant, equal*, unchanged, keep, keeps, as high as, as "
    "large, alike, on a par, no different, nowhere, evenly, neither"
)
LOUDER = words(
    "grow*, larger, noisier, more volatile, rise, rises, increas*, wider, widen*, louder, rougher, "
    "bigger, higher, up, more noise, more noisy, more scatter, more variable, more erratic"
)
QUIETER = words(
    "shrink*, smaller, calmer, less volatile, less noisy, less scatter*, less variable, less noise, less "
    "erratic, lessen*, fall*, decreas*, narrow*, quieter, smoother, settles, lower, down, declin*, calms, "
    "fade*, damp*, dies down, die down"
)
NOISE = words(
    "nois*, scatter*, volatil*, fluctuat*, calmer, calms, variab*, variance, spread, wobbl*, smoother, "
    "rougher, quieter, erratic, jitter*"
)
SEASON = words(
    r"cycl*, season*, repeat*, period, periods, periodic*, recurs*, recurr*, every \d+, oscillat*, regular "
    r"pattern, pattern, returns, rhythm*, comes round, come round"
)
JUMP = words(
    "sudden*, jump*, abrupt*, break, level shift*, all at once, step up, step down, steps up, steps down, upward "
    "step, downward step, no step, shift, shifts, at once, leap*, plunge*, plummet*, collapse*"
)
MAXIMUM = words(
    "peak*, maximum, highest, largest, strongest, warmest, the top, top value, top, max, high of, the "
    "high, high point, tops out, crest*, exceeds"
)
MINIMUM = words(
    "the low, a low, low of, low point, minimum, lowest, smallest, weakest, coldest, bottom*, trough*, "
    "min, never goes below"
)
HALVES = words("half, halves, midpoint")
TREND = words(
    "trend*, overall(?! level), direction, whole period, from start to end, from beginning to end, from end to "
    "end, whole record, whole series, drift*, tendency, in the long run, over time, slopes, path"
)
LEVEL = words("averag*, mean, typical*, lie around, level, hover*, centred, centered")
UPWARD = words("up, upward*, rise, rises, rising, climb*, higher, leap*, jump, jumps, raised, lifted")
MOVING = words(
    "rise, rises, rising, climb, climbs, fall, falls, falling, declining, declines, grows, flat, stable"
)
SIDED = words("up, down, upward, downward, drop, rise, fall")


def clauses(text: str) -> list[str]:
    plain = text.lower().replace("\N{MINUS SIGN}", "-").replace("half way", "halfway")
    for word, number in NUMBER_WORDS.items():
        plain = re.sub(rf"\b(every|period of|cycle of|the) {word}\b|\b{word}(?=[- ]step)", rf"\1 {number}", plain)
    sentences = [sentence.strip() for sentence in STOP.split(plain)]
    return [clause for sentence in sentences if sentence for clause in divided(sentence)]


def divided(sentence: str) -> list[str]:
    """The clauses of a sentence: it is cut at a comma or a conjunction between claims of two kinds."""
    cuts, begin, found = list(JOINT.finditer(sentence)), 0, []
    ends = [*(cut.start() for cut in cuts[1:]), len(sentence)]
    for cut, end in zip(cuts, ends, strict=False):
        before, after = claim_of(sentence[begin : cut.start()]), claim_of(sentence[cut.end() : end])
        if before is not None and after is not None and before.kind != after.kind:
            found.append(sentence[begin : cut.start()])
            begin = cut.end()
    return [*found, sentence[begin:]]


def read(text: str) -> tuple[Claim, ...]:
    """The claims of a caption, one for each clause that makes one, in their order."""
    return tuple(claim for clause in clauses(text) if (claim := claim_of(clause)) is not None)


def has(pattern: re.Pattern[str], clause: str) -> bool:
    return pattern.search(clause) is not None


def claim_of(clause: str) -> Claim | None:
    """The claim of one clause. The order decides where a clause has words of two kinds."""
    if has(NOISE, clause):
        return directed("volatility", clause, ("grows", LOUDER), ("shrinks", QUIETER), ("steady", FLAT))
    if has(MAXIMUM, clause):
        return extreme("maximum", clause)
    if has(MINIMUM, clause):
        return extreme("minimum", clause)
    if has(JUMP, clause):
        return jump(clause)
    if has(SEASON, clause) and "trend" not in clause and "whole period" not in clause:
        return season(clause)
    if has(HALVES, clause):
        return halves(clause)
    if has(TREND, clause):
        return directed("trend", clause, ("up", UP), ("down", DOWN), ("flat", FLAT))
    if has(LEVEL, clause) and amount_of(clause) is not None:
        return Claim("level", amount=amount_of(clause), negated=negated(clause))
    if moving(clause):
        return directed("trend", clause, ("up", UP), ("down", DOWN), ("flat", FLAT))
    return None


def moving(clause: str) -> bool:
    """Whether a clause without a word of any kind says that the series rises, falls or stays."""
    return STEP.search(clause) is None and amount_of(clause) is None and has(MOVING, clause)


def negated(clause: str) -> bool:
    return NEGATION.search(clause) is not None


def amount_of(clause: str) -> float | None:
    """The first number that is no step."""
    found = AMOUNT.search(STEP.sub(" ", clause))
    return None if found is None else float(found.group(1).replace(",", "").replace("–", "-"))


def first_number(found: re.Match[str] | None) -> int | None:
    return None if found is None else next(int(group) for group in found.groups() if group is not None)


def positioned(clause: str) -> tuple[int | None, Third | None]:
    """The step or the third that a clause names."""
    step = first_number(STEP.search(clause))
    third = None if step is not None else next((name for name, pattern in THIRDS if has(pattern, clause)), None)
    return step, third


def directed(kind: str, clause: str, *values: tuple[str, re.Pattern[str]]) -> Claim | None:
    """A claim whose value is named by words; without one, a negation says that there is no change."""
    named = next((value for value, pattern in values if has(pattern, clause)), None)
    level = values[-1][0]
    if named is None:
        return Claim(kind, level) if negated(clause) else None
    if re.search(
        r"\bno (?:(?!upward|downward)[a-z]+[- ]){0,2}(?:trend|change|drift|tendency)\b|\bneither\b|\bno different",
        clause,
    ):
        return Claim(kind, level)
    return Claim(kind, named, negated=negated(clause))


def extreme(kind: str, clause: str) -> Claim:
    step, third = positioned(clause)
    denied = negated(clause) and "exceed" not in clause  # "no value exceeds 5" says that 5 is the maximum
    return Claim(kind, step=step, third=third, amount=amount_of(clause), negated=denied)


def jump(clause: str) -> Claim | None:
    step, third = positioned(clause)
    side = "down" if has(DOWN, clause) else "up" if has(UPWARD, clause) else ""
    if negated(clause):
        stated = has(SIDED, clause)
        return Claim("jump", side, step=step, third=third, negated=True) if stated else Claim("jump", "none")
    return Claim("jump", side, step=step, third=third, amount=amount_of(clause)) if side else None


def season(clause: str) -> Claim | None:
    period = first_number(PERIOD.search(clause))
    if negated(clause):
        return Claim("season", "present", period=period, negated=True) if period else Claim("season", "none")
    return Claim("season", "present", period=period)


def halves(clause: str) -> Claim | None:
    """Which half is named first decides the direction."""
    found = directed("halves", clause, ("same", FLAT), ("higher", UP), ("lower", DOWN), ("same", FLAT))
    second, first = (
        re.search(words, clause) for words in (r"\b(?:second|later|latter)\b", r"\b(?:first|earlier)\b")
    )
    if (
        found is None
        or found.value == "same"
        or first is None
        or (second is not None and second.start() < first.start())
    ):
        return found
    return Claim("halves", "lower" if found.value == "higher" else "higher", negated=found.negated)


def verdicts(text: str, found: Measures) -> tuple[tuple[Claim, Verdict], ...]:
    """Each claim of a caption with whether it holds."""
    return tuple((claim, check(claim, found)) for claim in read(text))
