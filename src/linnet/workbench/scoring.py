"""The scores of a part of a data set: likelihood of its rows, exactness of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from linnet.codecs import Codec
from linnet.decoding.generate import Ask, generate
from linnet.decoding.sampling import Sampling
from linnet.domains import Domain, Part, Question
from linnet.evaluation import exact_scores, likelihood_scores, nats, unigram
from linnet.model.model import Model
from linnet.records import Baseline, Score


def score(
    model: Model,
    codec: Codec,
    domain: Domain,
    part: Part,
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> list[Score]:
    """Every score that this part allows, each over all of its rows."""
    scores = []
    if part.questions:
        answers = answer(model, codec, part.questions, rows=rows, region=region)
        scores += exact_scores(part.questions, answers, domain.right, domain.baseline)
    if len(part.sequences) and part.sequences.targets:
        measured = nats(model, part.sequences, rows=rows, region=region)
        beaten = Baseline(name="unigram", value=unigram(part.sequences, len(codec.tokens)))
        scores += likelihood_scores(measured, part.sequences, beaten)
    return scores


def answer(
    model: Model,
    codec: Codec,
    questions: Sequence[Question],
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> list[str]:
    """What the model itself writes after each question, greedily, until it ends or the context is full.

    A question that does not fit into the context gets the empty answer.
    """
    begin = [] if codec.begin is None else [codec.begin]
    context = model.config.context
    prompts = [(*begin, *codec.encode(question.prompt).ids.tolist()) for question in questions]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= context]
    asks = [Ask(prompts[index]) for index in fitting]
    answers = [""] * len(questions)
    with region():
        samples = generate(
            model, asks, sampling=Sampling(temperature=0), end=codec.end, max_tokens=context, rows=rows
        )
        for index, sample in zip(fitting, samples, strict=True):
            ids = prompts[index][len(begin) :]
            answers[index] = codec.continuation(ids, sample.ids)
    return answers
