"""Captions for training: true claims about a series, chosen, put into many wordings and joined into sentences.

A wording is written with choices, `[climbs|rises] over the whole [series|record]`, and slots: {at} for a position,
{amount}, {period}. Every wording of one claim has one meaning, which `reading` and `judging` must find again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from linnet.domains.series.captions.facts import KINDS, Claim, Measures, Third, check

THIRDS: Mapping[Third, tuple[str, ...]] = {
    "early": ("in the first third", "near the start", "early on", "in the opening part"),
    "middle": ("in the middle third", "around the middle", "halfway through", "in the central part"),
    "late": ("in the last third", "near the end", "late on", "in the closing part"),
}
STEPS = ("at step {step}", "around step {step}", "close to step {step}", "by step {step}")
WHOLE = "[series|record|values|curve|line]"
WORDINGS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("trend", "up"): (
        f"the {WHOLE} [climb|rise] overall",
        "there is an upward trend",
        "the overall direction is [up|upward]",
        "a [clear|steady|long] rise [runs through|marks] the whole record",
        f"from start to end the {WHOLE} [drift|move] upward",
        "the trend [points|goes] up",
    ),
    ("trend", "down"): (
        f"the {WHOLE} [fall|decline] overall",
        "there is a downward trend",
        "the overall direction is [down|downward]",
        "a [clear|steady|long] decline [runs through|marks] the whole record",
        f"from start to end the {WHOLE} [drift|move] downward",
        "the trend [points|goes] down",
    ),
    ("trend", "flat"): (
        "there is no clear trend",
        "the overall direction is flat",
        f"from start to end the {WHOLE} [stay|remain] flat",
        "no trend [is visible|can be seen]",
        "the trend is flat",
    ),
    ("jump", "up"): (
        "a sudden jump up [comes|occurs|happens] {at}",
        "the level [jumps|steps] up {at}",
        "there is an upward [step|shift] {at}",
        "{at} the level shifts up [abruptly|at once]",
    ),
    ("jump", "down"): (
        "a sudden drop [comes|occurs|happens] {at}",
        "the level [drops|steps down] [abruptly|at once] {at}",
        "there is a downward [step|shift] {at}",
        "{at} the level shifts down [abruptly|at once]",
    ),
    ("jump", "none"): (
        "there is no [sudden|abrupt] [jump|break|step]",
        "no [break|level shift] [is visible|can be seen]",
        "the level never shifts abruptly",
    ),
    ("season", "present"): (
        "a cycle of {period} steps [repeats|returns]",
        "the pattern repeats every {period} steps",
        "there is a season with a period of {period}",
        "every {period} steps the same shape returns",
        "it is periodic with a period of {period} steps",
    ),
    ("season", "none"): (
        "there is no [repeating|regular] [pattern|cycle]",
        "no season [is visible|can be seen]",
        "nothing repeats regularly",
    ),
    ("maximum", ""): (
        "the [peak|maximum] [of {amount} |]is reached {at}",
        "it peaks [at {amount} |]{at}",
        "the highest value[, {amount},|] comes {at}",
        "the top[, {amount},|] is {at}",
    ),
    ("minimum", ""): (
        "the [low|minimum] [of {amount} |]is reached {at}",
        "it bottoms out [at {amount} |]{at}",
        "the lowest value[, {amount},|] comes {at}",
        "the bottom[, {amount},|] is {at}",
    ),
    ("volatility", "grows"): (
        "the [noise|scatter|volatility] grows",
        "fluctuations [get|become] larger in the second half",
        "the second half is [noisier|more volatile]",
        "volatility rises with time",
    ),
    ("volatility", "shrinks"): (
        "the [noise|scatter|volatility] shrinks",
        "fluctuations [get|become] smaller in the second half",
        "the second half is [calmer|less volatile]",
        "volatility falls with time",
    ),
    ("volatility", "steady"): (
        "the [noise|scatter|volatility] stays the same",
        "fluctuations keep their size",
        "both halves are equally noisy",
        "volatility is steady",
    ),
    ("level", ""): (
        "the [mean|average] is [about |near |]{amount}",
        "values [average|lie around] {amount}",
        "the typical level is [about |near |]{amount}",
        "on average it is {amount}",
    ),
    ("halves", "higher"): (
        "the second half [lies|is] higher than the first",
        "the mean of the second half is higher",
        "the later half is above the earlier [half|one]",
    ),
    ("halves", "lower"): (
        "the second half [lies|is] lower than the first",
        "the mean of the second half is lower",
        "the later half is below the earlier [half|one]",
    ),
    ("halves", "same"): (
        "both halves have the same mean",
        "the two halves lie at the same level",
        "the second half is as high as the first",
    ),
}
JOINS = ("; ", ", and ", ", while ", ". ", ". also, ", ", but ")
VERBS = ("climb", "rise", "drift", "move", "fall", "decline", "stay", "remain")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not np.isfinite(value):
        return "0"
    digits = 2 - int(np.floor(np.log10(abs(value))))
    rounded = round(value, digits)
    text = f"{rounded:.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def true_claims(found: Measures, random: np.random.Generator) -> list[Claim]:
    """One true claim of each kind that has one, with as much detail as chance has it."""
    return [claim for kind in KINDS for claim in _of_kind(kind, found, random) if check(claim, found) == "true"]


def _of_kind(kind: str, found: Measures, random: np.random.Generator) -> list[Claim]:
    if kind in ("maximum", "minimum"):
        steps = found.maxima if kind == "maximum" else found.minima
        amount = found.highest if kind == "maximum" else found.lowest
        return [_placed(Claim(kind, amount=amount if random.random() < 0.3 else None), steps[0], found.n, random)]
    if kind == "level":
        return [Claim(kind, amount=found.mean)]
    if kind == "season":
        return [Claim(kind, "present", period=found.period), Claim(kind, "none")]
    if kind == "jump":
        side = "up" if found.jump > 0 else "down"
        return [_placed(Claim(kind, side), found.jump_at, found.n, random), Claim(kind, "none")]
    return [Claim(kind, value) for name, value in WORDINGS if name == kind]


def _placed(claim: Claim, step: int, n: int, random: np.random.Generator) -> Claim:
    thirds: tuple[Third, ...] = ("early", "middle", "late")
    if random.random() < 0.5:
        return Claim(claim.kind, claim.value, step=step, amount=claim.amount)
    return Claim(claim.kind, claim.value, third=thirds[min(2, 3 * (step - 1) // n)], amount=claim.amount)


def clause(claim: Claim, random: np.random.Generator) -> str:
    """The claim in one of its wordings."""
    wordings = WORDINGS[claim.kind, claim.value]
    text = chosen(wordings[random.integers(len(wordings))], claim.amount is not None, random)
    text = agreeing(text)
    if claim.step is not None:
        text = text.replace("{at}", STEPS[random.integers(len(STEPS))].format(step=claim.step))
    elif claim.third is not None:
        named = THIRDS[claim.third]
        text = text.replace("{at}", named[random.integers(len(named))])
    amount = "" if claim.amount is None else number(claim.amount)
    return text.replace("{amount}", amount).replace("{period}", str(claim.period))


def chosen(wording: str, amount: bool, random: np.random.Generator) -> str:
    """A wording with one of each choice; those that state an amount are taken exactly where there is one."""

    def one(found: re.Match[str]) -> str:
        options = found.group(1).split("|")
        stating = [option for option in options if "{amount}" in option]
        if stating:
            return stating[0] if amount else ""
        return options[random.integers(len(options))]

    return re.sub(r"\[([^\]]*)\]", one, wording)


def expansions(wording: str) -> Iterator[str]:
    """A wording with every combination of its choices."""
    parts = [part.split("|") for part in re.split(r"\[([^\]]*)\]", wording)]
    yield from ("".join(words) for words in itertools.product(*parts))


def agreeing(text: str) -> str:
    """Verbs after a subject of one: `the series climb` becomes `the series climbs`."""
    return re.sub(rf"\bthe (series|record|curve|line) ({'|'.join(VERBS)})\b", r"the \1 \2s", text)


def write(claims: Sequence[Claim], random: np.random.Generator) -> str:
    """These claims as a caption, in any order."""
    order = random.permutation(len(claims))
    parts = [clause(claims[index], random) for index in order]
    text = parts[0]
    for part in parts[1:]:
        text += JOINS[random.integers(len(JOINS))] + part
    return sentences(text + ".")


def sentences(text: str) -> str:
    """With a capital letter at the start of each sentence."""
    return re.sub(r"(^|\. )([a-z])", lambda found: found.group(1) + found.group(2).upper(), text)


def caption(found: Measures, random: np.random.Generator, most: int = 5) -> str:
    """A caption of three to `most` true claims, fewer where fewer can be made; what is rare is preferred."""
    claims = true_claims(found, random)
    wanted = min(len(claims), int(random.integers(3, most + 1)))
    weights = np.array([0.6 if claim.value in ("none", "flat", "same", "steady") else 1.0 for claim in claims])
    picked = random.choice(len(claims), wanted, replace=False, p=weights / weights.sum())
    return write([claims[index] for index in picked], random)


def every_wording() -> Iterator[str]:
    """Texts that hold each word of the grammar in each of its forms: at the start, after a stop, and within."""
    for join in JOINS:
        yield from (join, sentences(join + "a"))
    positions = [*(name for named in THIRDS.values() for name in named), *STEPS]
    for wordings in WORDINGS.values():
        for wording in wordings:
            for words in expansions(wording):
                text = re.sub(r"\{\w+\}", "", agreeing(words)).strip()
                yield from (f" {text}", capital(text), f" {capital(text)}")
    for position in (position.replace("{step}", "") for position in positions):
        yield from (f" {position}", capital(position), f" {capital(position)}")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
