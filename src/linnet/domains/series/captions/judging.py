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
    "maximum": "peak maxim highest top tops max summit largest strongest warmest crest exceed",
    "minimum": "minim lowest bottom trough min smallest weakest coldest",
    "volatility": "nois scatter volatil fluctuat calm variab varian wobbl swing erratic spread",
    "jump": "sudden jump abrupt break shift leap plung plummet collaps",
    "season": "cycl season repeat period recur oscillat return rhythm",
    "halves": "half halv midpoint",
    "trend": "trend overall direction drift steadily tendenc slope path",
    "level": "averag mean typical level hover",
}
PHRASES = {  # that count as one more word of a kind
    "maximum": r"\bthe high\b(?! as)|high (?:of|point)",
    "minimum": r"\b(?:a|the) low\b|low (?:of|point)",
    "season": r"every \d+|regular (?:pattern|cycle)|\bpattern\b|\bcomes? (?:back|round)",
    "jump": r"(?:step|steps|level) (?:up|down)\b|(?:upward|downward|no) step\b|at once",
    "trend": r"(?:start|beginning|end) to end|whole (?:record|series|period)|long run|over time|goes nowhere",
    "volatility": r"nois|scatter|volat|fluct",
    "level": r"lie around|overall level",
}
RISING = (
    "up upward rise rises rising rose climb increas grow gain higher above larger bigger leap exceed noisier "
    "wider louder rougher widen lifted raised greater stronger outperform"
)
FALLING = (
    "down downward fall fell declin decreas drop lower below sink shrink smaller calm less descend plung plummet "
    "narrow quieter smoother reduced collaps weaker damp fade settle"
)
LEVEL = "flat same steady stable constant equal unchanged keep alike high evenly nowhere par different"
DENIALS = "no not never nothing neither nor without lack lacks none cannot hardly"
CUTS = ", and but while whereas although though yet with which so since then because nor only"
STOPS = ". ; : ! ?"
NUMBERS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "ten": "10",
    "twelve": "12",
}
WHERE = {
    "early": "early start begin opening first",
    "middle": "middle halfway central centre center midway",
    "late": "late end closing last final",
}
BEFORE_STEP = frozenset(("step", "index", "point", "position", "observation", "sample", "time", "number"))
WORD = re.compile(r"[-−]?\d+(?:,\d{3})+(?:\.\d+)?|[-−]?\d+(?:\.\d+)?(?:st|nd|rd|th)?|[a-z]+n't|[a-z]+|[.,;:!?]")
CONSTANT = 1e-9
FARTHEST = 1e15  # of a step that a text names; hundreds of digits are infinite as a number


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
    words = WORD.findall(text.lower().replace("−", "-").replace("half way", "halfway"))
    plain = [NUMBERS.get(word, word) for word in words]
    return [found for clause in _split(plain) if (found := _statement(clause)) is not None]


def _split(words: Sequence[str]) -> list[list[str]]:
    """Clauses end at a stop, and at a comma or a conjunction between two kinds of facts."""
    clauses: list[list[str]] = []
    for sentence in _parts(words, STOPS):
        open_clause: list[str] = []
        for part in _parts(sentence, CUTS):
            kinds = _kind(open_clause), _kind(part)
            if all(kinds) and kinds[0] != kinds[1]:
                clauses.append(open_clause)
                open_clause = []
            open_clause = [*open_clause, *part]
        clauses.append(open_clause)
    return [clause for clause in clauses if clause]


def _parts(words: Sequence[str], cuts: str) -> list[list[str]]:
    """The words between cuts; each part begins with its cut."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in cuts.split():
            parts.append([])
        parts[-1].append(word)
    return parts


def _starts(word: str, stems: str) -> bool:
    return any(word == stem or (len(stem) > 3 and word.startswith(stem)) for stem in stems.split())


def _has(clause: Sequence[str], stems: str) -> bool:
    return any(_starts(word, stems) for word in clause)


def _kind(clause: Sequence[str]) -> str:
    """The kind of fact that most words name; earlier kinds win a tie, and `every 12 steps` counts for a season."""
    words = [word for word in clause if word not in ".,;:!?"]
    joined = " ".join(words)
    votes = {kind: sum(_starts(word, stems) for word in words) for kind, stems in STEMS.items()}
    for kind, pattern in PHRASES.items():
        votes[kind] += bool(re.search(pattern, joined))
    votes["trend"] -= 2 * ("overall level" in joined)
    votes["season"] -= "whole period" in joined
    if votes["trend"] > 0 and "halfway" not in joined and not votes["volatility"]:
        votes["trend"] += 1
    if "halfway" in joined or re.search(r"(second|first) half$", joined):
        votes["halves"] -= 1
    best = max(votes, key=lambda kind: votes[kind])
    if votes[best] > 0:
        return best
    return "trend" if _moving(words) else ""


def _moving(words: Sequence[str]) -> bool:
    """Whether a clause without a word of any kind says that the series rises, falls or stays as it is."""
    if any(word[0].isdigit() or _starts(word, "first last") for word in words):
        return False
    return _has(words, "rise rises rising climb fall falls falling declin grows flat stable")


def _statement(clause: Sequence[str]) -> Statement | None:
    words = [word for word in clause if word not in ".,;:!?"]
    kind = _kind(words)
    if not kind:
        return None
    denied = any(word in DENIALS.split() or word.endswith("n't") for word in words)
    step, period, amount = _numbers(clause, kind)
    third = "" if step is not None else _third(words)
    if kind in ("maximum", "minimum"):
        return Statement(kind, None, step, third, amount, denied=denied and not _has(words, "exceed"))
    if kind == "level":
        return None if amount is None else Statement(kind, amount=amount, denied=denied)
    if kind == "season":
        if denied and period is None:
            return Statement(kind, 0)
        return Statement(kind, 1, period=period, denied=denied)
    direction = _direction(words, kind)
    nothing = "neither" in words or "nowhere" in words or "no different" in " ".join(words)
    if nothing or (denied and (direction is None or kind == "jump" and not _sided(words))):
        return Statement(kind, 0)
    if direction is None:
        return None
    if kind == "jump":
        return Statement(kind, direction, step, third, amount, denied=denied)
    return Statement(kind, direction, denied=denied)


def _sided(clause: Sequence[str]) -> bool:
    return _has(clause, "up upward down downward drop rise fall")


def _direction(clause: Sequence[str], kind: str) -> int | None:
    up, down = _has(clause, RISING), _has(clause, FALLING)
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
        whole = int(np.clip(value, -FARTHEST, FARTHEST))
        if kind == "season":
            period = whole
        elif before in BEFORE_STEP:
            step = whole
        elif after not in ("steps", "percent"):
            amount = value if amount is None else amount
    return step, period, amount


def _third(clause: Sequence[str]) -> str:
    for name in ("middle", "late", "early"):
        if _has(clause, WHERE[name]):
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
