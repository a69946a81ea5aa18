"""All methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from linnet.errors import refuse_unknown
from linnet.search.methods.bandits import MCTS, Gumbel
from linnet.search.methods.contract import Method
from linnet.search.methods.diffusion import DTS
from linnet.search.methods.draws import BestOfN, Greedy, SoftBestOfN, WithoutReplacement
from linnet.search.methods.maxent import MaxEnt
from linnet.search.methods.particles import SMC
from linnet.search.methods.ranked import Beam, BestFirst

METHODS: Mapping[str, Method] = {
    "greedy": Greedy(),
    "beam": Beam(),
    "diverse_beam": Beam(groups=4),
    "best_of_n": BestOfN(),
    "soft_best_of_n": SoftBestOfN(),
    "without_replacement": WithoutReplacement(),
    "best_first": BestFirst(),
    "smc": SMC(),
    "mcts": MCTS(),
    "uct": MCTS(rule="uct", c=1.0, width=8),
    "puct": MCTS(),
    "gumbel": Gumbel(),
    "dts": DTS(),
    "dts_star": DTS(star=True),
    "maxent": MaxEnt(),
}


def named(name: str, **settings: Any) -> Method:
    """The method of this name with some of its settings changed."""
    refuse_unknown(name, METHODS, "there is no method")
    method = METHODS[name]
    known = [field.name for field in dataclasses.fields(method)]
    for key in settings:
        refuse_unknown(key, known, f"method {name} has no setting")
    return dataclasses.replace(method, **settings)
