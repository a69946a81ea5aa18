"""Rewards and methods by name: found by entry points, made with their settings.

An entry point names a class, `module:Class`. Its settings are the fields of the dataclass that it is. The methods
of linnet itself are in `search.methods`.

A reward is called with a batch of answers, `(texts, ids, prompt)`: their texts and ids are the generated part
only, and it gives one number for each. It may have `bounds`, the least and the largest number that it gives, and
`prefix`, an upper limit for all answers that begin with some ids. One that is the log-probability of the searched
model itself has `own = True` and is not called.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from linnet.domains.registry import imported
from linnet.errors import BadInput, nearest, refuse_unknown
from linnet.search.methods import METHODS
from linnet.search.reward import LOGPROB, Reward, Score
from linnet.untrusted import checked

GROUPS = {"reward": "linnet.rewards", "method": "linnet.methods"}


@functools.cache
def offered(what: str) -> Mapping[str, str]:
    """The rewards or the methods that installed packages offer: `module:Class` by name."""
    points = sorted(entry_points(group=GROUPS[what]), key=lambda point: point.name)
    return {point.name: point.value for point in points}


def found(what: str, name: str) -> Any:
    """The class of a name, or what `module:name` stands for."""
    if name in offered(what):
        return imported(what, name, offered(what)[name])
    if ":" not in name:
        known = {*offered(what), *(METHODS if what == "method" else ())}
        raise BadInput(f'there is no {what} "{name}"{nearest(name, known)} (or give module:name)')
    return imported(what, name, name)


def made(what: str, name: str, settings: Mapping[str, Any]) -> Any:
    """The reward or the method of this name with these settings; a function that needs none as it is."""
    kind = found(what, name)
    if not isinstance(kind, type):
        if settings:
            raise BadInput(f"the {what} {name} is a function and has no settings ({', '.join(sorted(settings))})")
        if not callable(kind):
            raise BadInput(f"the {what} {name} is of the type {type(kind).__name__}, which cannot be called")
        return kind
    known = fields(kind)
    for key in settings:
        refuse_unknown(key, known, f"the {what} {name} has no setting")
    return checked(kind, dict(settings), f"the {what} {name}") if known else kind()


def fields(kind: type) -> Sequence[str]:
    """The settings of a class."""
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def text_settings(reward: str) -> Sequence[str]:
    """The settings of a reward that are text."""
    kind = found("reward", reward)
    known = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return [field.name for field in known if field.type in (str, "str")]


def score_of(name: str, settings: Mapping[str, Any] | None = None) -> Score:
    """The reward of this name with these settings, or the function that `module:function` names."""
    score: Score = made("reward", name, settings or {})
    return score


def reward_of(
    score: Score, called: Score, name: str, limits: tuple[float | None, float | None] = (None, None)
) -> Reward:
    """The reward under the contract of searches; `called` is how it is called, which may be the score itself.

    `limits` are the least and the largest number of a reward that declares none.
    """
    if getattr(score, "own", False):
        return LOGPROB
    least, most = getattr(score, "bounds", (None, None))
    least, most = (own if given is None else given for own, given in zip((least, most), limits, strict=True))
    return Reward(called, most=most, least=least, prefix=getattr(score, "prefix", None), name=f"the reward {name}")
