"""How a command speaks: records on standard output, progress and errors on standard error.

`spoken` makes a command of a verb; `speaking` turns what goes wrong into one line and an exit code: 2 for bad
input, 1 for a failed run. Nothing here knows what a verb does.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from linnet import workbench
from linnet.cli.options import DebugOption, JsonOption
from linnet.errors import LinnetError
from linnet.progress import Display, shown_on

if TYPE_CHECKING:
    from linnet.records import Record
    from linnet.training.progress import Course, TrainingProgress

INTERRUPTED = 130
PIPE_CLOSED = 141


class Face:
    """What a verb talks through; `json` chooses JSON lines over pictures for people."""

    def __init__(self, out: TextIO, *, json: bool) -> None:
        self.out = out
        self.json = json

    def show(self, *records: Record) -> None:
        """Print records: one line each, or one picture of all of them."""
        if os.environ.get("RANK", "0") != "0":
            return  # under torchrun the first process speaks for all
        if self.json:
            for record in records:
                self.out.write(record.line() + "\n")
            self.out.flush()
        else:
            from linnet.cli.pictures import draw

            draw(records, self.out)

    @property
    def terminal(self) -> bool:
        """Whether standard output is a terminal."""
        return self.out.isatty()

    def write(self, text: str) -> None:
        """Text as it is, at once."""
        if os.environ.get("RANK", "0") == "0":
            self.out.write(text)
            self.out.flush()

    def remark(self, text: object) -> None:
        """A line for people, beside the records."""
        if os.environ.get("RANK", "0") == "0":
            typer.echo(str(text), err=True)

    def progress(self, course: Course) -> TrainingProgress:
        """The progress line of a run that is about to start."""
        from linnet.machine import matmul_flops
        from linnet.training.progress import TrainingProgress

        seconds = 0.2 if course.device == "cpu" else 0.5
        return TrainingProgress(course, matmul_flops(course.precision, course.device, seconds))


def spoken(verb: Callable[..., None]) -> Callable[..., None]:
    """The command of a verb, which is called with a face and its options; --json and --debug come with it.

    An option `run` is the folder of a run.
    """

    def command(json: JsonOption = False, debug: DebugOption = False, **given: Any) -> None:
        with speaking(json=json, debug=debug, run=given.get("run")) as face:
            verb(face, **given)

    return described(command, verb)


def described(command: Callable[..., None], verb: Callable[..., None]) -> Callable[..., None]:
    """A command that typer knows by the name, the words and the options of a verb, and by further options."""
    options = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for function in (verb, command)
        for option in inspect.signature(function, eval_str=True).parameters.values()
        if typing.get_origin(option.annotation) is Annotated or option.annotation is typer.Context
    ]
    functools.update_wrapper(command, verb)
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command


@contextlib.contextmanager
def speaking(*, json: bool, debug: bool, run: Path | None = None) -> Iterator[Face]:
    """A face for one verb; whatever a library prints meanwhile goes to standard error.

    What is no `run` is named at once, before a verb loads what takes seconds.
    """
    out = sys.stdout
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks for all
    try:
        with (
            contextlib.redirect_stdout(sys.stderr),
            shown_on(Display(sys.stderr)) if first else contextlib.nullcontext(),
        ):
            if run is not None:
                workbench.refuse_unknown_run(run)
            yield Face(out, json=json)
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        raise typer.Exit(PIPE_CLOSED) from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of libraries in Rust
            raise
        if debug:
            traceback.print_exc()
        message, code = explain(error)
        typer.echo(message if code == INTERRUPTED else f"error: {message}", err=True)
        raise typer.Exit(code) from None


def explain(error: BaseException) -> tuple[str, int]:
    """One line for a person, and the exit code."""
    if isinstance(error, LinnetError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        return f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}", 1 if full else 2
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory", 1
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (a defect of linnet; --debug shows where)", 1
