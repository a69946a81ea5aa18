"""Cases of causal analyses from words: one prompt or pair, a file of them, or problems that a run draws itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from linnet.decoding.engine import generate
from linnet.decoding.requests import Decoding, Request, Sampling, Stopping
from linnet.decoding.runner import Runner
from linnet.domains.tokens import rows_of
from linnet.errors import BadInput, refuse_unknown
from linnet.probing.cases import METRICS, Cases, Subject
from linnet.untrusted import lines_of, parse_object
from linnet.workbench.open import Opened, load, located
from linnet.workbench.prompts import after_begin, choice_after, read_prompt

DRAWN = 64
LONGEST_ANSWER = 8  # tokens, where the model itself says what the answer is
WINDOW = 16  # tokens of a piece of text without questions, where rows are so long
KEYS = ("clean", "corrupt", "answer", "wrong")


class CaseOptions(TypedDict, total=False):
    """What an analysis is about: `prompt` (and `corrupt`), or `file`, or `n` problems of the run or of `data`."""

    prompt: str | None
    corrupt: str | None
    answer: str | None
    wrong: str | None
    file: Path | None
    data: Sequence[Path]
    n: int
    metric: str
    checkpoint: int | None


@dataclass(frozen=True)
class Words:
    """One case in words; what is None is asked of the model, or of a neighbour."""

    where: str
    clean: str
    corrupt: str | None = None
    answer: str | None = None
    wrong: str | None = None


@dataclass(frozen=True)
class Ids:
    """One case in ids."""

    clean: tuple[int, ...]
    answer: tuple[int, ...]
    corrupt: tuple[int, ...] | None = None
    wrong: tuple[int, ...] | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        return len(self.clean), len(self.answer)


@dataclass(frozen=True)
class Analysis:
    """An opened run with the measure of it; `tokens` names what the first case reads."""

    opened: Opened
    subject: Subject
    tokens: tuple[str, ...]
    what: str
    notes: tuple[str, ...]


def analysis_of(path: Path | str, *, needs_corrupt: bool = False, **options: Unpack[CaseOptions]) -> Analysis:
    """Open a run and make its cases; where there is no wrong answer, the measure is the log-probability."""
    metric = options.get("metric", "logit_difference")
    refuse_unknown(metric, METRICS, "there is no metric")
    opened = load(path, checkpoint=options.get("checkpoint"))
    if opened.model.config.columns:
        raise BadInput("this model reads further columns beside its tokens; causal analyses read tokens alone")
    found, notes = given_or_drawn(opened, options)
    alike = [one for one in found if one.lengths == found[0].lengths]
    if needs_corrupt and any(one.corrupt is None for one in alike):
        if len(alike) < 2:
            raise BadInput("this analysis compares two prompts; give a corrupt one beside the clean one")
        alike = with_neighbours(alike)
    cases = cases_of(alike, opened)
    if metric == "logit_difference" and cases.wrong is None:
        metric = "log_probability"
    tokens = tuple(opened.codec.tokens[i] for i in cases.ids[0].tolist())
    subject = Subject(opened.model, cases, METRICS[metric])
    return Analysis(opened, subject, tokens, metric.replace("_", " "), tuple(notes))


def given_or_drawn(opened: Opened, options: CaseOptions) -> tuple[list[Ids], list[str]]:
    prompt, file = options.get("prompt"), options.get("file")
    if prompt is not None and file is not None:
        raise BadInput("a prompt and --file exclude each other; give one of them")
    if options.get("data") and (prompt is not None or file is not None):
        raise BadInput("--data gives the problems of an analysis; leave it out beside a prompt or --file")
    further = (options.get("corrupt"), options.get("answer"), options.get("wrong"))
    if prompt is None and any(further):
        raise BadInput("a corrupt prompt, --answer and --wrong belong to one prompt; give the clean prompt too")
    if prompt is None and file is None:
        return drawn(opened, options)
    words = lines(file) if file is not None else [Words("the prompt", str(prompt), *further)]
    found = [in_ids(opened, one) for one in words]
    for one, ids in zip(words, found, strict=True):
        if ids.lengths != found[0].lengths:
            (p, a), (q, b) = ids.lengths, found[0].lengths
            raise BadInput(
                f"{one.where} has {p} tokens and its answer {a}, but those of {words[0].where} have {q} and {b}; "
                "cases that are computed together need one length"
            )
    return found, []


def lines(file: Path) -> list[Words]:
    """The cases of a file: one JSON object a line with `clean`, and `corrupt`, `answer`, `wrong` where known."""
    found = []
    for number, text in enumerate(lines_of(file), 1):
        where = f"{file}, line {number}"
        if not text.strip():
            continue
        stored = parse_object(text, where)
        for key in stored:
            refuse_unknown(key, KEYS, f"{where}: unknown key")
        if "clean" not in stored or not all(isinstance(value, str) for value in stored.values()):
            raise BadInput(f'{where}: a case needs a "clean" prompt, and texts; it is {json.dumps(stored)[:80]}')
        found.append(Words(where, **stored))
    if not found:
        raise BadInput(f"{file} has no cases")
    return found


def in_ids(opened: Opened, words: Words) -> Ids:
    """The ids of a case; answers that are not given are what the model itself writes."""
    clean = read_prompt(opened, words.clean, words.where).ids
    corrupt = None
    if words.corrupt is not None:
        corrupt = read_prompt(opened, words.corrupt, f"the corrupt prompt of {words.where}").ids
        if len(corrupt) != len(clean):
            raise BadInput(
                f"{words.where}: the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}; "
                "values can only be exchanged between prompts of one length"
            )
    answer = after(opened, clean, words.answer) if words.answer else written(opened, clean)
    wrong = None
    if words.wrong:
        wrong = after(opened, clean, words.wrong)
    elif corrupt is not None:
        wrong = written(opened, corrupt)
    length = min(len(answer), len(wrong if wrong is not None else answer))
    room = opened.model.config.context + 1 - len(clean)
    length = min(length, room)
    if not length:
        raise BadInput(f"{words.where}: the model ends at once, so there is no answer to ask about; give --answer")
    return Ids(clean, answer[:length], corrupt, None if wrong is None else wrong[:length])


def after(opened: Opened, prompt: tuple[int, ...], answer: str) -> tuple[int, ...]:
    """The ids of an answer behind its prompt."""
    return choice_after(opened.codec, after_begin(opened.codec, prompt), answer)


def written(opened: Opened, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """What the model itself answers, greedily, without the end."""
    stopping = Stopping(end=opened.codec.end)
    decoding = Decoding(Sampling(temperature=0), max_tokens=LONGEST_ANSWER, stopping=stopping)
    if len(prompt) >= opened.model.config.context:
        return ()
    (sample,) = generate(Runner(opened.model), [Request(prompt)], decoding)
    return tuple(i for i in sample.ids if i != opened.codec.end)


def drawn(opened: Opened, options: CaseOptions) -> tuple[list[Ids], list[str]]:
    """Problems that training did not read; of one length, each beside its neighbour."""
    n, data, run = options.get("n", DRAWN), options.get("data") or (), opened.run
    if n < 2:
        raise BadInput(f"n is {n}; at least two problems are compared with each other")
    if data:
        part = run.data.read(opened.codec, located(data))
    else:
        part = run.data.held_out(opened.codec, None, 4 * n, run.seed)
    found = []
    for question in part.questions[: 4 * n]:
        ids = opened.prompt(question.prompt)
        found.append(Ids(ids, after(opened, ids, question.answer)))
    if not found:
        rows = rows_of(part)
        window = min(WINDOW, max(rows.lengths, default=0) - 1)
        pieces = [rows.row(i)[: window + 1].tolist() for i in range(min(len(rows), 4 * n))]
        found = [Ids(tuple(piece[:-1]), (piece[-1],)) for piece in pieces if len(piece) > window > 0]
    if len(found) < 2:
        raise BadInput(f"these data have {len(found)} cases to ask about; at least two are compared")
    commonest = Counter(one.lengths for one in found).most_common(1)[0][0]
    alike = [one for one in found if one.lengths == commonest][:n]
    notes = (
        [] if len(alike) == n else [f"{len(alike)} problems have the commonest length ({sum(commonest)} tokens)"]
    )
    return with_neighbours(alike), notes


def with_neighbours(found: Sequence[Ids]) -> list[Ids]:
    """Each case with the prompt and the answer of the one before it as its corrupt ones."""
    others = [found[-1], *found[:-1]]
    return [
        Ids(one.clean, one.answer, other.clean, other.answer) for one, other in zip(found, others, strict=True)
    ]


def cases_of(found: Sequence[Ids], opened: Opened) -> Cases:
    device = opened.network.device

    def table(rows: Sequence[tuple[int, ...] | None]) -> torch.Tensor | None:
        return None if any(row is None for row in rows) else torch.tensor(rows, device=device)

    prompts, answers = table([one.clean for one in found]), table([one.answer for one in found])
    corrupt, wrong = table([one.corrupt for one in found]), table([one.wrong for one in found])
    assert prompts is not None and answers is not None
    return Cases.of_answers(prompts, answers, wrong=wrong, corrupt=corrupt, corrupt_answers=wrong)
