"""What may be said about samples, and a check that nothing else was: a slip would silently be another question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypedDict

from linnet.errors import BadInput, nearest
from linnet.workbench.pace import Pace


class Asked(TypedDict, total=False):
    """What may be said about samples besides their prompts."""

    n: int  # samples of each prompt
    max_tokens: int | None  # None: as far as the context goes
    temperature: float  # 0 is greedy; 1 unless set
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    stops: Sequence[str]  # a sample ends where one of these begins
    stop_ids: Sequence[int]
    choices: Sequence[str] | None  # a sample is one of these
    pattern: str | None  # a sample matches this regular expression
    seed: int | None
    settings: Sequence[str]  # batch=64: rows that are computed together
    checkpoint: int | None  # its step; None: the best
    device: str | None
    precision: str | None
    places: Sequence[str]  # what errors call each prompt; "prompt 3" unless said
    pace: Callable[[Pace], None] | None  # told when all samples are there
    remark: Callable[[str], None] | None  # told at once what a person should know


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _text(value: object) -> bool:
    return isinstance(value, str)


Kind = tuple[str, Callable[[object], bool]]
WHOLE: Kind = ("a whole number", _whole)
NUMBER: Kind = ("a number", _number)
TEXT: Kind = ("text", _text)
CALLED: Kind = ("a function", callable)
ONE: Mapping[str, Kind] = {
    **dict.fromkeys(("n", "max_tokens", "top_k", "seed", "checkpoint"), WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), NUMBER),
    **dict.fromkeys(("pattern", "device", "precision"), TEXT),
    **dict.fromkeys(("pace", "remark"), CALLED),
}
SEVERAL: Mapping[str, Kind] = {
    **dict.fromkeys(("stops", "choices", "settings", "places"), TEXT),
    "stop_ids": WHOLE,
}
NEEDED = ("n", "temperature", "repetition_penalty", "stops", "stop_ids", "settings", "places")  # None says nothing


def refuse_slips(prompts: object, asked: Mapping[str, Any]) -> None:
    """Refuse names that mean nothing here, and values of another kind than they stand for."""
    _refuse_list("prompts", prompts, TEXT)
    for name, value in asked.items():
        if name not in Asked.__annotations__:
            raise BadInput(f'nothing is called "{name}" here{nearest(name, Asked.__annotations__)}')
        if value is None and name not in NEEDED:
            continue
        if name in SEVERAL:
            _refuse_list(name, value, SEVERAL[name])
            continue
        kind, right = ONE[name]
        if not right(value):
            raise BadInput(f"{name} is {value!r}; it has to be {kind}")


def _refuse_list(name: str, given: object, kind: Kind) -> None:
    said, right = kind
    if isinstance(given, str | bytes):
        raise BadInput(f"{name} is the single text {given!r}; it has to be a list, such as [{given!r}]")
    if not isinstance(given, Iterable):
        raise BadInput(f"{name} is {given!r}; it has to be a list")
    if not isinstance(given, Sequence):
        raise BadInput(f"{name} is a {type(given).__name__}; it has to be a list")
    wrong = next((place for place, one in enumerate(given) if not right(one)), None)
    if wrong is not None:
        raise BadInput(f"{name} has {given[wrong]!r} at place {wrong + 1}; each of them has to be {said}")
