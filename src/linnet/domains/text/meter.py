"""How far the reading of a corpus is."""

from __future__ import annotations

from linnet.domains.text.sources import Tally
from linnet.progress import Progress


class Meter:
    """Shows files, documents and MB/s; the share that is done is of stored bytes."""

    def __init__(self, what: str, files: int, stored_bytes: int) -> None:
        self._progress = Progress(what, stored_bytes, counted=False)
        self.files, self.text_bytes = files, 0

    @property
    def seconds(self) -> float:
        return self._progress.seconds

    def advance(self, tally: Tally, text_bytes: int) -> None:
        """So many more bytes of text were read."""
        self.text_bytes += text_bytes
        megabytes = self.text_bytes / 1e6
        self._progress.update(
            tally.stored_bytes,
            f"{tally.files:,}/{self.files:,} files",
            f"{tally.documents:,} documents",
            f"{megabytes:,.1f} MB",
            f"{megabytes / max(self.seconds, 1e-9):.1f} MB/s",
        )

    def close(self, tally: Tally) -> None:
        self.advance(tally, 0)
        self._progress.close()
