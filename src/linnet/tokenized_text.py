"""What each token of a tokenizer.json writes, where that does not depend on the tokens around it.

Two kinds of decoders say so: byte-level ones, and those that write a mark for a blank and spell what they have no
token for in bytes. Words that are joined by blanks do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JOINING = {"Metaspace", "WordPiece", "BPEDecoder"}  # their texts grow at the end only


def written_bytes(decoder: Mapping[str, Any] | None, names: Sequence[str | None]) -> tuple[bytes, ...] | None:
    """The bytes that each of these tokens adds to a text; None where they depend on its neighbours."""
    parts = decoders(decoder)
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        letters = byte_alphabet()
        return tuple(b"" if name is None else _byte_level(name, letters) for name in names)
    if kinds == ["Metaspace"]:
        blank = parts[0]["replacement"]
        return tuple((name or "").replace(blank, " ").encode() for name in names)
    if not kinds or not _in_order(parts):
        return None
    return tuple(b"" if name is None else _spelt(name, parts) for name in names)


def ends_text(decoder: Mapping[str, Any] | None, names: Sequence[str | None]) -> tuple[bool, ...]:
    """Whether nothing that follows a token changes the text up to it."""
    parts = decoders(decoder)
    kinds = {str(part.get("type")) for part in parts}
    if kinds == {"ByteLevel"}:
        pieces = written_bytes(decoder, names) or ()
        return tuple(bool(piece) and whole(piece) for piece in pieces)
    if len(parts) <= 1 and kinds <= JOINING:
        return tuple(name is not None for name in names)
    if _in_order(parts):
        # One wrong byte changes how all bytes that are spelt next to it are shown.
        spells = "ByteFallback" in kinds
        return tuple(bool(name) and not (spells and _spelt_byte(name) is not None) for name in names)
    return (False,) * len(names)


def whole(piece: bytes) -> bool:
    """Whether these bytes are complete characters."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def decoders(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder.get("type") == "Sequence" else [decoder]


def _in_order(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these steps write token after token: exchanges and bytes first, what looks at the whole last."""
    fused = False
    for part in parts:
        match part.get("type"):
            case "Fuse":
                fused = True
            case "Replace" if not fused and "String" in part["pattern"]:
                continue
            case "ByteFallback" if not fused:
                continue
            case "Strip" if fused and part["stop"] == 0:
                continue
            case _:
                return False
    return True


def byte_alphabet() -> dict[str, int]:
    """The byte that each printable character of a byte-level tokenizer stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(name: str, letters: Mapping[str, int]) -> bytes:
    found = [letters.get(letter) for letter in name]
    return name.encode() if None in found else bytes(byte for byte in found if byte is not None)


def _spelt(name: str, parts: Sequence[Mapping[str, Any]]) -> bytes:
    for part in parts:
        if part["type"] == "Replace":
            name = name.replace(part["pattern"]["String"], part["content"])
        byte = _spelt_byte(name) if part["type"] == "ByteFallback" else None
        if byte is not None:
            return bytes([byte])
    return name.encode()


def _spelt_byte(name: str | None) -> int | None:
    """The byte that a token such as <0xE2> stands for."""
    if name is None or len(name) != 6 or not (name.startswith("<0x") and name.endswith(">")):
        return None
    digits = name[3:5]
    return int(digits, 16) if all(digit in "0123456789abcdefABCDEF" for digit in digits) else None
