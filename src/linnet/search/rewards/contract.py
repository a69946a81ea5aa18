"""What a reward may be, and how a search calls it.

A reward is called with a batch of answers, `(texts, ids, prompt)`: their texts and ids are the generated part
only, and it gives one number for each. Rewards are found by entry points of the group `linnet.rewards`
(`search.named`); any `module:function` will do, too. It may have `bounds`, the least and the largest number that
it gives, and `prefix`, an upper limit for all answers that begin with some ids. One that is the log-probability of
the searched model itself has `own = True` and is not called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linnet.search.named import made
from linnet.search.reward import LOGPROB, Reward, Score

Bounds = tuple[float, float]  # the least and the largest reward


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
