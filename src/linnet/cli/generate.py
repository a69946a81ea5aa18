"""`linnet generate`: text on standard output, everything about it on standard error."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linnet import workbench
from linnet.cli.face import Face, spoken
from linnet.cli.groups import Groups
from linnet.cli.options import (
    CheckpointOption,
    DeviceOption,
    FileOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    PromptsArgument,
    RunArgument,
    SamplesOption,
    SeedOption,
    SettingsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    WeightsOption,
)
from linnet.errors import BadInput

if TYPE_CHECKING:
    from linnet.records import GenerationRecord, PieceRecord
    from linnet.workbench import Options, Session

StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End a sample before this text; \\n is a new line. May be repeated."
    ),
]
StopIdOption = Annotated[
    list[int] | None,
    typer.Option("--stop-id", metavar="ID", help="End a sample before this token. May be repeated."),
]
ChoiceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--choice",
        metavar="TEXT",
        help="A sample is one of these, drawn by what the model says of each as a whole.",
    ),
]
ChoicesOption = Annotated[
    Path | None, typer.Option("--choices", help="A file of choices, one a line.", show_default=False)
]
LogprobsOption = Annotated[bool, typer.Option("--logprobs", help="Give the log-probability of each token.")]
SessionOption = Annotated[
    bool, typer.Option("--session", help="Load once; each line of standard input is a prompt, answered at once.")
]
PatternOption = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        metavar="REGEX",
        help="A sample matches this; tokens are masked one by one, so it is not the model's own distribution.",
        show_default=False,
    ),
]
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
STANDARD_INPUT = Path("-")


@spoken
def generate(
    face: Face,
    run: RunArgument,
    prompts: PromptsArgument = None,
    file: FileOption = None,
    n: SamplesOption = 1,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    penalty: PenaltyOption = 1.0,
    stops: StopOption = None,
    stop_ids: StopIdOption = None,
    choice: ChoiceOption = None,
    choices: ChoicesOption = None,
    pattern: PatternOption = None,
    logprobs: LogprobsOption = False,
    session: SessionOption = False,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    precision: WeightsOption = None,
    settings: SettingsOption = None,
) -> None:
    """Go on from prompts; without one, from nothing but the begin token.

    The text is on standard output, and what is known of it (log-probability, why it ended, tokens/s) on standard
    error. For instance: linnet generate RUN "12+34=" -n 4
    """
    given = all_prompts(prompts or [], file, session=session)
    options: Options = {
        "n": n,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": penalty,
        "stops": [unescaped(text) for text in stops or []],
        "stop_ids": stop_ids or [],
        "choices": all_choices(choice, choices),
        "pattern": pattern,
        "logprobs": logprobs,
        "seed": seed,
        "settings": settings or [],
        "precision": precision,
        "pace": face.remark,
        "remark": face.remark,
    }
    opened = workbench.Session.open(run, checkpoint=checkpoint, device=device)
    if session:
        options["names"] = ["the prompt"]
        answer_lines(face, lambda line: write(face, opened, [prompt_in(line, "the prompt")], options))
    else:
        options["names"] = list(given)
        write(face, opened, list(given.values()) if given else None, options)


def answer_lines(face: Face, answer: Callable[[str], None]) -> None:
    """Answer each line of standard input; one that cannot be used is named, and the next one is read."""
    from linnet.untrusted import decoded

    refused, mark = 0, "> " if sys.stdin.isatty() else ""
    while True:
        typer.echo(mark, nl=False, err=True)
        line = sys.stdin.buffer.readline()
        if not line:
            break
        if line.strip(b"\r\n"):
            try:
                answer(decoded(line, "the line").rstrip("\r\n"))
            except BadInput as error:
                refused += 1
                face.remark(f"error: {error}")
    if refused:
        raise typer.Exit(BadInput.exit_code)


def write(face: Face, session: Session, prompts: list[str] | None, options: Options) -> None:
    """The samples of these prompts; a single one is written as it comes."""
    if face.json:
        for record in session.generate(prompts, **options):
            face.show(record)
        return
    Page(face).write(session.stream(prompts, **options), live=options["n"] == 1 and len(prompts or "-") == 1)


class Page:
    """Samples as text: plain in a pipe; on a terminal with colours, and a rule between two samples."""

    def __init__(self, face: Face, *, prompts: bool = True, facts: bool = True) -> None:
        self.face, self.terminal, self.prompts, self.facts = face, face.terminal, prompts, facts
        self.coloured = self.terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")

    def write(self, records: Iterable[PieceRecord | GenerationRecord], *, live: bool) -> None:
        """`live`: there is one sample, whose pieces are written as soon as they are certain."""
        written = begun = False
        for record in records:
            if record.kind == "piece" and not live:
                continue
            if written and self.terminal:
                self.face.write("\N{BOX DRAWINGS LIGHT HORIZONTAL}" * shutil.get_terminal_size().columns + "\n")
            if not begun and self.prompts:
                self._text(record.prompt, dim=True)
            if record.kind == "piece":
                self._text(record.text, bold=True)
                begun = True
                continue
            if not begun:
                self._text(record.text, bold=True)
            self.face.write("\n")
            for line in about(record) if self.facts else ():
                self.face.remark(f"   {line}")
            written, begun = True, False

    def _text(self, text: str, **style: bool) -> None:
        text = readable(text) if self.terminal else text
        self.face.write(typer.style(text, **style) if self.coloured and text else text)


def about(record: GenerationRecord) -> Iterator[str]:
    """What is known of a sample, line by line."""
    ties = f", near ties: {record.near_ties}" if record.near_ties else ""
    yield f"logprob {record.logprob:.3f}, {record.stop}{ties}"
    for token, logprob in zip(record.tokens or (), record.token_logprobs or (), strict=True):
        yield f"{logprob:9.3f}  {token!r}"
    for choice in record.choices or ():
        yield f"{choice.probability:9.4f}  logprob {choice.logprob:.3f}  {readable(choice.text)}"


def readable(text: str) -> str:
    """Text whose control characters are spelt out: a terminal would obey them."""
    kept = (c if c in "\n\t" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in text)
    return "".join(kept)


def unescaped(text: str) -> str:
    r"""Text with \n, \t, \r, \\, \xNN and \uNNNN as the characters that they stand for."""

    def character(found: re.Match[str]) -> str:
        named = found[1]
        if len(named) > 1:
            return chr(int(named[1:], 16))
        if named not in ESCAPES:
            raise BadInput(f"--stop {text!r}: \\{named} stands for nothing; a backslash itself is written \\\\")
        return ESCAPES[named]

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.|$)", character, text, flags=re.DOTALL)


def lines_in(path: Path) -> Iterable[str]:
    """The lines of a text file, which may be compressed, or of standard input."""
    from linnet.untrusted import decoded, lines_of

    if path != STANDARD_INPUT:
        return lines_of(path)
    return [line.rstrip("\r") for line in decoded(sys.stdin.buffer.read(), "standard input").split("\n")]


def all_prompts(given: list[str], file: Path | None, *, session: bool = False) -> dict[str, str]:
    """Prompts by where they stand: on the command line, and in the lines of a file or of standard input (`-`)."""
    if session and (given or file):
        raise BadInput("a session reads its prompts from standard input, one a line; give none beside it")
    found: dict[str, str] = {}
    for number, prompt in enumerate(given, 1):
        found |= prompts_of(STANDARD_INPUT) if prompt == "-" else {f"prompt {number}": prompt}
    found |= prompts_of(file) if file else {}
    if not found and (given or file):
        source = "standard input" if file in (None, STANDARD_INPUT) else file
        raise BadInput(f"there is nothing to go on from: {source} has no line with anything in it")
    return found


def all_choices(given: list[str] | None, file: Path | None) -> list[str] | None:
    """None where anything may be written."""
    if given is None and file is None:
        return None
    return [*(given or []), *(line for line in (lines_in(file) if file else []) if line)]


def prompts_of(path: Path) -> dict[str, str]:
    """The prompts of a file by the line where they stand."""
    source = "standard input" if path == STANDARD_INPUT else path
    lines = ((f"{source}, line {number}", text) for number, text in enumerate(lines_in(path), 1))
    return {name: prompt_in(text, name) for name, text in lines if text}


def prompt_in(text: str, name: str) -> str:
    """The line itself, or the `prompt` of a JSON object."""
    if not text.startswith("{"):
        return text
    from linnet.untrusted import parse_object

    prompt = parse_object(text, name).get("prompt")
    if not isinstance(prompt, str):
        raise BadInput(f'{name}: a JSON object needs a "prompt" that is text')
    return prompt


def join(groups: Groups) -> None:
    groups.top.command("generate")(generate)
