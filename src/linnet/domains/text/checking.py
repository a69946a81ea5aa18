"""What a tokenizer does to a corpus: whether texts come back, how short they get, and what is never used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from linnet.domains.text.meter import Meter
from linnet.domains.text.sources import Passage, Tally
from linnet.tokenization import TokenizerCodec


@dataclass
class Findings:
    """Sums over all documents of a corpus."""

    counts: np.ndarray  # int64 [vocabulary]: how often each token occurs
    documents: int = 0
    characters: int = 0
    utf8_bytes: int = 0
    lossy: int = 0  # documents that do not come back
    first_loss: str = ""
    seconds: float = 0.0  # of encoding alone

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def unused(self, codec: TokenizerCodec) -> list[int]:
        """Tokens that occur nowhere; begin and end are never in a text."""
        framing = (codec.begin, codec.end)
        return [i for i in np.flatnonzero(self.counts == 0).tolist() if i not in framing]


def examine(
    codec: TokenizerCodec, passages: Iterator[Passage], tally: Tally, meter: Meter | None = None
) -> Findings:
    """Encode and decode every document."""
    found = Findings(np.zeros(len(codec.tokens), np.int64))
    for passage in passages:
        for texts in (part.texts for part in passage.portions()):
            began = time.perf_counter()
            ids = codec.ids_of(texts)
            found.seconds += time.perf_counter() - began
            found.counts += np.bincount(codec.flat(ids)[0], minlength=len(found.counts))
            for text, back in zip(texts, codec.texts_of(ids), strict=True):
                if back != text:
                    found.lossy += 1
                    found.first_loss = found.first_loss or f"{text[:60]!r} becomes {back[:60]!r}"
            found.documents += len(texts)
            found.characters += sum(map(len, texts))
            size = sum(len(text.encode()) for text in texts)
            found.utf8_bytes += size
            if meter is not None:
                meter.advance(tally, size)
    if meter is not None:
        meter.close(tally)
    return found


def count_lines(codec: TokenizerCodec, found: Findings) -> Iterator[str]:
    """`count<TAB>token` lines, the most frequent first, equal counts in the order of their bytes."""
    named = sorted(zip(found.counts.tolist(), codec.tokens, strict=True), key=lambda x: (-x[0], x[1].encode()))
    return (f"{count}\t{token}\n" for count, token in named)
