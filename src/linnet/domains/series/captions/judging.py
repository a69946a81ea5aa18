"""The second checker: statements are found by the words of a clause, and decided by one joint regression.

It shares no code with `reading` and `facts`, and nothing is trained or searched on it: scores come from it. Line,
step and season are fitted together, where `facts` removes one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEMS = {
    "maximum": ("peak", "maxim", "highest", "top", "tops", "max", "summit"),
    "minimum": ("minim", "lowest", "bottom", "trough", "min"),
    "volatility": ("nois", "scatter", "volatil", "fluctuat", "calm", "variab", "varian", "wobbl", "swing"),
    "jump": ("sudden", "jump", "abrupt", "break", "shift", "leap", "plung", "plummet"),
    "season": ("cycl", "season", "repeat", "period", "recur", "oscillat", "return"),
    "halves": ("half", "halv"),
    "trend": ("trend", "overall", "direction", "drift", "steadily"),
    "level": ("averag", "mean", "typical", "level", "hover"),
}
RISING = (
    "up",
    "upward",
    "rise",
    "rising",
    "rose",
    "climb",
    "increas",
    "grow",
    "gain",
    "higher",
    "above",
    "larger",
    "bigger",
    "leap",
    "exceed",
    "noisier",
    "wider",
    "louder",
    "rougher",
)
FALLING = (
    "down",
    "downward",
    "fall",
    "fell",
    "declin",
    "decreas",
    "drop",
    "lower",
    "below",
    "sink",
    "shrink",
    "smaller",
    "calm",
    "less",
    "descend",
    "plung",
    "plummet",
    "narrow",
    "quieter",
    "smoother",
)
LEVEL = ("flat", "same", "steady", "stable", "constant", "equal", "unchanged", "keep", "alike", "high")
DENIALS = frozenset(
    ("no", "not", "never", "nothing", "neither", "without", "lack", "lacks", "none", "cannot", "hardly")
)
STOPS = frozenset(("and", "but", "while", "whereas", "although", "though", "yet"))
SUBJECTS = (
    "the",
    "there",
    "it",
    "its",
    "a",
    "an",
    "no",
    "nothing",
    "both",
    "every",
    "values",
    "volatility",
    "fluctuations",
    "from",
    "around",
    "at",
    "in",
    "on",
    "by",
    "near",
    "early",
    "late",
    "halfway",
    "close",
    "also",
    "later",
    "neither",
)
WHERE = {
    "early": ("early", "start", "begin", "opening", "first"),
    "middle": ("middle", "halfway", "central", "centre", "center", "midway"),
    "late": ("late", "end", "closing", "last", "final"),
}
BEFORE_STEP = frozenset(("step", "index", "point", "position", "observation", "sample", "time", "number"))
WORD = re.compile(r"[-−]?\d+(?:,\d{3})+(?:\.\d+)?|[-−]?\d+(?:\.\d+)?(?:st|nd|rd|th)?|[a-z]+(?:n't)?|[.,;:!?]")
CONSTANT = 1e-9


@dataclass(frozen=True)
class Statement:
    """What one clause says; `direction` is 1, -1 or 0 for a change and its absence."""

    kind: str
    direction: int | None = None
    step: int | None = None
    third: str = ""
    amount: float | None = None
    period: int | None = None
    denied: bool = False

    @property
    def says_something(self) -> bool:
        """Whether it could be wrong of another series."""
        if self.kind in ("maximum", "minimum"):
            return self.step is not None or self.third != "" or self.amount is not None
        return self.amount is not None if self.kind == "level" else self.direction is not None


def statements(text: str) -> list[Statement]:
    """All statements of a caption in their order."""
    words = WORD.findall(text.lower().replace("−", "-"))
    return [found for clause in _split(words) if (found := _statement(clause)) is not None]


def _split(words: Sequence[str]) -> list[list[str]]:
    """Clauses end at a full stop, at a semicolon, and at a conjunction that a new subject follows."""
    clauses: list[list[str]] = [[]]
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word in ".;:!?" or (word in STOPS and following in SUBJECTS):
            clauses.append([])
        elif word != ",":
            clauses[-1].append(word)
    return [clause for clause in clauses if clause]


def _starts(word: str, stems: Sequence[str]) -> bool:
    return any(word == stem or (len(stem) > 3 and word.startswith(stem)) for stem in stems)


def _kind(clause: Sequence[str]) -> str:
    """The kind of fact that most words name; earlier kinds win a tie, and `every 12 steps` counts for a season."""
    votes = {kind: sum(_starts(word, stems) for word in clause) for kind, stems in STEMS.items()}
    joined = " ".join(clause)
    votes["minimum"] += "the low " in joined + " " and "lower" not in joined
    votes["season"] += bool(re.search(r"every \d+", joined)) + bool(
        re.search(r"regular (pattern|cycle)|\bpattern\b", joined)
    )
    votes["jump"] += bool(re.search(r"(step|steps|level) (up|down)|(upward|downward|no) step|at once", joined))
    votes["trend"] += bool(re.search(r"start to end|beginning to end|whole (record|series)", joined))
    votes["volatility"] += bool(re.search(r"nois|scatter|volat|fluct", joined))
    votes["level"] += "lie around" in joined
    if votes["trend"] and "halfway" not in joined and not votes["volatility"]:
        votes["trend"] += 1
    if "halfway" in joined or re.search(r"(second|first) half$", joined):
        votes["halves"] -= 1
    best = max(votes, key=lambda kind: votes[kind])
    return best if votes[best] > 0 else ""


def _statement(clause: Sequence[str]) -> Statement | None:
    kind = _kind(clause)
    if not kind:
        return None
    denied = any(word in DENIALS or word.endswith("n't") for word in clause)
    step, period, amount = _numbers(clause, kind)
    third = "" if step is not None else _third(clause)
    if kind in ("maximum", "minimum"):
        return Statement(kind, None, step, third, amount, denied=denied)
    if kind == "level":
        return None if amount is None else Statement(kind, amount=amount, denied=denied)
    if kind == "season":
        if denied and period is None:
            return Statement(kind, 0)
        return Statement(kind, 1, period=period, denied=denied)
    direction = _direction(clause, kind)
    if denied and (direction is None or kind == "jump" and not _sided(clause)):
        return Statement(kind, 0)
    if direction is None:
        return None
    return Statement(kind, direction, *((step, third) if kind == "jump" else (None, "")), denied=denied)


def _sided(clause: Sequence[str]) -> bool:
    return any(_starts(word, ("up", "upward", "down", "downward", "drop", "rise", "fall")) for word in clause)


def _direction(clause: Sequence[str], kind: str) -> int | None:
    up = any(_starts(word, RISING) for word in clause)
    down = any(_starts(word, FALLING) for word in clause)
    level = any(_starts(word, LEVEL) and word != "higher" and word != "highest" for word in clause)
    if kind == "jump":
        return -1 if down else 1 if up or "jump" in clause or "jumps" in clause else None
    if kind == "volatility" and any(word in ("more", "noisier") for word in clause) and not down:
        return 1
    if kind == "halves":
        if level and not (up or down):
            return 0
        return _second_half(clause, 1 if up else -1 if down else None)
    if level and not (up or down):
        return 0
    return 1 if up and not down else -1 if down else None


def _second_half(clause: Sequence[str], direction: int | None) -> int | None:
    """The direction seen from the second half, also where the first half is the subject."""
    first = next((i for i, word in enumerate(clause) if word in ("first", "earlier")), len(clause))
    second = next((i for i, word in enumerate(clause) if word in ("second", "later", "latter")), len(clause))
    return direction if direction is None or second <= first else -direction


def _numbers(clause: Sequence[str], kind: str) -> tuple[int | None, int | None, float | None]:
    """(step, period, amount): what each number of the clause is follows from the words around it."""
    step = period = amount = None
    for index, word in enumerate(clause):
        if not re.match(r"[-−]?\d", word):
            continue
        before = clause[index - 1] if index else ""
        after = clause[index + 1] if index + 1 < len(clause) else ""
        if word[-1] in "tdh" and not word[-1].isdigit():
            step = int(re.sub(r"\D", "", word))
            continue
        value = float(word.replace(",", "").replace("−", "-"))
        if kind == "season":
            period = int(value)
        elif before in BEFORE_STEP:
            step = int(value)
        elif after not in ("steps", "percent"):
            amount = value if amount is None else amount
    return step, period, amount


def _third(clause: Sequence[str]) -> str:
    for name in ("middle", "late", "early"):
        if any(_starts(word, WHERE[name]) for word in clause):
            return name
    return ""


@dataclass(frozen=True)
class Numbers:
    """What one series is like."""

    values: np.ndarray
    slope: float
    step: float
    step_at: int
    period: int
    strength: float
    ratio: float

    @classmethod
    def of(cls, values: np.ndarray) -> Numbers:
        x = np.asarray(values, np.float64)
        spread = x.std()
        if len(x) < 16 or spread <= CONSTANT * max(1.0, abs(x.mean())):
            return cls(x, 0.0, 0.0, 0, 0, 0.0, 1.0)
        z = (x - x.mean()) / spread
        n = len(z)
        _, _, plain = _fit(z, 0)
        period, strength = _strongest(plain)
        index, height, rest = _fit(z, period if strength > 0.25 else 0)
        one, two = rest[: n // 2], rest[n - n // 2 :]
        slope = float(np.cov(np.arange(n), z, bias=True)[0, 1] / np.arange(n).var() * (n - 1))
        deviation = max(float(np.sqrt((rest**2).mean())), 1e-6)
        ratio = max(float(two.std()), 1e-6) / max(float(one.std()), 1e-6)
        return cls(x, slope, height / deviation, index + 1, period, strength, ratio)


def _fit(z: np.ndarray, period: int) -> tuple[int, float, np.ndarray]:
    """The best of all steps beside a line and the phases of a period, all fitted at once."""
    n = len(z)
    columns = [np.ones(n), np.arange(n) / n]
    columns += [(np.arange(n) % period == phase).astype(float) for phase in range(1, period)]
    around = np.linalg.qr(np.stack(columns, 1))[0]
    left = z - around @ (around.T @ z)
    edge = max(3, n // 10)
    found = (0, 0.0, left)
    best = np.inf
    for index in range(edge, n - edge + 1):
        step = (np.arange(n) >= index).astype(float)
        step -= around @ (around.T @ step)
        height = float(step @ left / (step @ step))
        error = float(((left - height * step) ** 2).sum())
        if error < best:
            best, found = error, (index, height, left - height * step)
    return found


def _strongest(rest: np.ndarray) -> tuple[int, float]:
    """The shortest period whose phases explain nearly as much as the best, and the share that they explain."""
    n = len(rest)
    shares = {}
    total = float(rest.var()) * n / (n - 1)
    if total < 1e-12:
        return 0, 0.0
    for period in range(2, n // 3 + 1):
        phase = np.arange(n) % period
        means = np.bincount(phase, rest) / np.bincount(phase)
        shares[period] = 1 - float(((rest - means[phase]) ** 2).sum()) / (n - period) / total
    top = max(shares.values())
    period = next(period for period, share in shares.items() if share >= top - 0.1)
    return period, shares[period]


def judge(statement: Statement, numbers: Numbers) -> bool | None:
    """True, False, or None where it is too close to call."""
    if statement.denied:
        plain = Statement(**{**statement.__dict__, "denied": False})
        held = judge(plain, numbers)
        return None if held is None else not held
    x, kind = numbers.values, statement.kind
    if kind == "level":
        return _amount(statement.amount, float(x.mean()), x)
    if kind in ("maximum", "minimum"):
        return _extreme(statement, x)
    if len(x) < 16 or x.std() <= CONSTANT * max(1.0, abs(x.mean())):
        return x.std() <= CONSTANT * max(1.0, abs(x.mean())) and statement.direction == 0
    if kind == "trend":
        return _change(statement.direction, numbers.slope, 2.0, 1.2)
    if kind == "volatility":
        return _change(statement.direction, float(np.log(numbers.ratio)), float(np.log(1.7)), float(np.log(1.3)))
    if kind == "halves":
        half = len(x) // 2
        return _change(statement.direction, float((x[-half:].mean() - x[:half].mean()) / x.std()), 0.5, 0.2)
    if kind == "jump":
        return _all(
            _change(statement.direction, numbers.step, 3.0, 1.5), _where(statement, [numbers.step_at], len(x))
        )
    return _season(statement, numbers)


def _all(*held: bool | None) -> bool | None:
    return False if False in held else None if None in held else True


def _change(direction: int | None, size: float, clear: float, none: float) -> bool | None:
    """A change in this direction: there from `clear` on, not there up to `none`."""
    if direction == 0:
        return True if abs(size) <= none else False if abs(size) >= clear else None
    signed = size * (direction or 1)
    return True if signed >= clear else False if signed <= none else None


def _season(statement: Statement, numbers: Numbers) -> bool | None:
    there = _change(statement.direction, numbers.strength, 0.5, 0.25)
    if statement.period is None or statement.direction == 0 or not numbers.period:
        return there
    off = abs(statement.period - numbers.period)
    return _all(there, True if off <= 0.04 * numbers.period else None if off <= 1 else False)


def _amount(amount: float | None, actual: float, x: np.ndarray) -> bool | None:
    if amount is None:
        return None
    off = abs(amount - actual) / max(abs(actual), float(x.std()), 1e-12)
    return True if off <= 0.05 else False if off >= 0.1 else None


def _extreme(statement: Statement, x: np.ndarray) -> bool | None:
    sign = 1 if statement.kind == "maximum" else -1
    best = (sign * x).max()
    steps = [i + 1 for i, value in enumerate(sign * x) if value >= best - 0.02 * (x.max() - x.min())]
    held = _where(statement, steps, len(x))
    return held if statement.amount is None else _all(held, _amount(statement.amount, sign * float(best), x))


def _where(statement: Statement, steps: Sequence[int], n: int) -> bool | None:
    """Whether the position is right for one of these steps."""
    if statement.step is not None:
        off = min(abs(statement.step - step) for step in steps)
        return True if off <= max(1.0, 0.03 * n) else False if off >= max(2.0, 0.06 * n) else None
    if not statement.third:
        return True
    held = [_in_third(statement.third, step, n) for step in steps]
    return True if True in held else None if None in held else False


def _in_third(third: str, step: int, n: int) -> bool | None:
    """Inside or outside of the third, by more than 4 % of the length."""
    share, margin = (step - 0.5) / n, 0.04
    low, high = {"early": (-1.0, 1 / 3), "middle": (1 / 3, 2 / 3), "late": (2 / 3, 2.0)}[third]
    if low + margin <= share <= high - margin:
        return True
    return False if share <= low - margin or share >= high + margin else None
