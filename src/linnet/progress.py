"""One line about work that takes a while: training, scoring, encoding.

On a terminal it is redrawn in place by rich; elsewhere a plain line is printed every few seconds. Where lines go
is chosen once, with `shown_on`; without it, as for those who call our functions, nothing is shown. No torch here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.live import Live

Item = TypeVar("Item")
REDRAW = 0.1  # seconds between two pictures on a terminal
BAR = 20  # cells


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def short(number: float) -> str:
    """At most four characters and a unit: 987, 12.3k, 4.56M."""
    for unit, scale in (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9)):
        scaled = number / scale
        if scaled < 999.5:
            digits = 0 if not unit or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f}{unit}"
    return f"{number / 1e12:.3g}T"


class Display:
    """Where lines are shown. Of work within other work the innermost has the line."""

    def __init__(self, stream: TextIO, every: float = 5.0, now: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.now = stream, now
        self.terminal = stream.isatty()
        self.every = REDRAW if self.terminal else every
        self.open: list[Progress] = []
        self._drawn = float("-inf")
        self._live: Live | None = None

    def due(self, since: float) -> bool:
        """Whether it is time for another line in work that began then."""
        return self.now() - max(self._drawn, since) >= self.every

    def draw(self, text: str, share: float | None) -> None:
        self._drawn = self.now()
        if self.terminal:
            self._redraw(text, share)
        else:
            print(text, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """A line that stays, above the one that changes."""
        if self._live is None:
            print(text, file=self.stream, flush=True)
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def leave(self) -> None:
        """What the line says stays there; the next one is below."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _redraw(self, text: str, share: float | None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            console = Console(file=self.stream, force_terminal=True)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        row = Table.grid(padding=(0, 1))
        cells: list[ProgressBar | str] = [escape(text)]
        if share is not None and self._live.console.width > 3 * BAR:
            row.add_column()
            cells.insert(0, ProgressBar(1.0, share, width=BAR))
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(*cells)
        self._live.update(row, refresh=True)


_DISPLAY: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Whatever runs within shows here how far it is."""
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)
        display.open.clear()
        display.leave()


class Progress:
    """One piece of work. `first` is what was done of it before this process; `whole` what there is to do, where
    that is known, and `counted` whether these numbers mean something to people."""

    def __init__(self, what: str, whole: float = 0, *, first: float = 0, counted: bool = True) -> None:
        self.what, self.whole, self.first, self.counted = what, whole, first, counted
        self._display = _DISPLAY.get()
        self._now = time.monotonic if self._display is None else self._display.now
        self.began = self._now()
        self._state: tuple[float, tuple[str, ...]] = (first, ())
        self._drawn: tuple[float, tuple[str, ...]] | None = None
        if self._display is not None:
            self._display.open.append(self)

    @property
    def seconds(self) -> float:
        return self._now() - self.began

    @property
    def outermost(self) -> bool:
        return self._display is not None and self._display.open == [self]

    def update(self, done: float, *facts: str, at_once: bool = False) -> None:
        """So much is done; `facts` say more, the most important first."""
        self._state = (done, facts)
        if self._display is not None and (at_once or self._display.due(self.began)):
            self._draw()

    def note(self, text: str) -> None:
        if self._display is not None:
            self._display.note(text)

    def close(self) -> None:
        """The last line stays; of work that was too short for a line there is none."""
        if self._display is None or self not in self._display.open:
            return
        outermost = self.outermost
        if self._drawn not in (None, self._state) and (outermost or not self._display.terminal):
            self._draw()
        self._display.open.remove(self)
        if outermost:
            self._display.leave()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self) -> None:
        if self._display is None or self._display.open[-1:] != [self]:
            return
        done, facts = self._drawn = self._state
        share = min(done / self.whole, 1.0) if self.whole else None
        self._display.draw(self.line(done, facts, self.seconds), share)

    def line(self, done: float, facts: Iterable[str], seconds: float) -> str:
        """Such as `training 1,200/3,000 40% 0:49 eta 1:14 | loss 0.1235`."""
        words = [self.what]
        if self.whole and self.counted:
            words.append(f"{done:,.0f}/{self.whole:,.0f}")
        if self.whole:
            words.append(f"{100 * min(done / self.whole, 1.0):.0f}%")
        words.append(clock(seconds))
        if self.first < done < self.whole:
            words.append(f"eta {clock(seconds / (done - self.first) * (self.whole - done))}")
        return " | ".join([" ".join(words), *facts])


def tracked(items: Iterable[Item], what: str, whole: int, size: int = 1) -> Iterator[Item]:
    """The same items, each of which stands for `size` of the whole; how far they are is shown.

    Work that is not within other work is announced.
    """
    with Progress(what, whole) as progress:
        if progress.outermost:
            progress.update(0, at_once=True)
        done = 0
        for item in items:
            yield item
            done = min(done + size, whole)
            progress.update(done)
