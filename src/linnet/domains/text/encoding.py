"""Documents as framed rows of tokens, some hundred thousand characters at a time.

Legend: a row is `[begin] + ids + [end]` of one document; tokens = all tokens of some rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from linnet.domains.text.chat import Spans
from linnet.domains.text.sources import Passage
from linnet.rows import Rows
from linnet.tokenization import TokenizerCodec


class Encoded(NamedTuple):
    ids: np.ndarray  # [tokens]
    sizes: np.ndarray  # int64 [rows, 3]: tokens of each row, and characters and bytes of its scored text
    scored: np.ndarray  # bool [tokens]


def token_type(codec: TokenizerCodec) -> np.dtype[Any]:
    """Two bytes a token where the vocabulary allows it."""
    return np.dtype("<u2" if len(codec.tokens) <= 1 << 16 else "<u4")


def encoded(codec: TokenizerCodec, passages: Iterable[Passage]) -> Iterator[Encoded]:
    for passage in passages:
        for part in passage.portions():
            yield _whole(codec, part.texts) if part.answers is None else _answers(codec, part.texts, part.answers)


def _whole(codec: TokenizerCodec, texts: list[str]) -> Encoded:
    """Rows in which every token counts but the first."""
    ids, lengths = codec.encode_many(texts)
    framed = lengths + (codec.begin is not None) + (codec.end is not None)
    stops = np.cumsum(framed)
    flat = np.empty(int(framed.sum()), token_type(codec))
    inner, scored = np.ones((2, len(flat)), bool)
    scored[stops - framed] = False
    for token, index in ((codec.begin, stops - framed), (codec.end, stops - 1)):
        if token is not None:
            flat[index] = token
            inner[index] = False
    flat[inner] = ids
    characters, utf8_bytes = list(map(len, texts)), [len(text.encode()) for text in texts]
    return Encoded(flat, np.stack([framed, characters, utf8_bytes], axis=1), scored)


def _answers(codec: TokenizerCodec, texts: list[str], answers: list[Spans]) -> Encoded:
    """Rows of which only the answers count, and after an answer at the end of a text its end token.

    Answers are encoded by themselves, so that a prompt has the same tokens with and without one.
    """
    edges = [[0, *itertools.chain(*spans), len(text)] for text, spans in zip(texts, answers, strict=True)]
    cuts = [text[a:b] for text, some in zip(texts, edges, strict=True) for a, b in itertools.pairwise(some)]
    pieces = iter(codec.ids_of(cuts))  # every second one of a text is an answer
    head, tail = ([] if token is None else [token] for token in (codec.begin, codec.end))
    flat: list[int] = []
    scored: list[bool] = []
    sizes = []
    for text, spans in zip(texts, answers, strict=True):
        ids, marks = [*head], [False] * len(head)
        for number in range(2 * len(spans) + 1):
            piece = next(pieces)
            ids += piece
            marks += [number % 2 == 1] * len(piece)
        ids += tail
        marks += [spans[-1][1] == len(text)] * len(tail)
        marks[:1] = [False]
        flat += ids
        scored += marks
        written = "".join(text[first:last] for first, last in spans)
        sizes.append((len(ids), len(written), len(written.encode())))
    return Encoded(np.array(flat, token_type(codec)), np.array(sizes, np.int64), np.array(scored))


def rows_in_memory(codec: TokenizerCodec, passages: Iterable[Passage]) -> Rows:
    nothing = Encoded(np.empty(0, token_type(codec)), np.empty((0, 3), np.int64), np.empty(0, bool))
    ids, sizes, scored = map(np.concatenate, zip(nothing, *encoded(codec, passages), strict=True))
    starts = np.concatenate([[0], np.cumsum(sizes[:, 0])])
    return Rows.of_ids(ids, starts, scored, sizes[:, 1], sizes[:, 2])
