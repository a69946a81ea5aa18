"""Rationales as sentences: facts of a window in a few wordings, then the label; and back from text to claims.

`Gravity lies along y; the motion fades. Answer: SEATED.` A wording has one meaning, and is read by itself: a
clause that is none of them makes no claim, and a text without an answer has no label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from linnet.domains.series.captions.facts import Claim, Verdict
from linnet.domains.series.captions.grammar import capital, chosen, expansions
from linnet.domains.series.rationales.facts import AXES, Motion, check, true_claims

ANSWER = "Answer: "
WORDINGS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("strength", "still"): ("the device is nearly still", "there is hardly any motion"),
    ("strength", "gentle"): ("the motion is [gentle|moderate]", "the device moves gently"),
    ("strength", "strong"): ("the motion is [strong|vigorous]", "the device moves strongly"),
    ("rhythm", "present"): ("it repeats every {period} samples", "there is a rhythm of {period} samples"),
    ("rhythm", "none"): ("there is no [clear|steady] rhythm", "nothing repeats"),
    ("change", "grows"): ("the motion grows", "the second half is livelier"),
    ("change", "shrinks"): ("the motion fades", "the second half is calmer"),
    ("change", "steady"): ("the motion keeps its strength", "both halves are equally lively"),
    ("gravity", ""): ("gravity lies along {axis}", "the {axis} axis carries gravity"),
    ("turning", ""): ("it turns about {axis} above all", "most turning is about {axis}"),
    ("tilt", "changes"): ("the posture changes", "the device tilts"),
    ("tilt", "stays"): ("the posture stays", "the device keeps its posture"),
}
SLOTS = {"{period}": r"(?P<period>\d+)", "{axis}": r"(?P<axis>[xyz])"}


def _pattern(wording: str) -> re.Pattern[str]:
    text = re.sub(r"\[([^\]]*)\]", r"(?:\1)", wording)
    for slot, pattern in SLOTS.items():
        text = text.replace(slot, pattern)
    return re.compile(text)


PATTERNS = [(_pattern(wording), key) for key, wordings in WORDINGS.items() for wording in wordings]


def clause(claim: Claim, random: np.random.Generator) -> str:
    """The claim in one of its wordings."""
    axis = claim.value in AXES
    wordings = WORDINGS[claim.kind, "" if axis else claim.value]
    text = chosen(wordings[random.integers(len(wordings))], False, random)
    return text.replace("{axis}", claim.value).replace("{period}", str(claim.period))


def rationale(found: Motion, label: str, random: np.random.Generator, most: int) -> str:
    """At most so many true claims about a window in any order, and the label; without claims the label alone."""
    claims = true_claims(found)
    picked = random.permutation(len(claims))[:most]
    parts = [clause(claims[index], random) for index in picked]
    return f"{capital('; '.join(parts))}. {ANSWER}{label}." if parts else f"{ANSWER}{label}."


def read(text: str) -> tuple[Claim, ...]:
    """The claims of a rationale, in their order."""
    clauses = [part.strip() for part in re.split(r"[.;]", text.partition(ANSWER)[0].lower())]
    return tuple(claim for part in clauses if (claim := _claim(part)) is not None)


def _claim(part: str) -> Claim | None:
    for pattern, (kind, value) in PATTERNS:
        found = pattern.fullmatch(part)
        if found is not None:
            slots = found.groupdict()
            period = slots.get("period")
            return Claim(kind, slots.get("axis") or value, period=None if period is None else int(period))
    return None


def label_in(text: str, classes: Sequence[str]) -> str | None:
    """The label that a rationale ends with; None where it has none of these."""
    _, found, answer = text.rpartition(ANSWER)
    answer = answer.strip().removesuffix(".")
    return answer if found and answer in classes else None


def verdicts(text: str, found: Motion) -> tuple[tuple[Claim, Verdict], ...]:
    """Each claim of a rationale with whether it holds of the window."""
    return tuple((claim, check(claim, found)) for claim in read(text))


def every_wording(classes: Sequence[str]) -> Iterator[str]:
    """Texts that hold each word of the grammar in each of its forms."""
    yield from ("; ", ". ")
    for label in classes:
        yield from (f"{ANSWER}{label}.", f" {ANSWER}{label}.")
    for wordings in WORDINGS.values():
        for wording in wordings:
            for words in expansions(wording):
                for axis in AXES:
                    text = words.replace("{axis}", axis).replace("{period}", "")
                    yield from (f" {text}", capital(text))
