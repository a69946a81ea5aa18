"""Sums modulo a number, one token a number: the task on which late generalisation was first studied."""

from linnet.domains.registry import Recipe, Registration

_OWN = "linnet.domains.modular"

REGISTRATION = Registration(
    settings=f"{_OWN}.data:ModularData",
    recipes={
        "modular": Recipe(
            f"{_OWN}.data:modular", "sums modulo 59, learned long after they are known", takes="minutes"
        ),
    },
)
