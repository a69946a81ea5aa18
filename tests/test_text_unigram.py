"""The unigram trainer against enumerations of all segmentations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.text import unigram
from linnet.domains.text.unigram import _best_without, _expected, _lay_out, byte_alphabet, digamma, learn_pieces

WORDS = st.dictionaries(
    st.binary(min_size=1, max_size=7).map(lambda word: bytes(97 + byte % 3 for byte in word)),
    st.integers(1, 5),
    min_size=1,
    max_size=6,
)


def segmentations(word: bytes, pieces: set[bytes]) -> Iterator[tuple[bytes, ...]]:
    if not word:
        yield ()
    for n in range(1, len(word) + 1):
        if word[:n] in pieces:
            yield from ((word[:n], *rest) for rest in segmentations(word[n:], pieces))


@settings(max_examples=60, deadline=None)
@given(counts=WORDS, seed=st.integers(0, 9))
def test_expected_counts_are_those_of_all_segmentations(counts: dict[bytes, int], seed: int) -> None:
    words = _lay_out(counts, 400, 1)
    scores = np.log(np.random.default_rng(seed).uniform(0.01, 1, len(words.seeds)))
    value = dict(zip(words.seeds, scores.tolist(), strict=True))
    wanted: Counter[bytes] = Counter()
    for word, count in counts.items():
        ways = list(segmentations(word, set(words.seeds)))
        chances = [math.exp(sum(value[piece] for piece in way)) for way in ways]
        for way, chance in zip(ways, chances, strict=True):
            for piece in way:
                wanted[piece] += count * chance / sum(chances)
    found = _expected(words, scores)
    np.testing.assert_allclose(found, [wanted[piece] for piece in words.seeds], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(counts=WORDS, seed=st.integers(0, 9))
def test_the_best_other_way_is_the_best(counts: dict[bytes, int], seed: int) -> None:
    words = _lay_out(counts, 400, 1)
    scores = np.log(np.random.default_rng(seed).uniform(0.01, 1, len(words.seeds)))
    value = dict(zip(words.seeds, scores.tolist(), strict=True))
    found = _best_without(words, scores)
    for i, piece in enumerate(words.seeds):
        ways = [sum(value[p] for p in way) for way in segmentations(piece, set(words.seeds)) if len(way) > 1]
        assert found[i] == pytest.approx(max(ways, default=-math.inf))


@settings(max_examples=60, deadline=None)
@given(counts=WORDS)
def test_seeds_are_the_substrings_that_do_not_always_go_on(counts: dict[bytes, int]) -> None:
    found: Counter[bytes] = Counter()
    follows: dict[bytes, Counter[bytes]] = {}
    for word, count in counts.items():
        for i in range(len(word)):
            for j in range(i + 2, len(word) + 1):
                found[word[i:j]] += count
                follows.setdefault(word[i:j], Counter())[word[j : j + 1]] += count
    wanted = {s for s, n in found.items() if n >= 2 and not (len(follows[s]) == 1 and b"" not in follows[s])}
    words = _lay_out(counts, 10_000, 2)
    assert set(words.seeds[256:]) == wanted
    for seed, place, length in zip(words.seeds, words.seed_places, words.seed_lengths, strict=True):
        assert words.pieces[place, length] == words.seeds.index(seed)


def test_pruning_keeps_all_bytes_and_what_saves_most() -> None:
    counts = {b" the": 500, b" them": 50, b" mother": 40, b" xqz": 1}
    pieces = learn_pieces(counts, 258)
    assert len(pieces) == 258
    assert {bytes([byte]) for byte in range(256)} < {piece for piece, _ in pieces}
    assert b" the" in dict(pieces)
    assert math.fsum(math.exp(score) for _, score in pieces) <= 1.01
    assert [score for _, score in pieces] == sorted((score for _, score in pieces), reverse=True)


def test_long_words_are_learned_from_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "LONGEST_WORD", 8)
    assert b"ab" in dict(learn_pieces({b"ab" * 40: 3}, 260))


def test_digamma() -> None:
    gamma = 0.5772156649015329
    assert digamma(np.array([0.5]))[0] == pytest.approx(-gamma - 2 * math.log(2), rel=1e-11)
    for n in (1, 2, 7, 30, 1000):
        wanted = math.fsum(1 / k for k in range(1, n)) - gamma
        assert digamma(np.array([float(n)]))[0] == pytest.approx(wanted, rel=1e-11)


def test_the_alphabet_is_that_of_the_library() -> None:
    from tokenizers import decoders, pre_tokenizers

    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet()) and len(set(alphabet.values())) == 256
    for text in ("é", "日", " a\x00"):
        ((letters, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert bytes(alphabet[letter] for letter in letters) == text.encode()
        assert decoders.ByteLevel().decode([letters]) == text
