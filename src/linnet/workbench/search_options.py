"""What a search is asked for: a reward, a method, a budget, a target; read and checked before any model is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from linnet.errors import BadInput, nearest, refuse_unknown
from linnet.search.budgets import PRESETS, WAVE, Budget, Preset
from linnet.search.methods import METHODS, Method
from linnet.search.named import fields, found, score_of, text_settings
from linnet.search.reward import Score
from linnet.search.steps import Target
from linnet.training.settings import parse_setting
from linnet.untrusted import checked

REWARD = "reward."
METHOD = "method."


@dataclass(frozen=True)
class SearchOptions:
    """The options of `search`; what is left out follows from the preset."""

    reward: str | Score
    method: str = "maxent"
    preset: str = "balanced"
    rollouts: int | None = None
    tokens: int | None = None  # a budget of forward tokens
    reward_calls: int | None = None
    seconds: float | None = None
    width: float | None = None  # end when the interval of the value is as narrow
    samples: int | None = None
    max_tokens: int | None = None
    temperature: float = 1.0  # of the law p; the samples are not cooled further
    seed: int = 0
    adaptive: bool = False  # rollouts go where the value is least certain
    settings: Sequence[str] = ()
    remark: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Further:
    """The settings of `--set` that belong neither to the method nor to the reward."""

    wave: int = WAVE
    memory: int = 768  # megabytes of keys and values
    processes: int = 1  # of the reward
    reward_seconds: float = 60.0
    least: float | None = None  # limits of a reward that declares none
    most: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    cut: str = "leaf"
    repeats: int = 0  # seeds of a comparison; 0: as many as it needs
    shown: int = 24  # nodes of the picture of the tree


FURTHER = tuple(one.name for one in dataclasses.fields(Further))


@dataclass(frozen=True)
class Plan:
    """Options that have been read."""

    options: SearchOptions
    preset: Preset
    further: Further
    reward: str
    score: Score
    reward_settings: dict[str, Any]
    method_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """The rollouts of the preset where no other limit is given."""
        given = self.options
        limits = (given.tokens, given.reward_calls, given.seconds)
        rollouts = given.rollouts
        if rollouts is None and all(limit is None for limit in limits):
            rollouts = self.preset.rollouts
        return Budget(rollouts, *limits, given.width, self.further.wave)

    @property
    def samples(self) -> int:
        return self.preset.samples if self.options.samples is None else self.options.samples

    def target(self, prompt: int, context: int) -> Target:
        """The law p after a prompt of so many tokens; a preset is cut at the context, and a wish is refused."""
        room, wanted = context - prompt + 1, self.options.max_tokens
        if wanted is None:
            wanted = max(1, min(self.preset.max_tokens, room))
        further = self.further
        options = {"top_k": further.top_k, "top_p": further.top_p, "min_p": further.min_p, "cut": further.cut}
        return Target(wanted, self.options.temperature, **options)  # type: ignore[arg-type]

    def method(self, name: str | None = None, *, strict: bool = True) -> Method:
        """The method with its settings; without `strict` those that it does not have are left out."""
        name = self.options.method if name is None else name
        settings = self.method_settings
        kind = type(METHODS[name]) if name in METHODS else found("method", name)
        known = fields(kind)
        wrong = next((key for key in settings if key not in known), None)
        if strict and wrong is not None:
            raise BadInput(f'method {name} has no setting "{wrong}"{nearest(wrong, (*known, *FURTHER))}')
        usual = dataclasses.asdict(METHODS[name]) if name in METHODS else {}
        chosen = {key: value for key, value in settings.items() if key in known}
        method: Method = checked(kind, usual | chosen, f"method {name}")
        return method


def plan_of(options: SearchOptions) -> Plan:
    """The options, each setting with what it belongs to."""
    refuse_unknown(options.preset, PRESETS, "there is no preset")
    if options.samples is not None and options.samples < 0:
        raise BadInput(f"samples is {options.samples}; it must be 0 or more")
    written = text_settings(options.reward) if isinstance(options.reward, str) else ()
    groups: dict[str, dict[str, Any]] = {REWARD: {}, METHOD: {}, "": {}}
    for setting in options.settings:
        key, value = parse_setting(setting)
        group = REWARD if key.startswith(REWARD) else "" if key in FURTHER else METHOD
        name = key.removeprefix(group)
        if group == REWARD and name in written and not isinstance(value, str):
            value = setting.partition("=")[2].strip()  # such as the pattern 1
        groups[group][name] = value
    further: Further = checked(Further, groups[""], "--set")
    if further.wave < 1 or further.memory < 1:
        raise BadInput("wave and memory must be at least 1")
    if further.repeats < 0 or further.shown < 0:
        raise BadInput("repeats and shown must be at least 0")
    if isinstance(options.reward, str):
        name, score = options.reward, score_of(options.reward, groups[REWARD])
    else:
        name, score = getattr(options.reward, "__name__", type(options.reward).__name__), options.reward
    return Plan(options, PRESETS[options.preset], further, name, score, groups[REWARD], groups[METHOD])
