"""`linnet bench tokenizer`: learning and encoding through linnet beside the bare `tokenizers` library.

The bare library gets the documents from memory, as many in one call as ours gives it; ours reads the files,
counts, checks UTF-8 and lays the ids out as framed rows. Before anything is timed, both must learn the same
vocabulary (unigram: the library gives other scores each time, so only the kind is) and give the same ids.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.text.encoding import encoded
from linnet.domains.text.finding import find
from linnet.domains.text.sources import Passage, Reading, Tally, read_passages
from linnet.domains.text.tokenizer_training import Tokenizing, train_tokenizer
from linnet.errors import BadInput, RunFailed
from linnet.machine import one_line
from linnet.records import BenchRecord
from linnet.tokenization import END, UNKNOWN, TokenizerCodec, tokenizers_library

KINDS = ("bpe", "unigram", "words", "characters")
SAME = ("bpe", "words")  # kinds of which both learn the same vocabulary


def bench_tokenizer(
    data: Sequence[Path],
    *,
    vocabulary: int = 16_000,
    documents: str = "line",
    repeats: int = 5,
    kind: str = "bpe",
) -> list[BenchRecord]:
    """MB/s of learning a vocabulary, and of encoding with it."""
    if kind not in KINDS:
        raise BadInput(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    if documents not in ("line", "paragraph", "file"):
        raise BadInput(f"documents is one of line, paragraph, file, not {documents!r}")
    reading = Reading(documents=documents)
    sources = find(data).sources

    def read() -> Any:
        return read_passages(sources, reading, Tally())

    texts = [text for passage in read() for text in passage.texts]
    size = sum(len(text.encode()) for text in texts) / 1e6
    wanted = Tokenizing(vocabulary=vocabulary, kind=kind)

    def learn() -> TokenizerCodec:
        return train_tokenizer(read_passages(sources, reading, Tally()), wanted).codec

    def learn_bare() -> Any:
        return bare_training(texts, wanted)

    codec = learn()
    if kind in SAME:
        bare = learn_bare()
        if codec.tokenizer.get_vocab() != bare.get_vocab():
            raise RunFailed("ours and the bare library learn different vocabularies: nothing is timed")
    else:
        bare = tokenizers_library().Tokenizer.from_str(codec.content)

    def encode() -> np.ndarray:
        return np.concatenate([block.ids for block in encoded(codec, read())])

    portions = [part.texts for part in Passage(texts).portions()]

    def encode_bare() -> list[list[int]]:
        calls = (bare.encode_batch_fast(some, add_special_tokens=False) for some in portions)
        return [encoding.ids for encodings in calls for encoding in encodings]

    if not np.array_equal(encode(), np.concatenate([[codec.end, *ids, codec.end] for ids in encode_bare()])):
        raise RunFailed("ours and the bare library give different ids: nothing is timed")
    found = [in_turn(f"tokenizer encode, {kind} {vocabulary:,}", encode, encode_bare, size, repeats)]
    if kind != "characters":  # the library has no trainer of these
        found.insert(0, in_turn(f"tokenizer train, {kind} {vocabulary:,}", learn, learn_bare, size, repeats))
    return found


def bare_training(texts: Sequence[str], wanted: Tokenizing) -> Any:
    """The shortest way to the same vocabulary, or for `unigram` to one of the same kind."""
    library = tokenizers_library()
    level = library.pre_tokenizers.ByteLevel
    options: dict[str, Any] = {"vocab_size": wanted.vocabulary, "special_tokens": [END], "show_progress": False}
    if wanted.kind == "words":
        tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
        pieces = library.Regex(r"\w+|[^\w\s]")
        tokenizer.pre_tokenizer = library.pre_tokenizers.Split(pieces, "removed", invert=True)
        options["special_tokens"] = [END, UNKNOWN]
    else:
        model = library.models.Unigram if wanted.kind == "unigram" else library.models.BPE
        tokenizer = library.Tokenizer(model())
        tokenizer.pre_tokenizer = level(add_prefix_space=False)
        options["initial_alphabet"] = sorted(level.alphabet())
    if wanted.kind != "unigram":
        options["min_frequency"] = wanted.min_count
    trainers = library.trainers
    kinds = {"bpe": trainers.BpeTrainer, "words": trainers.WordLevelTrainer, "unigram": trainers.UnigramTrainer}
    tokenizer.train_from_iterator(texts, kinds[wanted.kind](**options))
    return tokenizer


def in_turn(
    name: str, ours: Callable[[], object], bare: Callable[[], object], megabytes: float, repeats: int
) -> BenchRecord:
    """Both by turns, so that a machine that drifts drifts for both; a ratio above 1 means that ours is faster."""
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        for work, seconds in ((ours, mine), (bare, theirs)):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    ratios = sorted(other / own for own, other in zip(mine, theirs, strict=True))
    return BenchRecord(
        name=name,
        ours=megabytes / statistics.median(mine),
        peers={"tokenizers": megabytes / statistics.median(theirs)},
        ratios={"tokenizers": statistics.median(ratios)},
        unit="MB/s",
        n=repeats,
        machine=one_line(),
        note=f"{megabytes:.1f} MB; tokenizers: ratios from {ratios[0]:.2f} to {ratios[-1]:.2f}",
    )
