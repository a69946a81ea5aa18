"""How samples are drawn: the options of `generate`, and a check of their names and kinds."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypedDict

from linnet.errors import BadInput, nearest


class Options(TypedDict, total=False):
    """How samples are drawn; what is left out has its default."""

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
    logprobs: bool  # keep the log-probability of each token
    seed: int | None
    settings: Sequence[str]  # batch=64: rows that are computed together; lookup=8: tokens guessed at once
    precision: str | None
    names: Sequence[str]  # what errors call each prompt; "prompt 3" unless set
    pace: Callable[[Any], None] | None  # gets the `Pace` when all samples are there
    remark: Callable[[str], None] | None  # gets what a person should know, at once


WORDS: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_options(prompts: object, options: Mapping[str, Any]) -> None:
    """Refuse names that mean nothing here, and values of another kind: slips would change the question."""
    if prompts is not None:
        _check("prompts", prompts, Sequence[str])
    for name, value in options.items():
        if name not in _hints():
            raise BadInput(f'nothing is called "{name}" here{nearest(name, _hints())}')
        _check(name, value, _hints()[name])


@functools.cache
def _hints() -> Mapping[str, Any]:
    return typing.get_type_hints(Options)


def _check(name: str, value: object, hint: Any) -> None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if typing.get_origin(hint) is Sequence:
        _check_list(name, value, typing.get_args(hint)[0])
    elif typing.get_origin(hint) is Callable:
        if not callable(value):
            raise BadInput(f"{name} is {value!r}; it has to be a function")
    elif not _is(value, hint):
        raise BadInput(f"{name} is {value!r}; it has to be {WORDS[hint]}")


def _is(value: object, kind: type) -> bool:
    if kind in (str, bool):
        return isinstance(value, kind)
    return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)


def _check_list(name: str, value: object, kind: type) -> None:
    if isinstance(value, str | bytes):
        raise BadInput(f"{name} is the single text {value!r}; it has to be a list, such as [{value!r}]")
    if not isinstance(value, Iterable):
        raise BadInput(f"{name} is {value!r}; it has to be a list")
    if not isinstance(value, Sequence):
        raise BadInput(f"{name} is a {type(value).__name__}; it has to be a list")
    wrong = next((index for index, one in enumerate(value) if not _is(one, kind)), None)
    if wrong is not None:
        raise BadInput(
            f"{name} has {value[wrong]!r} at position {wrong + 1}; each of them has to be {WORDS[kind]}"
        )
