"""Defaults of every domain that is a stream of ids: the decoder, padded or packed rows, nats, exact answers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from linnet.codecs import Codec
from linnet.domains.contract import Domain, Material, Part, Question, Region, Scored
from linnet.errors import BadInput
from linnet.model.config import ModelConfig, NetworkConfig
from linnet.progress import tracked
from linnet.records import Baseline, Score
from linnet.rows import IDS, Rows, RowSource

if TYPE_CHECKING:
    import numpy as np

    from linnet.data import Plan
    from linnet.decoding.runner import Columns
    from linnet.evaluation import Units
    from linnet.model.contract import Network
    from linnet.model.model import Model
    from linnet.training.run import Run

OWN_UNIGRAM = "unigram of the scored text"
BEGINNING, LONGEST_BEGINNING = 12, 80  # tokens of a row that name it, and their characters


class TokenDomain(Domain):
    """A domain whose rows are tokens, and columns beside them where it declares some."""

    @classmethod
    def network_config(cls, kind: str | None) -> type[NetworkConfig]:
        return ModelConfig

    def sized(self, config: NetworkConfig, material: Material) -> NetworkConfig:
        assert isinstance(config, ModelConfig)
        parts = [rows_of(part) for part in (material.train, material.validation)]
        if not len(parts[0]):
            raise BadInput("the training part has no rows")
        context = config.context or max(rows.longest for rows in parts) - 1
        vocabulary = len(material.codec.tokens) if IDS in parts[0].columns else 0
        sizes = {"vocabulary": vocabulary, "context": max(1, context)}
        return ModelConfig.model_validate(config.model_dump() | sizes)

    def network(self, config: NetworkConfig, codec: Codec) -> Network:
        from linnet.model.model import Model

        assert isinstance(config, ModelConfig)
        return Model(config)

    def plan(self, rows: RowSource, run: Run) -> Plan:
        from linnet.data import Masked, Packed, Padded
        from linnet.evaluation import windows

        assert isinstance(rows, Rows) and isinstance(run.model, ModelConfig)
        training, context, drop = run.training, run.model.context, run.augment.drop
        if training.packing == "padded":
            fixed = context if training.one_shape else None
            plan: Plan = Padded(
                windows(rows, context)[0], training.batch, run.seed, context=context, fixed=fixed, drop=drop
            )
        else:
            apart = training.packing == "apart"
            plan = Packed(rows, training.batch, context, run.seed, apart=apart, drop=drop)
        return Masked(plan, run.augment.mask, run.model.vocabulary, run.seed) if run.augment.mask else plan

    def judge(self, network: Network, part: Part, *, batch: int, region: Region) -> float:
        from linnet.evaluation import nats

        return nats(decoder(network), rows_of(part), rows=batch, region=region).mean

    def score(
        self, network: Network, codec: Codec, part: Part, *, batch: int, region: Region, **options: Any
    ) -> Scored:
        """Shares of exact answers and likelihoods, each over all rows of the part."""
        from linnet.evaluation import Units, exact_scores, likelihood_scores, nats

        model, rows, scores = decoder(network), rows_of(part), list[Score]()
        notes = cut_rows(part, codec, model.config.context, "scored")
        if part.questions:
            answers = answer(
                model, codec, part.questions, batch=batch, region=region, columns=self.further_columns(codec)
            )
            scores += exact_scores(part.questions, answers, self.right, self.baseline)
        if len(rows) and rows.targets:
            measured = nats(model, rows, rows=batch, region=region)
            beaten, *others = counted_baselines(part, codec)
            units = Units.of(rows, codec, part.unit)
            found = likelihood_scores(measured, rows, units, beaten)
            scores += [with_note(one, part.note, beaten, others) for one in found]
            further = self.further_scores(model, codec, rows, units, beaten, batch=batch, region=region)
            scores, notes = [*scores, *further.scores], [*notes, *further.notes]
        return Scored(tuple(scores), notes=tuple(notes))

    def remarks(self, run: Run, material: Material) -> tuple[str, ...]:
        assert isinstance(run.model, ModelConfig)
        parts = (("training", material.train), ("validation", material.validation))
        return tuple(
            note for name, part in parts for note in cut_rows(part, material.codec, run.model.context, name)
        )

    def right(self, question: Question, answer: str) -> bool:
        """Whether a generated answer is exactly right."""
        return answer == question.answer

    def baseline(self, questions: Sequence[Question]) -> Baseline:
        """The best share of right answers that a rule without a model reaches on these questions."""
        return Baseline(name="no answer", value=0.0)

    def further_scores(
        self, model: Model, codec: Codec, rows: Rows, units: Units, beaten: Baseline, *, batch: int, region: Region
    ) -> Scored:
        """Scores of published protocols, beside those of every token."""
        return Scored(())

    def follow(self, codec: Codec, ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Further columns at each of these ids: known in advance, constant, or computed from the ids."""
        return {}

    def further_columns(self, codec: Codec) -> Columns:
        """What decoding reads beside the tokens."""
        return functools.partial(self.follow, codec)


def rows_of(part: Part) -> Rows:
    assert isinstance(part.rows, Rows), "a domain of tokens stores its rows"
    return part.rows


def decoder(network: Network) -> Model:
    """The network as the model that reads and writes tokens."""
    from linnet.model.model import Model

    if not isinstance(network, Model):
        raise BadInput("this run reads and writes no tokens: use predict, eval and the verbs of its domain")
    return network


def with_note(score: Score, note: str, beaten: Baseline, others: Sequence[Baseline]) -> Score:
    """The score with what a person should know of it; the weaker baselines in its own unit."""
    scale = score.baseline.value / beaten.value if beaten.value else 0.0
    weaker = ", ".join(f"{other.name} {other.value * scale:.4f}" for other in others)
    return score.model_copy(update={"note": "; ".join(text for text in (note, weaker, score.note) if text)})


def counted_baselines(part: Part, codec: Codec) -> list[Baseline]:
    """What models that only count reach, in nats per scored token; the best one first."""
    from linnet.evaluation import unigram

    found = part.baselines() if part.baselines is not None else ()
    if not found:  # a model of training text is not at hand: the one of the scored text itself is hard to beat
        found = (Baseline(name=OWN_UNIGRAM, value=unigram(rows_of(part), len(codec.tokens))),)
    return sorted(found, key=lambda baseline: baseline.value)


def cut_rows(part: Part, codec: Codec, context: int, name: str) -> list[str]:
    """Rows that the context cuts, counted, and the first of them named."""
    rows = rows_of(part)
    longer = rows.longer_than(context)
    if not len(longer) or IDS not in rows.columns:
        return []
    first = rows.row(int(longer[0]))
    begins = codec.decode(first[:BEGINNING].tolist())[:LONGEST_BEGINNING]
    return [
        f"{len(longer):,} of {len(rows):,} {name} rows are longer than the context of {context} tokens and are "
        f"read in pieces; the first has {len(first) - 1:,} tokens and begins {begins!r}"
    ]


def answer(
    model: Model,
    codec: Codec,
    questions: Sequence[Question],
    *,
    batch: int,
    region: Region,
    columns: Columns | None = None,
) -> list[str]:
    """What the model itself writes after each question, greedily, until it ends or the context is full.

    A question that does not fit into the context gets the empty answer.
    """
    from linnet.decoding.engine import generate
    from linnet.decoding.requests import Decoding, Request, Sampling, Stopping
    from linnet.decoding.runner import Runner

    begin = [] if codec.begin is None else [codec.begin]
    context = model.config.context
    prompts = [(*begin, *codec.encode(question.prompt).ids.tolist()) for question in questions]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= context]
    requests = [Request(prompts[index]) for index in fitting]
    answers = [""] * len(questions)
    greedy = Decoding(Sampling(temperature=0), max_tokens=context, stopping=Stopping(end=codec.end))
    with region():
        samples = generate(Runner(model, columns=columns), requests, greedy, rows=batch)
        answering = tracked(zip(fitting, samples, strict=True), "answering", len(fitting))
        for index, sample in answering:
            ids = prompts[index][len(begin) :]
            answers[index] = codec.continuation(ids, sample.ids)
    return answers
