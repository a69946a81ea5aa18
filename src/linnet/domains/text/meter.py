"""How far a long reading is: files done, MB/s and the time left, for a terminal or for a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from linnet.domains.text.sources import Tally

EVERY_FILES, EVERY_SECONDS = 100, 5.0  # in a log
REDRAW_SECONDS = 0.2  # on a terminal


@dataclass
class Meter:
    """Writes one line that is redrawn on a terminal, and a line every 100 files or 5 seconds elsewhere."""

    what: str
    files: int
    stored_bytes: int
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    quiet: bool = False
    began: float = field(default_factory=time.monotonic)
    drawn: float = 0.0
    said_files: int = 0
    text_bytes: int = 0

    def __post_init__(self) -> None:
        self.drawn = self.began

    def advance(self, tally: Tally, text_bytes: int) -> None:
        """So many more bytes of text were read; perhaps say so."""
        self.text_bytes += text_bytes
        now = time.monotonic()
        on_terminal = self.stream.isatty()
        due = now - self.drawn >= (REDRAW_SECONDS if on_terminal else EVERY_SECONDS)
        if self.quiet or not (due or (not on_terminal and tally.files - self.said_files >= EVERY_FILES)):
            return
        self.drawn, self.said_files = now, tally.files
        self._write(self.line(tally, now - self.began), redraw=on_terminal)

    def close(self, tally: Tally) -> None:
        """The last line: everything was read. What was short is not worth a line in a log."""
        if not self.quiet and (self.stream.isatty() or self.drawn > self.began or self.seconds >= EVERY_SECONDS):
            self._write(self.line(tally, self.seconds), redraw=False)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def line(self, tally: Tally, seconds: float) -> str:
        speed = self.text_bytes / 1e6 / max(seconds, 1e-9)
        parts = [
            f"{self.what}: {tally.files:,}/{self.files:,} files",
            f"{tally.documents:,} documents",
            f"{self.text_bytes / 1e6:,.1f} MB",
            f"{speed:.1f} MB/s",
        ]
        if 0 < tally.stored_bytes < self.stored_bytes:
            left = seconds * (self.stored_bytes / tally.stored_bytes - 1)
            parts.append(f"ETA {int(left) // 60}:{int(left) % 60:02d}")
        return ", ".join(parts)

    def _write(self, line: str, redraw: bool) -> None:
        clear = "\r\x1b[K" if self.stream.isatty() else ""
        self.stream.write(f"{clear}{line}{'' if redraw else chr(10)}")
        self.stream.flush()
