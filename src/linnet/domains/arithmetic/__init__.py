"""Arithmetic: problems that are drawn or read, split by a stable hash, and checked exactly."""

from linnet.domains.registry import Recipe, Registration

_OWN = "linnet.domains.arithmetic"

REGISTRATION = Registration(
    settings=f"{_OWN}.data:ArithmeticData",
    recipes={
        "arithmetic": Recipe(f"{_OWN}.recipes:arithmetic", "sums of up to three digits", takes="a minute or two"),
        "adder10": Recipe(f"{_OWN}.recipes:adder10", "sums of up to ten digits", takes="six minutes"),
        "carry5": Recipe(
            f"{_OWN}.recipes:carry5", "sums of five digits, most significant first", takes="four minutes"
        ),
        "pilot": Recipe(f"{_OWN}.recipes:pilot", "expressions with brackets to depth 2", takes="half an hour"),
        "tiny-arithmetic": Recipe(f"{_OWN}.recipes:tiny", "sums of two digits, for a first look", takes="seconds"),
    },
    verbs=f"{_OWN}.verbs:join",
)
