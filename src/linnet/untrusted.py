"""Reading files that somebody else may have written, JSON and TOML above all: limits first, then types.

Every failure is a `BadInput` that names the file, the field where it is about one, and what would be right.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import math
import re
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from linnet.errors import BadInput, LinnetError

MOST_BYTES = 1 << 28  # of a file that is read as a whole
LONGEST_LINE = 1 << 26
GZIP = b"\x1f\x8b"
MOST_TOML_BYTES = 1 << 20
MOST_DEPTH = 100
LARGEST = (1 << 31) - 1  # size of anything: widths, counts, ids
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Malformed(BadInput):
    """The text does not follow the grammar; other refusals are about what it says."""


class _Refused(Exception):
    """Raised inside of a parser, which does not know where the text is from."""


# --- files and texts -------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it is a gzip file, whatever its name."""
    try:
        with file.open("rb") as stored:
            packed = stored.peek(2)[:2] == GZIP
            with gzip.GzipFile(fileobj=stored) if packed else contextlib.nullcontext(stored) as stream:
                yield stream  # type: ignore[misc]
    except FileNotFoundError:
        raise BadInput(f"there is no file {file}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{file} is no whole gzip file ({error}); fetch or pack it again") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a text file without their ends; a byte order mark is no text."""
    with opened(file) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise BadInput(f"{file}, line {number} is longer than {LONGEST_LINE:,} bytes; is this text?")
            yield decoded(line, f"{file}, line {number}").rstrip("\r\n")


def read_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    with opened(file) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise BadInput(f"{file} has more than {most:,} bytes, which is the most that is read of such a file")
    return content


CONVERT = "if it is from Windows, convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"


def decoded(content: bytes, where: object) -> str:
    """The text of UTF-8 bytes, without a byte-order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: byte {error.start:,} is no UTF-8 text; {CONVERT}") from None


def read_text(file: Path, most: int = MOST_BYTES) -> str:
    return decoded(read_bytes(file, most), file)


def read_json(file: Path, most: int = MOST_BYTES) -> Any:
    return parse_json(read_bytes(file, most), file)


def read_object(file: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    return parse_object(read_bytes(file, most), file)


def read_toml(file: Path) -> dict[str, Any]:
    return parse_toml(read_text(file, MOST_TOML_BYTES), file)


# --- parsing ---------------------------------------------------------------------------------------


def parse_json(text: str | bytes, where: object, *, half_characters: bool = False) -> Any:
    """A JSON value. Halves of surrogate pairs, which no file can hold, are refused unless allowed.

    Integers may be of any size that Python reads, so whoever wants one looks at its range.
    """
    if isinstance(text, bytes):
        text = decoded(text, where)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip("\n") else ""
        raise Malformed(f"{where} is not JSON: {error.msg} ({line}column {error.colno})") from None
    except RecursionError:
        raise BadInput(f"{where} {_too_deep('JSON')}") from None
    except _Refused as error:
        raise BadInput(f"{where}: {error}") from None
    except ValueError:
        raise BadInput(f"{where} has an integer of thousands of digits") from None
    if text.count("[") + text.count("{") > MOST_DEPTH and deeper(value):
        raise BadInput(f"{where} {_too_deep('JSON')}")
    if not half_characters and "\\u" in text and SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput(f"{where} has half a surrogate pair (\\ud...), which is no character") from None
    return value


def parse_object(text: str | bytes, where: object) -> dict[str, Any]:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise BadInput(f"{where} holds {kind_of(value)}, not a JSON object")
    return value


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """A TOML table with integers of 64 bits."""
    if len(text) > MOST_TOML_BYTES:
        raise BadInput(f"{where} has more than {MOST_TOML_BYTES:,} characters")
    try:
        text.encode()
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Malformed(f"{where} is not valid TOML: {error}") from None
    except UnicodeEncodeError:
        raise BadInput(f"{where} has bytes that are no UTF-8 text") from None
    except RecursionError:
        raise BadInput(f"{where} {_too_deep('TOML')}") from None
    except ValueError as error:  # a date that does not exist, or an integer of thousands of digits
        raise BadInput(f"{where} is not valid TOML: {str(error).partition(';')[0]}") from None
    if deeper(tree):
        raise BadInput(f"{where} {_too_deep('TOML')}")
    for value in leaves(tree):
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise BadInput(f"{where}: the integer {shown(value)} has more than 64 bits")
    return tree


def _too_deep(kind: str) -> str:
    return f"nests {kind} more than {MOST_DEPTH} levels deep"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {shown(twice)} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def deeper(value: object, most: int = MOST_DEPTH) -> bool:
    """Whether lists and mappings nest more than so many levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        if not level:
            return False
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
    return bool(level)


def leaves(value: object) -> Iterable[object]:
    """All values that are no lists and no mappings."""
    left = [value]
    while left:
        last = left.pop()
        if isinstance(last, dict | list):
            left += _inside(last)
        else:
            yield last


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# --- types -----------------------------------------------------------------------------------------


def shown(value: object, most: int = 60) -> str:
    """A value for a message, cut where it is long."""
    if isinstance(value, str | bytes):
        value = value[: most + 1]
    elif isinstance(value, list | tuple | dict) and len(value) > 20:
        return f"{kind_of(value)} of {len(value):,}"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def kind_of(value: object) -> str:
    """What JSON and TOML call values of this type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "an integer"}
    names |= {float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


@contextlib.contextmanager
def refusing(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns what the parser of a library raises into bad input.

    Libraries in Rust raise bare exceptions, and where they panic, something that is no `Exception` at all.
    """
    try:
        yield
    except (LinnetError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, kinds or Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{what}: {shown_line(error)}") from error


def whole_number(text: str) -> int | None:
    """The integer that ASCII digits write, at most 40 of them; other digits, such as ², are none."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,40}", text) else None


def shown_line(error: object) -> str:
    """The first line of an error of a library, cut where it is long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]}..."


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: Any, value: object, where: object) -> Any:
    """The value as this type (a dataclass, a model, or such as `dict[str, int]`), or its mistakes by key."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        mistakes = "; ".join(mistake_text(mistake) for mistake in error.errors()[:3])
        raise BadInput(f"{where}: {mistakes}" if where else mistakes) from None


_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a table of keys and values",
    "model": "a table of keys and values",
    "dataclass": "a table of keys and values",
    "finite": "a finite number",
}
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def mistake_text(mistake: ErrorDetails, name: str | None = None) -> str:
    """One mistake of a validation in plain words, with its key."""
    key = ".".join(map(str, mistake["loc"])) if name is None else name
    kind, given, context = mistake["type"], shown(mistake["input"]), mistake.get("ctx", {})
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f'unknown key "{key}"'
    if kind == "value_error":
        text = mistake["msg"].removeprefix("Value error, ")
        return f"{key}: {text}" if key else text
    if kind in _BOUNDS:
        return f"{key} is {given}; it has to be {_BOUNDS[kind].format(**context)}"
    if kind == "literal_error":
        return f"{key} is {given}; it is one of {context['expected']}"
    if kind == "union_tag_invalid":
        name, tags = context["discriminator"][1:-1], context["expected_tags"]
        return f"{key}.{name} is '{context['tag']}'; it is one of {tags}"
    if kind == "union_tag_not_found":
        return f"{key}.{context['discriminator'][1:-1]} is missing"
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected:
        text = mistake["input"] if isinstance(mistake["input"], str) else ""
        form = f', such as ["{text}"]' if expected == "a list" and 0 < len(text) < 60 else ""
        return f"{key} is {given}, not {expected}{form}".lstrip()
    return f"{key} is {given}: {mistake['msg']}".lstrip()


@dataclass
class Fields:
    """Values by key, read with their types; `problems` gathers what is wrong, and `refuse` raises it."""

    source: str
    values: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        value = self._given(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if isinstance(value, int) and value > most:
            self._wrong(key, value, f"at most {most:,}")
        else:
            self._wrong(key, value, "a positive integer" if least == 1 else f"an integer from {least}")
        return least

    def number(self, key: str, default: float | None = None) -> float:
        value = self._given(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and _finite(value):
            return float(value)
        self._wrong(key, value, "a positive number")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        value = self._given(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value is True

    def choice(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """What linnet calls this choice."""
        value = self.values.get(key, default)
        if isinstance(value, str) and value in known:
            return known[value]
        self.problems.append(f"{key}={shown(value)} is not supported; linnet has {', '.join(known)}")
        return next(iter(known.values()))

    def text(self, key: str, default: str | None = None) -> str:
        value = self._given(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "text")
        return str(value)

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        return self._list(key, default, str, "a list of texts")

    def integers(self, key: str, default: list[int] | None = None) -> list[int]:
        return self._list(key, default, int, "a list of integers")

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            self._wrong(key, value, "a table of keys and values")
        return value if isinstance(value, Mapping) else {}

    def only(self, key: str, *accepted: Any) -> None:
        """Note a key whose value would change what the model computes."""
        if key in self.values and self.values[key] not in accepted:
            self.problems.append(f"{key}={shown(self.values[key])} is not supported")

    def wrong(self, *keys: str) -> bool:
        """Whether one of these is known to be wrong, so that what follows from it means nothing."""
        return any(problem.startswith(f"{key} is ") for problem in self.problems for key in keys)

    def refuse(self) -> None:
        if self.problems:
            raise BadInput(f"{self.source}: {'; '.join(dict.fromkeys(self.problems))}")

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _list(self, key: str, default: list[Any] | None, kind: type, right: str) -> list[Any]:
        value = self._given(key, default)
        if isinstance(value, list) and all(type(item) is kind for item in value):
            return value
        self._wrong(key, value, right)
        return []

    def _wrong(self, key: str, value: Any, right: str) -> None:
        self.problems.append(f"{key} is missing" if value is None else f"{key} is {shown(value)}, not {right}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
