"""Going on from prompts: samples as records, or their text as it comes."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from linnet.codecs import Codec
from linnet.decoding import engine
from linnet.decoding.compiling import Compiling
from linnet.decoding.products import Weights, packed
from linnet.decoding.requests import Decoding, Request, Sample, Sampling, Stopping
from linnet.decoding.runner import Runner
from linnet.errors import BadInput, counted
from linnet.records import ChoiceRecord, GenerationRecord, PieceRecord
from linnet.workbench.open import Opened, further_ends, opened_run, options_of, weights_in
from linnet.workbench.options import Options, check_options
from linnet.workbench.prompts import Prompt, after_begin, choice_after, no_prompt, read_prompt, text_after

if TYPE_CHECKING:
    from linnet.decoding.choices import Table
    from linnet.decoding.constraints import Pattern
    from linnet.decoding.requests import Streaming

Prompts = Sequence[str] | None  # None: one sample from nothing but the begin token


@dataclass(frozen=True)
class Pace:
    """How long it took; `first` is when the first token was there, so it is the time of the first prompts."""

    samples: int
    prompt_tokens: int
    tokens: int
    first: float
    seconds: float
    compiling: float = 0.0  # seconds of the first compiled step, which are among the others

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        compiled = f"; {self.compiling:.2f} s of that compiled the steps" if self.compiling else ""
        return (
            f"{counted(self.samples, 'sample')}, {counted(self.tokens, 'token')} in {self.seconds:.2f} s "
            f"({self.tokens_per_second:,.0f} tokens/s{compiled}); the first after {self.first:.2f} s "
            f"({counted(self.prompt_tokens, 'token')} of prompts)"
        )


def generate(
    run: Path | str | Opened,
    prompts: Prompts = None,
    *,
    checkpoint: int | None = None,
    device: str | None = None,
    **options: Unpack[Options],
) -> Iterator[GenerationRecord]:
    """Samples of each prompt, in the order of the prompts."""
    return Session.open(run, checkpoint=checkpoint, device=device).generate(prompts, **options)


def stream(
    run: Path | str | Opened,
    prompts: Prompts = None,
    *,
    checkpoint: int | None = None,
    device: str | None = None,
    **options: Unpack[Options],
) -> Iterator[PieceRecord | GenerationRecord]:
    """Pieces of text as soon as they are certain, and the samples in the order of the prompts."""
    return Session.open(run, checkpoint=checkpoint, device=device).stream(prompts, **options)


@dataclass
class Session:
    """A run that is loaded once and generates many times. The opened model stays as it was."""

    opened: Opened
    runners: dict[tuple[Weights, bool | None], Runner] = field(default_factory=dict)

    @classmethod
    def open(
        cls, run: Path | str | Opened, *, checkpoint: int | None = None, device: str | None = None
    ) -> Session:
        """The best checkpoint of a run (or a named one); an opened run is used as it is."""
        return cls(opened_run(run, checkpoint=checkpoint, device=device))

    def generate(self, prompts: Prompts = None, **options: Unpack[Options]) -> Iterator[GenerationRecord]:
        """Samples of each prompt, in the order of the prompts."""
        job = self.prepare(prompts, options)
        return (record for record in job.in_order(job.events()) if isinstance(record, GenerationRecord))

    def stream(
        self, prompts: Prompts = None, **options: Unpack[Options]
    ) -> Iterator[PieceRecord | GenerationRecord]:
        """Pieces of text as soon as they are certain, and the samples in the order of the prompts."""
        job = self.prepare(prompts, options)
        return job.in_order(job.with_pieces())

    def go_on(
        self, prompts: Sequence[Prompt], **options: Unpack[Options]
    ) -> Iterator[PieceRecord | GenerationRecord]:
        """The same after prompts that are ids already."""
        check_options(None, options)
        job = self.job(prompts, options)
        return job.in_order(job.with_pieces())

    def prepare(self, prompts: Prompts, options: Options) -> Job:
        """Read what is requested; what cannot be done is refused here."""
        check_options(prompts, options)
        return self.job(self._prompts(prompts, options), options)

    def job(self, given: Sequence[Prompt], options: Options) -> Job:
        n = options.get("n", 1)
        if n < 1:
            raise BadInput(f"n is {n}; at least one sample of each prompt is needed")
        weights, codec = weights_in(options.get("precision")), self.opened.codec
        settings = options_of(options.get("settings", ()), batch=64, compile="auto", lookup=0)
        rows, remark = settings["batch"], options.get("remark")
        decoding = replace(self._decoding(options, weights), lookup=settings["lookup"])
        requests = [Request(prompt.ids, sample) for prompt in given for sample in range(n)]
        decoding.check(self.opened.model.config, requests)
        choices = choices_of(self.opened, given, decoding, options)
        runner = self._runner(weights, settings["compile"], decoding, [] if choices else requests, rows)
        if remark is not None:
            for note in notes(given, decoding.sampling, n):
                remark(note)
        return Job(codec, runner, given, requests, decoding, rows, choices, options)

    def _prompts(self, prompts: Prompts, options: Options) -> list[Prompt]:
        if prompts is None:
            return [no_prompt(self.opened.codec)]
        names = options.get("names", [f"prompt {number}" for number in range(1, len(prompts) + 1)])
        return [read_prompt(self.opened, text, name) for text, name in zip(prompts, names, strict=True)]

    def _decoding(self, options: Options, weights: Weights) -> Decoding:
        config, codec = self.opened.model.config, self.opened.codec
        tokens, seed = options.get("max_tokens"), options.get("seed")
        sampling = Sampling(
            options.get("temperature", 1.0),
            options.get("top_k"),
            options.get("top_p"),
            options.get("min_p"),
            options.get("repetition_penalty", 1.0),
        )
        return Decoding(
            sampling,
            config.context if tokens is None else tokens,
            stopping_of(codec, options, further_ends(self.opened.folder, config.vocabulary)),
            pattern_of(codec, options),
            seed=0 if seed is None else seed,
            # In other numbers rounding moves far more than ties, and where tokens are drawn it moves few of them.
            count_ties=sampling.greedy and weights == "float32",
        )

    def _runner(
        self, weights: Weights, compile: str, decoding: Decoding, requests: Sequence[Request], rows: int
    ) -> Runner:
        """The model with packed weights beside the opened one, and one graph of a step where that pays."""
        if compile not in ("auto", "on", "off"):
            raise BadInput(f'--set compile={compile}: it can be "auto", "on" or "off"')
        model, compiling = self.opened.model, None
        config, device = model.config, model.device.type
        if config.columns:
            compile = "off"
        if compile == "on":
            compiling = Compiling.of(config, weights, device, len(requests), rows)
        elif compile == "auto":
            tokens = max((decoding.limit(config, request.prompt) for request in requests), default=0)
            compiling = Compiling.choose(config, weights, device, len(requests), rows, tokens)
        single = None if compiling is None else compiling.single
        key = (weights, single)
        if key not in self.runners:
            columns = self.opened.run.data.further_columns(self.opened.codec)
            self.runners[key] = Runner(packed(model, weights, single=bool(single)), compiling, columns=columns)
        return self.runners[key]


@dataclass(frozen=True)
class Job:
    """One call of `generate`: everything that it needs, checked."""

    codec: Codec
    runner: Runner
    prompts: Sequence[Prompt]
    requests: Sequence[Request]
    decoding: Decoding
    rows: int
    choices: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]] | None  # of each prompt
    options: Options
    tables: dict[tuple[int, ...], Table] = field(default_factory=dict)  # filled as choices are scored

    def prompt(self, index: int) -> Prompt:
        """The prompt of this request."""
        return self.prompts[index * len(self.prompts) // len(self.requests)]

    def record(self, index: int, sample: Sample) -> GenerationRecord:
        request, stopping = self.requests[index], self.decoding.stopping
        kept = self.options.get("logprobs", False)
        return GenerationRecord(
            prompt=self.prompt(index).text,
            text=stopping.cut(text_after(self.codec, request.prompt, sample.ids)),
            ids=sample.ids,
            logprob=sample.logprob,
            stop=sample.stop,
            near_ties=sample.near_ties if self.decoding.count_ties else None,
            tokens=self._names(sample.ids) if kept else None,
            token_logprobs=sample.token_logprobs if kept else None,
            choices=self._table(request) if request.sample == 0 else None,
        )

    def in_order(self, events: Iterator[engine.Event | PieceRecord]) -> Iterator[PieceRecord | GenerationRecord]:
        """Each finished sample when all before it are finished."""
        early: dict[int, GenerationRecord] = {}
        following = 0
        for event in events:
            if isinstance(event, PieceRecord):
                yield event
            elif isinstance(event, engine.Done):
                early[event.index] = self.record(event.index, event.sample)
            while following in early:
                yield early.pop(following)
                following += 1

    def with_pieces(self) -> Iterator[engine.Event | PieceRecord]:
        """The events of the engine, and between them what is certain of each text."""
        from linnet.decoding.requests import Streaming

        open_texts: dict[int, Streaming] = {}
        for event in self.events():
            request = self.requests[event.index]
            if event.index not in open_texts:
                known = after_begin(self.codec, request.prompt)
                open_texts[event.index] = Streaming(self.codec, known, self.decoding.stopping)
            if isinstance(event, engine.Tokens):
                written = (token for token in event.ids if token < len(self.codec.tokens))
                piece = "".join(map(open_texts[event.index].add, written))
            else:
                piece = open_texts.pop(event.index).finish()
            if piece:
                yield PieceRecord(prompt=self.prompt(event.index).text, sample=request.sample, text=piece)
            yield event

    def events(self) -> Iterator[engine.Event]:
        """What happens to the requests, with the time that it takes."""
        started, first, tokens = time.perf_counter(), 0.0, 0
        happening = (
            engine.events(self.runner, self.requests, self.decoding, rows=self.rows)
            if self.choices is None
            else self._chosen(self.choices)
        )
        for event in happening:
            if isinstance(event, engine.Tokens):
                tokens += len(event.ids)
            first = first or time.perf_counter() - started
            yield event
        spent, remark = time.perf_counter() - started, self.options.get("remark")
        while self.runner.notes and remark:
            remark(self.runner.notes.pop(0))
        if (pace := self.options.get("pace")) is not None:
            read = sum(len(prompt.ids) for prompt in self.prompts)
            compiling, self.runner.compile_seconds = self.runner.compile_seconds, 0.0
            pace(Pace(len(self.requests), read, tokens, first, spent, compiling))

    def _chosen(self, choices: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]]) -> Iterator[engine.Event]:
        """Samples that are choices, as soon as the choices of their prompt are scored."""
        from linnet.decoding.choices import tables

        indices: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(self.requests):
            indices.setdefault(request.prompt, []).append(index)
        ends = sorted(self.decoding.stopping.ends)
        for prompt, table in tables(self.runner, choices, ends, self.rows):
            self.tables[prompt] = table
            for index in indices[prompt]:
                sample = table.draw(self.requests[index], self.decoding.sampling, self.decoding.seed)
                yield engine.Tokens(index, sample.ids)
                yield engine.Done(index, sample)

    def _table(self, request: Request) -> tuple[ChoiceRecord, ...] | None:
        """All choices after a prompt, the likeliest first."""
        table = self.tables.get(request.prompt)
        if table is None:
            return None
        shares = table.probabilities(self.decoding.sampling)
        rows = sorted(zip(table.logprobs, shares, table.choices, strict=True), reverse=True)
        return tuple(
            ChoiceRecord(text=text_after(self.codec, request.prompt, ids), logprob=logprob, probability=share)
            for logprob, share, ids in rows
        )

    def _names(self, ids: Sequence[int]) -> tuple[str, ...]:
        """What each id writes; its name where that is nothing, or a part of a character."""
        names, pieces, found = self.codec.tokens, self.codec.pieces, []
        for token in ids:
            written = pieces[token].decode(errors="ignore") if pieces and token < len(pieces) else ""
            found.append(written or (names[token] if token < len(names) else str(token)))
        return tuple(found)


def notes(prompts: Sequence[Prompt], sampling: Sampling, n: int) -> Iterator[str]:
    """What a person should know of these prompts and of this sampling."""
    yield from dict.fromkeys(note for prompt in prompts for note in prompt.notes)
    if n > 1 and sampling.greedy:
        yield f"at temperature 0 the {n} samples of a prompt are all the same"


def stopping_of(codec: Codec, options: Options, further: Sequence[int]) -> Stopping:
    stops, ids = tuple(options.get("stops", ())), frozenset(options.get("stop_ids", ()))
    return Stopping(codec.end, ids, stops, codec.pieces, functools.partial(text_after, codec), frozenset(further))


def pattern_of(codec: Codec, options: Options) -> Pattern | None:
    expression = options.get("pattern")
    if expression is None:
        return None
    if options.get("choices") is not None:
        raise BadInput("a sample is one of some choices or matches a pattern; give one of them")
    if codec.pieces is None:
        raise BadInput("the tokens of this run do not write their text in order, so no pattern can be followed")
    from linnet.decoding.constraints import Pattern

    pattern = Pattern(expression, codec.pieces, codec.end)
    pattern.check()
    return pattern


def choices_of(
    opened: Opened, prompts: Sequence[Prompt], decoding: Decoding, options: Options
) -> dict[tuple[int, ...], list[tuple[int, ...]]] | None:
    """The ids of the choices after each prompt, since a text may be cut into tokens by what stands before it."""
    given = options.get("choices")
    if given is None:
        return None
    codec, config = opened.codec, opened.model.config
    if not given:
        raise BadInput("there are no choices to choose from")
    if decoding.sampling.repetition_penalty != 1 or decoding.stopping.ids or decoding.stopping.strings:
        raise BadInput("choices are drawn whole, so no penalty changes them and no stop ends them earlier")
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt in prompts:
        known = after_begin(codec, prompt.ids)
        found[prompt.ids] = list(dict.fromkeys(choice_after(codec, known, choice) for choice in given))
        _tell_apart(found[prompt.ids], decoding)
        longest = max(map(len, found[prompt.ids]))
        room = min(decoding.max_tokens, config.context - len(prompt.ids))
        if longest > room:
            raise BadInput(f"a choice has {longest} tokens, and there is room for {room} (max tokens, context)")
    return found


def _tell_apart(choices: Sequence[tuple[int, ...]], decoding: Decoding) -> None:
    """Refuse a choice that begins another one, where no end token ends it."""
    ordered = sorted(choices)
    for choice, after in itertools.pairwise(ordered):
        if not decoding.stopping.ends and after[: len(choice)] == choice:
            raise BadInput(
                f"the choice {list(choice)} begins another one, and this model has no end token to tell them apart"
            )
