"""What a trained run is used for: scoring, looking inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from linnet.domains import Part
from linnet.domains.arithmetic import ArithmeticData
from linnet.domains.places.data import PlacesData
from linnet.domains.text import TextData
from linnet.errors import BadInput, nearest
from linnet.probing.attention import patterns
from linnet.records import AttentionRecord, ScoresRecord
from linnet.sequences import Sequences
from linnet.training.run import explain, parse_setting
from linnet.workbench.comparing import score_places
from linnet.workbench.opening import Opened, load, load_packed, located
from linnet.workbench.scoring import averaged_weights, cut_rows, no_block, score

TEST_QUESTIONS = 10_000
HELD_OUT = ("test", "out_of_distribution")


def settings_of(given: Sequence[str], **known: Any) -> dict[str, Any]:
    """The settings of a verb: the known ones with their defaults, changed by `--set`."""
    chosen = dict(known)
    for setting in given:
        key, value = parse_setting(setting)
        if key not in known:
            raise BadInput(f'--set: unknown key "{key}"{nearest(key, known)}')
        if not isinstance(value, type(known[key])) or isinstance(value, bool):
            raise BadInput(f"--set {setting}: {key} needs a {type(known[key]).__name__}, not {value!r}")
        if isinstance(value, int) and value < 1:
            raise BadInput(f"--set {setting}: {key} must be at least 1")
        chosen[key] = value
    return chosen


def evaluate(
    path: Path | str,
    *,
    data: Sequence[Path] = (),
    split: str | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
    precision: str | None = None,
    checkpoint: int | None = None,
) -> ScoresRecord:
    """Score a run on whole files, or on held-out problems of a domain that draws its own."""
    # Rounded weights are scored as generation multiplies them; the other precisions are those of training.
    opener = load_packed if precision in ("int8", "int4", "bf16") else load
    opened = opener(path, checkpoint=checkpoint, device=device, precision=precision)
    named = ", ".join(map(str, data))
    if isinstance(opened.run.data, PlacesData) and data:
        chosen = settings_of(settings, batch=256, filter="", information="", ranker=0)
        scores, systems, notes = score_places(opened, opened.run.data, located(data), split, **chosen)
        return ScoresRecord(run=str(path), data=named, scores=tuple(scores), systems=tuple(systems), notes=notes)
    domain, reading = opened.run.data, {}
    if isinstance(domain, TextData):
        settings = [setting.removeprefix("data.") for setting in settings]
        reading = {key: getattr(domain, key) for key in ("errors", "field", "documents")}
    chosen = settings_of(settings, batch=256, n=TEST_QUESTIONS, **reading)
    if isinstance(domain, TextData):
        domain = reading_so(domain, {key: chosen[key] for key in reading})
    part = domain.read(opened.codec, located(data), split) if data else held_out(opened, split, chosen["n"])
    if len(part.rows) == 0 and not part.questions:
        where = f"rows with split {split!r}" if split else "rows"
        raise BadInput(f"there are no {where} in {', '.join(map(str, data))}")
    scores = score(opened.network, opened.codec, domain, part, rows=chosen["batch"], region=opened.region)
    named = named or f"{len(part.questions)} drawn problems ({split or 'test'})"
    return ScoresRecord(
        run=str(path), data=named, scores=tuple(scores), notes=(*part.notes, *remarks(opened, part))
    )


def reading_so(domain: TextData, chosen: Mapping[str, Any]) -> TextData:
    """The data of a run, read as it read its own unless it is told otherwise."""
    try:
        return TextData.model_validate({**domain.model_dump(), **chosen})
    except ValidationError as error:
        raise BadInput(f"--set: {explain(error, chosen)}") from None


def remarks(opened: Opened, part: Part) -> list[str]:
    """What a person should know of these rows and this model, beside what was met while the files were read."""
    said = cut_rows(part, opened.codec, opened.model.config.context, "scored")
    said += no_block(opened.run.data, part, opened.codec, "text")
    return said + averaged_weights(opened.run)


def held_out(opened: Opened, split: str | None, n: int) -> Part:
    """Problems that training never saw: the test share of the space, or what lies beyond it."""
    domain = opened.run.data
    if not isinstance(domain, ArithmeticData) or domain.paths:
        raise BadInput("this run was trained on files, so its scores need --data")
    if split not in (None, *HELD_OUT):
        raise BadInput(f'there is no split "{split}"{nearest(str(split), HELD_OUT)}')
    draw = domain.out_of_distribution if split == "out_of_distribution" else domain.test_questions
    questions = draw(n, opened.run.seed)
    return Part(Sequences.frame(opened.codec, []), questions)


def attention(path: Path | str, text: str, *, checkpoint: int | None = None) -> AttentionRecord:
    """Where each head looks while the model reads a text."""
    opened = load(path, checkpoint=checkpoint)
    ids = opened.prompt(text)
    if len(ids) > opened.model.config.context:
        raise BadInput(f"the text has {len(ids)} tokens, and the context is {opened.model.config.context}")
    if "attention" not in opened.model.config.mixers:
        raise BadInput("this model has no attention layer to look into")
    values = patterns(opened.model, ids)
    names = tuple(opened.codec.tokens[token] for token in ids)
    return AttentionRecord(tokens=names, values=values.tolist())
