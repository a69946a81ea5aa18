"""From what a run folder stores back to the codec that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linnet.codecs import CharacterCodec, Codec
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.text.tokenization import TokenizerCodec
from linnet.errors import BadInput


def codec_of(stored: Mapping[str, Any]) -> Codec:
    """The codec of a `codec.json`."""
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
            raise BadInput(f'codec.json names the kind "{kind}", which this linnet does not know')
