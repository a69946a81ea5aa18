"""What is wrong with a table, in a person's words: how many rows, which first, and what was done about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnet.errors import BadInput

SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """`rule` says how it was mended; a refused problem stops the reading once all of them are known."""

    name: str
    count: int
    where: str
    rule: str
    refused: bool

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.name}: {self.count}{place}; {'refused' if self.refused else 'mended'}: {self.rule}"


@dataclass
class Findings:
    """Collects problems; knows where each row stands, so that it can be named. Never shows coordinates."""

    files: Sequence[Path]
    file: np.ndarray  # int [N]
    line: np.ndarray  # int [N]; 0-based rows of a Parquet file
    problems: list[Problem] = field(default_factory=list)
    doubtful_times: bool = False  # refused times would make others look out of order, too

    @property
    def any_refused(self) -> bool:
        return any(problem.refused for problem in self.problems)

    def mended(self, name: str, rows: np.ndarray, rule: str) -> None:
        self._add(name, rows, rule, refused=False)

    def refused(self, name: str, rows: np.ndarray, rule: str) -> None:
        self._add(name, rows, rule, refused=True)

    def refused_times(self, name: str, rows: np.ndarray, rule: str) -> None:
        """Times that are there and mean nobody knows which moment."""
        self.refused(name, rows, rule)
        self.doubtful_times |= bool(rows.any())

    def place(self, row: int) -> str:
        path = self.files[int(self.file[row])]
        word = "row" if ".csv" not in path.name and ".tsv" not in path.name and ".txt" not in path.name else "line"
        return f"{path.name} {word} {int(self.line[row])}"

    def _add(self, name: str, rows: np.ndarray, rule: str, *, refused: bool) -> None:
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        if len(chosen) == 0:
            return
        where = ", ".join(self.place(int(row)) for row in chosen[:SHOWN]) + (", …" if len(chosen) > SHOWN else "")
        self.problems.append(Problem(name, len(chosen), where, rule, refused))

    def stop_if_refused(self) -> None:
        if self.any_refused:
            raise Refused(tuple(self.problems))

    def stop(self, reason: str) -> Refused:
        """The error to raise where nothing can be made of the rows; what was mended before may say why."""
        return Refused(tuple(self.problems), reason)


class Refused(BadInput):
    """A table that cannot be used, with everything that was found in it: what refuses it comes first."""

    def __init__(self, problems: Sequence[Problem], reason: str = "") -> None:
        refused = [str(problem) for problem in problems if problem.refused]
        mended = [str(problem) for problem in problems if not problem.refused]
        self.problems = (*([reason] if reason else []), *refused, *mended)
        said = "the visits cannot be used:\n  " + "\n  ".join([*([reason] if reason else []), *refused])
        super().__init__(said + ("\nalso found in them:\n  " + "\n  ".join(mended) if mended else ""))
