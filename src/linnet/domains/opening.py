"""From what a run folder stores back to the codec that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linnet.codecs import CharacterCodec, Codec
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.text.tokenization import TokenizerCodec
from linnet.errors import BadInput
from linnet.untrusted import shown


def codec_of(stored: Mapping[str, Any], where: str = "codec.json") -> Codec:
    """The codec of a `codec.json`."""
    try:
        return _of(stored)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"{where} is broken ({type(error).__name__}: {error})") from None


def _of(stored: Mapping[str, Any]) -> Codec:
    match stored.get("kind"):
        case "characters":
            return CharacterCodec.from_json(stored)
        case "arithmetic":
            return ArithmeticCodec.from_json(stored)
        case "places":
            return PlacesCodec.from_json(stored)
        case "tokenizer":
            return TokenizerCodec.from_json(stored)
        case kind:
            raise BadInput(f"its kind is {shown(kind)}, which this linnet does not know")
