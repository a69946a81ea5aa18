"""A unigram vocabulary by expectation-maximisation and pruning, the same for the same text.

The trainer of the `tokenizers` library walks over a hash map whose order changes with every process, so that its
scores, and at the border its pieces, differ from run to run. This one works on sorted arrays. The model is
that of SentencePiece: pieces are drawn independently, a word is the sum over its segmentations, and pieces whose
loss costs the text least are dropped until the vocabulary fits. Pieces are bytes, and all 256 single bytes stay.
Legend: M = distinct words, L = bytes of a word, S = seed pieces; words are grouped by length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LONGEST_PIECE = 16  # bytes
LONGEST_WORD = 48  # bytes; longer words are learned from in parts
SEEDS = 10  # pieces to start from, for each one that stays
ROUND = 0.75  # of the pieces survive a round of pruning
SPARE = 1.1  # pruning stops here; the most probable pieces are then taken


@dataclass(frozen=True)
class Words:
    """Distinct words end to end, and the seed piece of each place and length."""

    places: dict[int, tuple[np.ndarray, np.ndarray]]  # length: starts int64 [M(L)], counts float64 [M(L)]
    pieces: np.ndarray  # int32 [bytes of all words, LONGEST_PIECE + 1]: -1 where no piece of that length starts
    seeds: list[bytes]
    seed_places: np.ndarray  # int64 [S]: a place where each seed occurs
    seed_lengths: np.ndarray  # int64 [S]


def learn_pieces(counts: Mapping[bytes, int], size: int, min_count: int = 2) -> list[tuple[bytes, float]]:
    """At most `size` pieces with their log-probabilities, the most probable first."""
    words = _lay_out(counts, max(size * SEEDS, 50_000), min_count)
    required = words.seed_lengths == 1
    found = np.ones(len(words.seeds))
    for length, (starts, weights) in words.places.items():  # begin with how often each piece occurs
        for n in range(1, min(length, LONGEST_PIECE) + 1):
            for i in range(length - n + 1):
                piece = words.pieces[starts + i, n]
                found += np.bincount(piece[piece >= 0], weights[piece >= 0], minlength=len(found))
    scores = np.log(found / found.sum())
    alive = np.ones(len(scores), bool)
    target = max(size, int(required.sum()))
    while True:
        for _ in range(2):
            expected = _expected(words, scores)
            alive &= required | (expected >= 0.5)
            scores = _log_shares(np.maximum(expected, 0.5), alive)
        if alive.sum() <= SPARE * target:
            break
        keep = max(int(ROUND * alive.sum()), int(SPARE * target))
        free = np.flatnonzero(alive & ~required)
        costs = np.where(required, np.inf, -np.inf)
        costs[free] = expected[free] * (scores[free] - _best_without(words, scores)[free])
        alive = np.zeros(len(alive), bool)
        alive[np.argsort(-costs, kind="stable")[:keep]] = True
        scores = np.where(alive, scores, -np.inf)
    order = sorted(
        np.flatnonzero(alive).tolist(), key=lambda i: (not required[i], -round(scores[i], 6), words.seeds[i])
    )
    kept = sorted(order[:target], key=lambda i: (-round(scores[i], 6), words.seeds[i]))
    return [(words.seeds[i], round(float(scores[i]), 6)) for i in kept]


def _lay_out(counts: Mapping[bytes, int], most: int, min_count: int) -> Words:
    """Words in the order of length and bytes, and the pieces to start from."""
    parts: dict[bytes, int] = {bytes([byte]): 0 for byte in range(256)}
    for word, count in counts.items():
        for first in range(0, len(word), LONGEST_WORD):
            part = word[first : first + LONGEST_WORD]
            parts[part] = parts.get(part, 0) + count
    ordered = sorted(parts, key=lambda word: (len(word), word))
    lengths = np.array([len(word) for word in ordered])
    starts = np.cumsum(lengths) - lengths
    weights = np.array([parts[word] for word in ordered], float)
    places = {int(n): (starts[lengths == n], weights[lengths == n]) for n in np.unique(lengths)}
    data = np.frombuffer(b"".join(ordered), np.uint8)
    left = np.repeat(starts + lengths, lengths) - np.arange(len(data))  # bytes to the end of the word
    seeds, seed_places, table = _seeds(data, left, np.repeat(weights, lengths), most, min_count)
    return Words(places, table, seeds, seed_places, np.array([len(seed) for seed in seeds]))


def _seeds(
    data: np.ndarray, left: np.ndarray, weights: np.ndarray, most: int, min_count: int
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """All single bytes, and the substrings that cover most text, without those that always go on the same way."""
    numbers = data.astype(np.int64)  # of the substring of the current length that starts at each place
    alive = np.arange(len(data))
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    before = np.bincount(numbers, weights, minlength=256)
    for n in range(2, LONGEST_PIECE + 1):
        alive = alive[left[alive] >= n]
        if not len(alive):
            break
        keys = numbers[alive] * 256 + data[alive + n - 1]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        covered = np.bincount(inverse, weights[alive])
        if levels:  # what is always followed by the same byte is no piece of its own
            shorter = levels[-1][1]
            shorter[numbers[alive[first]][covered == before[numbers[alive[first]]]]] = 0
        levels.append((alive[first], covered.copy(), alive, inverse))
        before = covered
        often = covered[inverse] >= min_count
        numbers = np.zeros(len(data), np.int64)
        numbers[alive] = inverse
        alive = alive[often]
    scores = np.concatenate([worth * (n + 2) for n, (_, worth, _, _) in enumerate(levels)] or [np.empty(0)])
    sizes = np.concatenate(
        [np.full(len(worth), n + 2) for n, (_, worth, _, _) in enumerate(levels)] or [np.empty(0, int)]
    )
    usable = np.flatnonzero(scores >= min_count * sizes)
    chosen = np.sort(usable[np.argsort(-scores[usable], kind="stable")[: max(0, most - 256)]])
    table = np.full((len(data), LONGEST_PIECE + 1), -1, np.int32)
    table[:, 1] = data
    seeds = [bytes([byte]) for byte in range(256)]
    at = [int(np.flatnonzero(data == byte)[0]) for byte in range(256)]
    offset = 0
    for n, (first, worth, alive, inverse) in enumerate(levels, start=2):
        mine = chosen[(chosen >= offset) & (chosen < offset + len(worth))] - offset
        number = np.full(len(worth), -1, np.int32)
        number[mine] = np.arange(len(seeds), len(seeds) + len(mine))
        table[alive, n] = number[inverse]
        seeds += [data[i : i + n].tobytes() for i in first[mine].tolist()]
        at += first[mine].tolist()
        offset += len(worth)
    return seeds, np.array(at), table


def _expected(words: Words, scores: np.ndarray) -> np.ndarray:
    """How often each piece is used, over all segmentations of all words by their probability."""
    shares = np.append(np.exp(scores), 0.0)  # the last one stands for "no piece"
    total = np.zeros(len(shares))
    for length, (starts, weights) in words.places.items():
        table = words.pieces[starts[:, None] + np.arange(length)]  # [M, L, piece length]
        chance = shares[table]
        forward = np.zeros((length + 1, len(starts)))
        backward = np.zeros((length + 1, len(starts)))
        forward[0] = backward[length] = 1.0
        for end in range(1, length + 1):
            for n in range(1, min(end, LONGEST_PIECE) + 1):
                forward[end] += forward[end - n] * chance[:, end - n, n]
        for start in range(length - 1, -1, -1):
            for n in range(1, min(length - start, LONGEST_PIECE) + 1):
                backward[start] += backward[start + n] * chance[:, start, n]
        each = weights / np.maximum(forward[length], 1e-300)
        for start in range(length):
            for n in range(1, min(length - start, LONGEST_PIECE) + 1):
                chance[:, start, n] *= each * forward[start] * backward[start + n]
            chance[:, start, min(length - start, LONGEST_PIECE) + 1 :] = 0
        chance[:, :, 0] = 0
        total += np.bincount(table.reshape(-1) % len(shares), chance.reshape(-1), minlength=len(shares))
    return total[:-1]


def _best_without(words: Words, scores: np.ndarray) -> np.ndarray:
    """The log-probability of the best way to write each piece with other pieces."""
    padded = np.append(scores, -np.inf)
    found = np.full(len(scores), -np.inf)
    for length in np.unique(words.seed_lengths):
        mine = np.flatnonzero(words.seed_lengths == length)
        table = words.pieces[words.seed_places[mine][:, None] + np.arange(length)]
        best = np.full((length + 1, len(mine)), -np.inf)
        best[0] = 0.0
        for end in range(1, length + 1):
            for n in range(1, min(end, LONGEST_PIECE) + 1):
                if n < length:
                    best[end] = np.maximum(best[end], best[end - n] + padded[table[:, end - n, n]])
        found[mine] = best[length]
    return found


def _log_shares(expected: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Scores from expected counts, with the digamma that makes rare pieces rarer still (a Bayesian prior)."""
    scores = digamma(expected) - float(digamma(np.array([expected[alive].sum()]))[0])
    return np.where(alive, scores, -np.inf)


def digamma(x: np.ndarray) -> np.ndarray:
    """The derivative of log gamma, to about 1e-12 for positive numbers."""
    found = np.zeros_like(x, dtype=float)
    moved = np.array(x, dtype=float)
    for _ in range(8):
        found -= 1 / moved
        moved += 1
    inverse = 1 / (moved * moved)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))))
    return found + np.log(moved) - 0.5 / moved - series


def byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
