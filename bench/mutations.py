"""Mutations of files by their format: odd values, names and sizes, and bytes that were lost or changed."""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import io
import json
import math
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP, DIGITS, HALF, HUGE = "@deep", "@digits", "@half", "@huge"  # stand for what no writer of JSON writes
RAW = {DEEP: "[" * 3000 + "]" * 3000, DIGITS: "9" * 5000, HALF: '"\\ud800"', HUGE: "1e999"}
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    1.5,
    -0.0,
    1e29,
    math.nan,
    math.inf,
    2**31,
    2**40,
    2**62,
    2**63,
]
ODD += [10**30, "", "a", "²", "\0", "../x", "/dev/null", "<end>", [], {}, [None], [1, "a"], {"a": 1}, [[[1]]]]
ODD += ["x" * 5000, "1e5", "true", [0] * 300, *RAW]
TOML = [
    "",
    "0",
    "-1",
    "1",
    "2",
    "1.5",
    "inf",
    "nan",
    "1e29",
    "true",
    "[]",
    "{}",
    '""',
    '"a"',
    "2020-01-01",
    "[[1], 2]",
]
TOML += ["[1, 2, 3]", '["a"]', "{a = 1}", '"\\u0000"', '"' + "x" * 5000 + '"', RAW[DIGITS], RAW[DEEP], "10000000"]
TOML += [str(2**power) for power in (20, 31, 40, 62, 63)]
INTEGERS = [0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


def bytes_of(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = (
            draw.randrange(len(data) + 1) if draw.random() < 0.5 else min(len(data), int(draw.expovariate(1 / 60)))
        )
        match draw.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = draw.choice(
                    [b"\xff", b"\0", b'"', b"\n", b"{", b"[", b",", b"\xed\xa0\x80", b"9" * 30]
                )
            case 3:
                del data[at : at + draw.choice([1, 2, 8, 100])]
            case 4:
                data[at:at] = data[at : at + draw.choice([1, 8, 200])]
            case 5:
                data[at : at + 8] = struct.pack("<Q", draw.choice(INTEGERS))
            case 6:
                data[at : at + 4] = struct.pack("<I", draw.choice(INTEGERS) & 0xFFFFFFFF)
    return bytes(data)


def tree_of(tree: Any, draw: random.Random) -> Any:
    """A tree of JSON in which one or a few places hold something odd."""
    root = [json.loads(json.dumps(tree))]
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places: list[tuple[Any, Any]] = []
        left: list[Any] = [root]
        while left:
            node = left.pop()
            inner = list(node.items() if isinstance(node, dict) else enumerate(node))
            places += [(node, key) for key, _ in inner[:200]]
            left += [value for _, value in inner[:200] if isinstance(value, dict | list)]
        node, key = draw.choice(places)
        match draw.randrange(8):
            case 0 if node is not root:
                del node[key]
            case 1 if isinstance(node, dict):
                node[draw.choice(["a", "", "²", f"{key}_", str(key).upper(), "__metadata__"])] = node.pop(key)
            case 2:
                node[key] = [node[key]] if draw.random() < 0.5 else {"a": node[key]}
            case 3 if isinstance(node, list) and node is not root:
                node.insert(key, draw.choice([node[key], copy.deepcopy(draw.choice(ODD))]))
            case 4 if isinstance(node[key], int | float):
                node[key] = draw.choice([-1, 0.5, 2, 1000, 2**33]) * node[key]
            case _:
                node[key] = copy.deepcopy(draw.choice(ODD))
    return root[0]


def json_of(content: bytes, draw: random.Random) -> bytes:
    text = json.dumps(tree_of(json.loads(content), draw))
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    if draw.random() < 0.05 and (keys := re.findall(r'"\w+":', text)):
        text = text.replace("{", "{" + draw.choice(keys) + " 0, ", 1)
    return text.encode(draw.choice(["utf-8"] * 12 + ["utf-16", "utf-8-sig", "utf-32"]), "surrogatepass")


def numbers_of(content: bytes, draw: random.Random) -> bytes:
    """Other numbers in a file of numbers, which keeps its length."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 3])):
        size = draw.choice([1, 2, 4, 8])
        at = draw.randrange(max(1, len(data) // size)) * size
        given = draw.choice(
            [bytes(size), b"\xff" * size, bytes(data[at - size : at]), bytes([7, *bytes(size - 1)])]
        )
        data[at : at + size] = given[: len(data) - at]
    return bytes(data[: len(content)])


def rows_of(content: bytes, draw: random.Random) -> bytes:
    """Rows that are valid by themselves, and make an odd file together: few, repeated, in another order, alike."""
    lines = content.splitlines()
    first = next((i + 1 for i, line in enumerate(lines) if line.strip() == b"@data"), int(lines[0][:1].isalpha()))
    head, rows = lines[:first], lines[first:]
    for _ in range(draw.choice([1, 1, 2])):
        match draw.randrange(6):
            case 0:
                rows = draw.sample(rows, min(len(rows), draw.choice([1, 2, 3, 5, len(rows) // 2 + 1])))
            case 1:
                rows = rows[: draw.choice([1, 2, 3, len(rows) // 2 + 1])] * draw.choice([1, 2, 3])
            case 2:
                rows = draw.choice([sorted(rows), rows[::-1], draw.sample(rows, len(rows))])
            case 3:
                rows[draw.randrange(len(rows))] = draw.choice(rows)
            case _:
                rows = _alike(rows, draw)
    return b"\n".join([*head, *rows]) + b"\n"


def _alike(rows: list[bytes], draw: random.Random) -> list[bytes]:
    """One column is scaled, emptied, or has the same value in all rows or in some."""
    if rows[0].startswith(b"{"):
        objects = [json.loads(row) for row in rows]
        key, change = draw.choice(sorted(objects[0])), _change_of(draw)
        changed = [
            row | {key: change(row[key], draw.choice(objects)[key])} if key in row and draw.random() < 0.9 else row
            for row in objects
            if key in row or draw.random() < 0.5
        ]
        return [json.dumps(row).encode() for row in changed] or rows
    separator = next((mark for mark in (b",", b":", b" ") if mark in rows[0]), b" ")
    cells = [row.split(separator) for row in rows]
    at, change = draw.randrange(len(cells[0])), _change_of(draw)
    for row in cells:
        if at < len(row):
            row[at] = str(change(row[at].decode(), draw.choice(cells)[-1].decode())).encode()
    return [separator.join(row) for row in cells]


def _change_of(draw: random.Random) -> Callable[[Any, Any], Any]:
    """What becomes of a value, given one of another row."""
    constant = draw.choice(["", 0, 1, "a", 1e9, -1, None, "2024-05-01T00:00:00Z"])
    factor = draw.choice([0, -1, 1e-9, 1e9, 1e300, 0.5])
    share = draw.choice([0.1, 0.5, 1])

    def change(value: Any, other: Any) -> Any:
        if draw.random() > share:
            return value
        with contextlib.suppress(ValueError, TypeError):
            return float(value) * factor if constant in ("", "a") else constant
        return other if constant is None else value if factor == 0 else constant

    return change


def lines_of(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return rows_of(content, draw)
    lines = content.splitlines()
    for at in [draw.randrange(len(lines)) for _ in range(draw.choice([1, 1, 3, len(lines)]))]:
        lines[at] = json_of(lines[at], draw) if draw.random() < 0.8 else bytes_of(lines[at], draw)
    return b"\n".join(lines[: draw.choice([len(lines)] * 5 + [0, 1, 2])]) + b"\n"


def toml_of(content: bytes, draw: random.Random) -> bytes:
    lines = content.decode().splitlines()
    for at in draw.sample(range(len(lines)), min(len(lines), draw.choice([1, 1, 2, 4]))):
        key, equals, value = lines[at].partition(" = ")
        odd = draw.choice(TOML)
        lines[at] = draw.choice(
            [f"{key} = {odd}"] * 6 + [f"{key}_ = {value}", "", f"{key}.a = {odd}", lines[at] * 2]
        )
    return "\n".join(lines).encode()


def table_of(content: bytes, draw: random.Random) -> bytes:
    """A text of rows: odd cells, other separators, other encodings."""
    if draw.random() < 0.5:
        return rows_of(content, draw)
    separator = draw.choice([",", ",", ",", "\t", ";"]) if b"," in content else " "
    lines = content.decode().splitlines()
    for _ in range(draw.choice([1, 3, len(lines)])):
        at = draw.randrange(len(lines)) if draw.random() < 0.8 else 0
        cells = lines[at].split("," if b"," in content else " ")
        odd = [
            "",
            '"',
            "NaN",
            "1e400",
            "-1",
            "9" * 40,
            "posixrules",
            "2024-02-30T25:00:00",
            "²",
            "\0",
            "1,5",
            "a" * 9999,
        ]
        cells[draw.randrange(len(cells))] = draw.choice(
            [*odd, "inf", "2024-01-01T00:00:00+99:99", "localtime", "0"]
        )
        lines[at] = separator.join(cells)
    lines = lines[: draw.choice([len(lines)] * 6 + [1, 2, 3])]
    return "\n".join(lines).encode(draw.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig", "utf-32"]))


def xml_of(content: bytes, draw: random.Random) -> bytes:
    """Other names of elements, odd values of attributes and texts, lost and doubled ends."""
    odd = [
        "",
        "²",
        "1e400",
        "-1",
        "nan",
        "9" * 400,
        "<a>",
        "</trk>",
        "&amp;",
        "&a;",
        "2024-02-30T25:00:00Z",
        "]]>",
    ]
    text = content.decode()
    for _ in range(draw.choice([1, 1, 3, 9])):
        parts = [
            found.span(1) for found in re.finditer(r'="([^"]*)"|>([^<]*)<|</?(\w+)', text) if found[1] is not None
        ]
        parts += [found.span(1) for found in re.finditer(r"</?(\w+)|>([^<>]+)<", text) if found[1] is not None]
        first, last = draw.choice(parts or [(0, 0)])
        text = text[:first] + draw.choice(odd) + text[last:]
    return text.encode(draw.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig"]), "surrogatepass")


def safetensors_of(content: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if draw.random() < 0.3:  # values that are no numbers, or other names and shapes that still fit
        tree = json.loads(header)
        names = [name for name in tree if name != "__metadata__"]
        one, other = draw.choice(names), draw.choice(names)
        if draw.random() < 0.4:
            start, stop = tree[one]["data_offsets"]
            fill = struct.pack("<f", draw.choice([math.nan, math.inf, 1e30])) * ((stop - start) // 4)
            return content[:8] + header + data[:start] + fill + data[stop:]
        tree[one], tree[other] = tree[other], tree[one]
        tree[one]["shape"] = draw.choice([tree[one]["shape"][::-1], [math.prod(tree[one]["shape"])], [1, 1]])
        header = json.dumps(tree).encode()
    else:
        header = json_of(header, draw)
    size = len(header) if draw.random() < 0.9 else draw.choice(INTEGERS)
    return struct.pack("<Q", size) + header + data


GgufKey = tuple[bytes, int, Any]  # its name, its kind, its value
GgufTensor = list[Any]  # its name, shape, kind and offset
GGUF_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q"}
GGUF_TEXT, GGUF_LIST = 8, 9


def gguf_of(content: bytes, draw: random.Random) -> bytes:
    """Keys with other types, values and counts; tensors with other names, shapes, kinds and offsets."""
    keys, tensors, data = _gguf_parts(content)
    for _ in range(draw.choice([1, 1, 2, 4])):
        _change_gguf(keys, tensors, draw)
    found = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    for name, kind, given in keys:
        found += _gguf_value(GGUF_TEXT, name) + struct.pack("<I", kind) + _gguf_value(kind, given)
    for name, shape, kind, offset in tensors:
        head = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        found += _gguf_value(GGUF_TEXT, name) + head
    return found + bytes(-len(found) % 32) + data


def _gguf_parts(content: bytes) -> tuple[list[GgufKey], list[GgufTensor], bytes]:
    stream = io.BytesIO(content)

    def take(code: str) -> Any:
        return struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0]

    def value(kind: int) -> Any:
        if kind == GGUF_LIST:
            inner, count = take("I"), take("Q")
            return inner, [value(inner) for _ in range(count)]
        return stream.read(take("Q")) if kind == GGUF_TEXT else take(GGUF_CODES[kind])

    stream.read(8)
    tensor_count, key_count = take("Q"), take("Q")
    keys = [(value(GGUF_TEXT), kind := take("I"), value(kind)) for _ in range(key_count)]
    tensors = [
        [value(GGUF_TEXT), [take("Q") for _ in range(take("I"))], take("I"), take("Q")]
        for _ in range(tensor_count)
    ]
    return keys, tensors, content[-(-stream.tell() // 32) * 32 :]


def _gguf_value(kind: int, given: Any) -> bytes:
    if kind == GGUF_LIST:
        inner, values = given
        return struct.pack("<IQ", inner, len(values)) + b"".join(_gguf_value(inner, one) for one in values)
    if kind == GGUF_TEXT:
        return struct.pack("<Q", len(given)) + given
    return struct.pack(f"<{GGUF_CODES[kind]}", given)


def _odd_gguf_value(draw: random.Random) -> tuple[int, Any]:
    """A kind, and a value of it that hardly any key should have."""
    odd: list[tuple[int, Any]] = [
        (4, draw.choice(INTEGERS) & 0xFFFFFFFF), (10, draw.choice(INTEGERS)), (5, -1), (7, True),
        (6, draw.choice([math.nan, math.inf, 0.0, -1.0, 1e30])),
        (GGUF_TEXT, b""), (GGUF_TEXT, draw.choice([b"a", b"\xff", b"none"])),
        (GGUF_LIST, (4, [])), (GGUF_LIST, (8, [b"a", b"a"])), (GGUF_LIST, (5, [1, -1])),
        (GGUF_LIST, (9, [(9, (9, [(4, [1])]))])), (GGUF_LIST, (7, [True])),
    ]  # fmt: skip
    return draw.choice(odd)


def _change_gguf(keys: list[GgufKey], tensors: list[GgufTensor], draw: random.Random) -> None:
    at, one = draw.randrange(len(keys)), tensors[draw.randrange(len(tensors))]
    name, kind, given = keys[at]
    match draw.randrange(10):
        case 0:
            keys.pop(at) if len(keys) > 1 else None
        case 1:
            keys.append((draw.choice([name, b"general.alignment", b"x"]), *_odd_gguf_value(draw)))
        case 2:
            one[0] = draw.choice([b"", b"x", tensors[0][0], one[0] + b"."])
        case 3:
            shape = one[1]
            odd = [[], [0], shape[::-1], [*shape, 1], [draw.choice(INTEGERS)], [2**32, 2**32], [1] * 5]
            one[1] = draw.choice(odd)
        case 4:
            one[2] = draw.choice([0, 1, 2, 8, 12, 30, 39, 99, 2**32 - 1])
        case 5:
            one[3] = draw.choice(INTEGERS)
        case 6 if kind == GGUF_LIST and given[1]:
            kept = list(given[1])
            kept[draw.randrange(len(kept))] = kept[draw.choice([0, -1])]
            keys[at] = (name, kind, (given[0], kept[: draw.choice([len(kept), 1, len(kept) // 2])]))
        case _:
            keys[at] = (name, *_odd_gguf_value(draw))


def parquet_of(content: bytes, draw: random.Random) -> bytes:
    import polars as pl

    frame = pl.read_parquet(io.BytesIO(content))
    rows, name = frame.height, draw.choice(frame.columns)
    odd: list[tuple[Any, Any]] = [([1, 2], None), ({"a": 1}, None), (b"\xff", None), (None, None), ([], None)]
    odd += [
        (0, pl.Duration),
        (0, pl.Time),
        (0, pl.Date),
        (2**62, pl.Datetime("ms")),
        (True, None),
        (math.nan, None),
    ]
    odd += [(2**63 + 5, pl.UInt64), (2**100, pl.Int128), (-(2**62), None), ("a", pl.Categorical), ("a", None)]
    odd += [("1.5", pl.Decimal(38, 2)), (0, pl.Float32), (1, pl.Int8)]
    match draw.randrange(5):
        case 0:
            frame = frame.head(draw.choice([0, 1, 2]))
        case 1:
            frame = (
                frame.drop(name)
                if draw.random() < 0.5
                else frame.rename({name: draw.choice(["", "x", "split", "lon"])})
            )
        case _:
            value, kind = draw.choice(odd)
            column = pl.Series(name, [value] * rows)
            frame = frame.with_columns(column.cast(kind) if kind else column)
    geo = {"primary_column": name, "columns": {name: {"encoding": "WKB", "crs": None}}, "version": "1.0.0"}
    metadata = {"geo": json_of(json.dumps(geo).encode(), draw).decode("latin-1")} if draw.random() < 0.2 else None
    buffer = io.BytesIO()
    frame.write_parquet(
        buffer, compression=draw.choice(["zstd", "uncompressed", "snappy", "gzip"]), metadata=metadata
    )
    return bytes_of(buffer.getvalue(), draw) if draw.random() < 0.3 else buffer.getvalue()


BY_ENDING: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": json_of, ".jsonl": lines_of, ".toml": toml_of, ".safetensors": safetensors_of, ".gguf": gguf_of,
    ".geojson": json_of, ".gpx": xml_of, ".parquet": parquet_of, ".csv": table_of, ".txt": table_of,
    ".ts": table_of, ".bin": numbers_of,
}  # fmt: skip


def mutate(file: Path, draw: random.Random) -> None:
    packed = file.suffix == ".gz"
    content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    mutation = BY_ENDING.get(Path(file.stem).suffix if packed else file.suffix, bytes_of)
    mutation = bytes_of if draw.random() < 0.2 else mutation
    try:
        content = mutation(content, draw)
    except Exception:  # what libraries cannot write is drawn again as bytes
        content = bytes_of(content, draw)
    content = gzip.compress(content) if packed else content
    file.write_bytes(bytes_of(content, draw) if packed and draw.random() < 0.3 else content)


def rehash_store(folder: Path) -> None:
    """The hashes that fit the tokens of a store."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
        for name, part in manifest["parts"].items():
            tokens = (folder / f"{name}-tokens.bin").read_bytes()
            part["segments"][0]["sha256"] = hashlib.sha256(tokens).hexdigest()
        file.write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError):
        return


def rehash(checkpoint: Path) -> None:
    """Hashes that fit what is there, so that what was mutated is read."""
    file = checkpoint / "loop.json"
    try:
        stored = json.loads(file.read_bytes())
        hashes = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.glob("*.safetensors")
        }
        hashes["loop"] = hashlib.sha256(json.dumps(stored["loop"], sort_keys=True).encode()).hexdigest()
        file.write_text(json.dumps(stored | {"sha256": hashes}))
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return
