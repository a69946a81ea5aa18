"""How a reward is found by its name, and what it may say of itself.

A reward is called with a batch of answers, `(texts, ids, prompt)`: their texts and ids are the generated part
only, and it gives one number for each. Rewards are found by entry points of the group `linnet.rewards`, each of
which names a class whose fields are the settings of the reward; any `module:function` will do, too. It may have
`bounds`, the least and the largest number that it gives, and `prefix`, an upper limit for all answers that begin
with some ids.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from linnet.errors import BadInput, nearest
from linnet.search.reward import Reward, Score
from linnet.untrusted import checked

GROUP = "linnet.rewards"

Bounds = tuple[float, float]  # the least and the largest reward


@functools.cache
def named_rewards() -> Mapping[str, str]:
    """The rewards that installed packages offer: `module:Class` by name."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point.value for point in points}


def score_of(name: str, settings: Mapping[str, Any] | None = None) -> Score:
    """The reward of this name with these settings, or the function that `module:function` names."""
    settings = settings or {}
    if name in named_rewards():
        return _built(name, _imported(named_rewards()[name], name), settings)
    if ":" not in name:
        raise BadInput(f'there is no reward "{name}"{nearest(name, named_rewards())}, or give module:function')
    found = _imported(name, name)
    if isinstance(found, type):
        return _built(name, found, settings)
    if settings:
        raise BadInput(f"the reward {name} is a function and has no settings ({', '.join(sorted(settings))})")
    if not callable(found):
        raise BadInput(f"the reward {name} is of the type {type(found).__name__}, which cannot be called")
    score: Score = found
    return score


def reward_of(score: Score, called: Score, name: str) -> Reward:
    """The reward under the contract of searches; `called` is how it is called, which may be the score itself."""
    least, most = getattr(score, "bounds", (None, None))
    return Reward(called, most=most, least=least, prefix=getattr(score, "prefix", None), name=f"the reward {name}")


def _built(name: str, kind: type, settings: Mapping[str, Any]) -> Score:
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    unknown = next((key for key in settings if key not in fields), None)
    if unknown is not None:
        raise BadInput(f'the reward {name} has no setting "{unknown}"{nearest(unknown, fields)}')
    score: Score = checked(kind, dict(settings), f"the reward {name}") if fields else kind()
    return score


def _imported(value: str, name: str) -> Any:
    module, _, attribute = value.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module beside the person who names it
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise BadInput(f"the reward {name} cannot be imported: {error}") from None
    except AttributeError:
        raise BadInput(f"the reward {name} cannot be imported: {module} has no {attribute!r}") from None
