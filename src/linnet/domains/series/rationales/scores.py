"""How often the label after a rationale is right, how many facts of it hold, beside labels without words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from linnet.domains.contract import Scored
from linnet.domains.series.captions.facts import Verdict
from linnet.domains.series.captions.scores import EXAMPLES
from linnet.domains.series.metrics import Ratio
from linnet.domains.series.rationales import grammar
from linnet.domains.series.rationales.facts import Motion, measure
from linnet.intervals import Bootstrap
from linnet.records import Baseline, CaptionRecord, Fact, Score

if TYPE_CHECKING:
    from linnet.domains.series.rationales.data import Explained

VERDICTS: Mapping[Verdict, bool | None] = {"true": True, "false": False, "unclear": None}
ALONE = "label alone"
SHARES = ("accuracy", "macro_f1")
CONSTANT = "The motion keeps its strength; the posture stays; there is no clear rhythm."
NOTHING = "the same rationale for every window"


def one_hot(texts: Sequence[str], truth: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """float64 [n, K]: the label of each text; a text without one counts as wrong."""
    named = [grammar.label_in(text, classes) for text in texts]
    wrong = (truth + 1) % len(classes)
    found = [wrong[row] if name is None else classes.index(name) for row, name in enumerate(named)]
    return np.eye(len(classes))[found]


def rationale_scores(texts: Sequence[str], alone: np.ndarray, part: Explained) -> Scored:
    """Accuracy and macro F1 of the greedy rationale, the share of its facts that hold, and how many it states."""
    from linnet.domains.series.labelling import rivals, scored_labels

    rows = part.labelled
    assert rows is not None
    ours = one_hot(texts, rows.truth, rows.codec.classes)
    _, units = np.unique(rows.groups.astype(str), return_inverse=True)
    found = scored_labels({"this run": ours, ALONE: alone, **rivals(rows)}, rows.truth, units.ravel())
    systems = [
        one.model_copy(update={"values": {name: one.values[name] for name in SHARES}}) for one in found.systems
    ]
    facts = fact_scores(texts, part.windows, units.ravel())
    scores = (*(one for one in found.scores if one.name in SHARES), *facts)
    return Scored(scores, tuple(systems), found.notes, examples(texts, part.windows))


def examples(texts: Sequence[str], windows: Sequence[np.ndarray]) -> tuple[CaptionRecord, ...]:
    """Windows at equal distances in a part, each with its rationale; drawn is the length of the acceleration."""
    shown = []
    for row in np.linspace(0, len(texts) - 1, min(EXAMPLES, len(texts))).astype(int).tolist():
        checked = grammar.verdicts(texts[row], measure(windows[row]))
        facts = tuple(Fact(name=one.kind, text=one.value, true=VERDICTS[verdict]) for one, verdict in checked)
        values = tuple(np.linalg.norm(windows[row][:, :3], axis=1).tolist())
        shown.append(CaptionRecord(id=f"window {row + 1}", text=texts[row], facts=facts, values=values))
    return tuple(shown)


def fact_scores(texts: Sequence[str], windows: Sequence[np.ndarray], units: np.ndarray) -> list[Score]:
    """`facts_true` and `facts_said`, beside one rationale for all windows; intervals are over units."""
    measures = [measure(window) for window in windows]
    ours, plain = (
        np.array([counted(text, found) for text, found in zip(given, measures, strict=True)], float)
        for given in (texts, [CONSTANT] * len(texts))
    )
    scores = []
    for name, (one, other) in {"facts_true": (0, 1), "facts_said": (1, 2)}.items():
        sums, counts = (np.bincount(units, ours[:, column]) for column in (one, other))
        share = Ratio(sums[counts > 0], counts[counts > 0])
        if not len(share.counts):
            continue  # nothing is stated that could be decided
        draws = Bootstrap.draw(len(share.counts))
        low, high = draws.share_interval(share) if name == "facts_true" else draws.interval(share)
        baseline = Baseline(name=NOTHING, value=float(plain[:, one].sum() / max(1.0, plain[:, other].sum())))
        scores.append(Score(name=name, value=share.value, n=len(texts), low=low, high=high, baseline=baseline))
    return scores


def counted(text: str, found: Motion) -> tuple[int, int, int]:
    """Facts that hold, facts that can be decided, and 1."""
    decided = [verdict for _, verdict in grammar.verdicts(text, found) if verdict != "unclear"]
    return decided.count("true"), len(decided), 1
