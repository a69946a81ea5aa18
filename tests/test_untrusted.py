"""The one reader of files from elsewhere: what is right comes back, and the rest is refused by name."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import untrusted
from linnet.errors import BadInput
from linnet.files import write_lines
from linnet.training.checkpoint import LoopState
from linnet.untrusted import (
    MOST_DEPTH,
    Fields,
    checked,
    deeper,
    lines_of,
    parse_json,
    parse_object,
    parse_toml,
    read_bytes,
    read_json,
    read_object,
    shown,
    whole_number,
)

WHOLE = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WHOLE
TREES = st.recursive(SIMPLE, lambda inner: st.lists(inner) | st.dictionaries(WHOLE, inner), max_leaves=12)
TABLES = st.dictionaries(
    WHOLE,
    st.recursive(
        st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | WHOLE,
        lambda inner: st.lists(inner) | st.dictionaries(WHOLE, inner),
        max_leaves=12,
    ),
)


@given(TREES)
@settings(max_examples=50)
def test_what_is_written_comes_back(tree: Any) -> None:
    for text in (json.dumps(tree), json.dumps(tree, ensure_ascii=False).encode(), "\ufeff".encode() + b" 1"):
        assert parse_json(text, "x") == (tree if text[-2:] != b" 1" else 1)


@given(TABLES)
@settings(max_examples=30)
def test_toml_comes_back(tree: dict[str, Any]) -> None:
    assert parse_toml(tomli_w.dumps(tree), "x") == tree


@given(st.binary(max_size=60) | st.text(alphabet='[]{}":,\\u0159dDeE.- nulltrefasNInity\n=', max_size=60))
@settings(max_examples=150)
def test_whatever_is_no_json_and_no_toml_is_bad_input(text: str | bytes) -> None:
    for read in (parse_json, parse_object):
        try:
            read(text, "file")
        except BadInput as error:
            assert str(error).startswith("file")
    if isinstance(text, str):
        try:
            parse_toml(text, "file")
        except BadInput as error:
            assert str(error).startswith("file")


@given(st.integers(0, 3 * MOST_DEPTH), st.sampled_from(["[", '{"a":']))
def test_nesting_has_a_limit_wherever_it_is_read(depth: int, opening: str) -> None:
    text = opening * depth + "1" + {"[": "]"}.get(opening, "}") * depth
    if depth > MOST_DEPTH:
        with pytest.raises(BadInput, match="more than 100 levels"):
            parse_json(text, "x")
    else:
        value = parse_json(text, "x")
        assert not deeper(value, depth) and (depth == 0 or deeper(value, depth - 1))


@pytest.mark.parametrize("read", [parse_json, parse_toml])
@pytest.mark.parametrize("depth", [1000, 100_000])
def test_depths_beyond_the_parsers_own_are_refused_too(read: Any, depth: int) -> None:
    with pytest.raises(BadInput, match="more than 100 levels"):
        read(("x = " if read is parse_toml else "") + "[" * depth + "]" * depth, "x")
    if read is parse_toml:
        with pytest.raises(BadInput, match="more than 100 levels"):
            read(".".join("a" * 500) + " = 1", "x")


def test_a_text_where_a_list_belongs_is_shown_as_one() -> None:
    with pytest.raises(BadInput, match=r"""names is 'ada', not a list, such as \["ada"\]"""):
        checked(dict[str, list[str]], {"names": "ada"}, "names.json")


def test_limits_and_odd_values_are_named(tmp_path: Path) -> None:
    for text, said in {
        '{"a": 1, "a": 2}': "the key 'a' is there twice",
        '{"a": ' + "1" * 5000 + "}": "an integer of thousands of digits",
        '{"a": "\\ud83d"}': "half a surrogate pair",
        "{": "is not JSON: Expecting",
        "": "is not JSON",
    }.items():
        with pytest.raises(BadInput, match=said):
            parse_json(text, "x")
    assert parse_json('"\\ud83d"', "x", half_characters=True) == "\ud83d"
    assert parse_json('"\\ud83d\\ude00"', "x") == "😀"
    for text, said in {
        "a = 9223372036854775808": "9223372036854775808 has more than 64 bits",
        "a = " + "1" * 5000: "is not valid TOML",
        "a = 2020-13-01": "is not valid TOML",
        "a = 1\na = 2": "is not valid TOML",
        "a = '\udc80'": "bytes that are no UTF-8",
    }.items():
        with pytest.raises(BadInput, match=said):
            parse_toml(text, "x")
    file = tmp_path / "f.json"
    for read in (read_json, read_object):
        with pytest.raises(BadInput, match=r"there is no file .*f.json"):
            read(file)
        with pytest.raises(BadInput, match="cannot be read: Is a directory"):
            read(tmp_path)
        with pytest.raises(BadInput, match="cannot be read: embedded null byte"):
            read(Path("a\0b"))
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(BadInput, match="f.json: byte 7 is no UTF-8"):
        read_json(file)
    file.write_bytes(b'{"a": 1}')
    with pytest.raises(BadInput, match="f.json has more than 7 bytes"):
        read_json(file, most=7)
    file.write_bytes(b"[1]")
    with pytest.raises(BadInput, match="f.json holds a list, not a JSON object"):
        read_object(file)


@given(st.dictionaries(st.sampled_from(["step", "best_loss", "best_step", "scaler", "data"]), TREES))
@settings(max_examples=40)
def test_values_get_their_types_or_are_named(tree: dict[str, Any]) -> None:
    try:
        loop = checked(LoopState, tree, "loop.json")
    except BadInput as error:
        assert str(error).startswith("loop.json: ") and any(key in str(error) for key in tree)
        return
    assert type(loop.step) is int and loop.step >= 0 and isinstance(loop.data, str)
    assert loop.best_loss is None or type(loop.best_loss) is float


@given(SIMPLE | st.lists(SIMPLE, max_size=3) | st.dictionaries(WHOLE, SIMPLE, max_size=3))
def test_fields_give_their_type_or_a_problem_with_the_key(value: Any) -> None:
    fields = Fields("config.json", {"key": value})
    whole, number = fields.integer("key"), fields.number("key")
    assert type(whole) is int and 1 <= whole < 1 << 31
    assert type(number) is float and 0 < number < math.inf
    assert type(fields.flag("key", True)) is bool and type(fields.text("key")) is str
    assert all(type(text) is str for text in fields.texts("key"))
    assert all(type(item) is int for item in fields.integers("key"))
    assert all(problem.startswith("key ") for problem in fields.problems)
    with pytest.raises(BadInput, match="config.json: key "):  # no value is of all these types
        fields.refuse()


@given(TREES)
@settings(max_examples=30)
def test_values_in_messages_are_short(value: Any) -> None:
    assert len(shown(value)) <= 64
    assert len(shown([value] * 1000)) <= 64
    assert shown(10**4000).endswith("...")


# Text files, plain or packed


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"))))
def test_lines_come_back_packed_or_not(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("lines")
    for name in ("plain.txt", "packed.txt.gz"):
        write_lines(folder / name, (f"{line}\n" for line in lines))
        found = list(lines_of(folder / name))
        assert found == [line.removeprefix("\ufeff") for line in lines]
    assert gzip.decompress((folder / "packed.txt.gz").read_bytes()) == (folder / "plain.txt").read_bytes()
    (folder / "packed.txt.gz").rename(folder / "misnamed.txt")
    assert read_bytes(folder / "misnamed.txt") == read_bytes(folder / "plain.txt")


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "LONGEST_LINE", 20_000)
    packed = gzip.compress(os.urandom(5000).hex().encode())
    (tmp_path / "cut").write_bytes(packed[:-100])
    (tmp_path / "damaged").write_bytes(packed[:2000] + b"\xff" * 100 + packed[2100:])
    (tmp_path / "latin").write_bytes(b"one\r\nna\xefve\n")
    (tmp_path / "endless").write_bytes(b"x" * 30_000)
    (tmp_path / "folder").mkdir()
    wrong = {
        "cut": "is no whole gzip file",
        "damaged": "is no whole gzip file",
        "latin": "line 2: byte 2 is no UTF-8",
        "endless": "line 1 is longer than",
        "folder": "cannot be read: Is a directory",
        "nowhere": "there is no file",
    }
    for name, why in wrong.items():
        with pytest.raises(BadInput, match=rf"{name}.*{why}|{why}.*{name}"):
            list(lines_of(tmp_path / name))


@given(st.integers(-(10**40) + 1, 10**40 - 1), st.text("0123456789-²٣ +._", max_size=6))
def test_a_whole_number_is_one_of_ascii_digits(number: int, text: str) -> None:
    assert whole_number(str(number)) == number
    assert whole_number("9" * 41) is None and whole_number(f"{text}²") is None
    assert (whole_number(text) is None) == (not text.removeprefix("-").isdigit() or not text.isascii())
