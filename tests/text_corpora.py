"""Small texts that tests make for themselves."""

from __future__ import annotations

import random
from pathlib import Path

SUBJECTS = ["the cat", "a dog", "my neighbour", "the old clock", "a ship", "the baker"]
VERBS = ["sees", "follows", "forgets", "likes", "hears"]
ENDS = ["the sea", "a song", "the market", "an apple", "the rain", "nobody"]


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(ENDS)} {rng.randint(1, 99)}" for _ in range(n)
    ]


def corpus(path: Path, n: int = 300, seed: int = 0) -> Path:
    path.write_text("".join(line + "\n" for line in sentences(n, seed)), encoding="utf-8")
    return path
