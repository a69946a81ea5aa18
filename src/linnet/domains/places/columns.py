"""Columns of a table by role, and what is wrong with its rows: how many, which first, and what was done.

Each column has a role: named by the user, or guessed from common names and shown.
Legend: N = rows of the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from linnet.domains.places.sources import FILE, GPX, LINE, MARKS, NAMES, RECORD, TEXT, VISIT
from linnet.errors import BadInput, nearest

if TYPE_CHECKING:
    import polars as pl

Shape = Literal["fixes", "stays", "check-ins"]

_CELL = re.compile(r"^(?:s2_?)?(?:l|level_?)(\d{1,2})$", re.IGNORECASE)
_CELL_ROLE = re.compile(r"^s2_l(\d{1,2})$")


@dataclass(frozen=True)
class Columns:
    """A table by role; `guessed` are the roles that the user did not name."""

    frame: pl.DataFrame
    roles: Mapping[str, str]  # role -> name of the column
    guessed: frozenset[str]

    def __contains__(self, role: str) -> bool:
        return role in self.roles

    def __getitem__(self, role: str) -> pl.Series:
        return self.frame[self.roles[role]]

    def integers(self, role: str, default: np.ndarray) -> np.ndarray:
        """int64 [N]; rows that hold no number get their default."""
        if role not in self:
            return default.astype(np.int64)
        values = numbers(self[role])[0]
        usable = np.isfinite(values) & (np.abs(values) < 2**62)
        return np.where(usable, np.where(usable, values, 0), default).astype(np.int64)

    @property
    def cell_levels(self) -> dict[int, str]:
        """level -> column."""
        found = {role: _CELL_ROLE.match(role) for role in self.roles}
        return {int(match[1]): self.roles[role] for role, match in found.items() if match}

    @property
    def shape(self) -> Shape:
        """What one row is: a GPS fix, a stay with a begin and an end, or a check-in."""
        if "place" not in self and not {"end", "duration", "end_day"} & set(self.roles):
            return "fixes"
        return "stays" if {"end", "duration", "end_day"} & set(self.roles) else "check-ins"

    def shown(self) -> str:
        """user=uid, time=ts, ... with a mark at what was guessed; what a person can paste back."""
        return ", ".join(f"{role}={name}" for role, name in self.roles.items())


def parse_mapping(text: str) -> dict[str, str]:
    """`time=ts,place=venue` as it comes from the command line."""
    mapping = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        role, equals, name = item.partition("=")
        if not equals or not name:
            raise BadInput(f'cannot read "{item}" as a column; write role=column, such as time=ts,place=venue')
        mapping[role.strip()] = name.strip()
    return mapping


def find_columns(frame: pl.DataFrame, named: Mapping[str, str], where: str) -> Columns:
    """Give every role its column; refuse unknown roles, and tables that lack what every shape needs."""
    present = [name for name in frame.columns if name not in MARKS]
    for role, name in named.items():
        if role not in NAMES and not _CELL_ROLE.match(role):
            raise BadInput(f'there is no role "{role}" for a column{nearest(role, NAMES)}')
        if name not in present:
            raise BadInput(f'{where} has no column "{name}" (for {role}){nearest(name, present)}')
    by_lower = {name.lower(): name for name in reversed(present) if name not in named.values()}
    roles = dict(named)
    for role, usual in NAMES.items():
        found_names = [by_lower[name] for name in usual if name in by_lower]
        if role not in roles and found_names:
            roles[role] = found_names[0]
    for name in present:
        match = _CELL.match(name)
        if match and name not in roles.values() and f"s2_l{int(match[1])}" not in roles:
            roles[f"s2_l{int(match[1])}"] = name
    if "time" in roles and "start" in roles and not ("time" in named and "start" in named):
        roles.pop("start" if "time" in named else "time")
    order = [*NAMES, *sorted(role for role in roles if role not in NAMES)]
    found = Columns(
        frame, {role: roles[role] for role in order if role in roles}, frozenset(set(roles) - set(named))
    )
    _complete(found, present, where, alone=RECORD in frame.columns)
    for role, name in found.roles.items():
        kind = frame[name].dtype
        if kind.is_nested() or str(kind).startswith(("Binary", "Object", "Time", "Duration")):
            raise BadInput(
                f'{where}: the column "{name}" ({role}) is of the kind {kind}; numbers or texts are needed'
            )
    return found


def _complete(columns: Columns, present: Sequence[str], where: str, *, alone: bool) -> None:
    missing = []
    if "user" not in columns and not alone:
        missing.append("user")
    if not {"time", "start"} & set(columns.roles) and not {"start_day", "start_min"} <= set(columns.roles):
        missing.append("time (or start, or start_day and start_min)")
    if "place" not in columns and not {"lon", "lat"} <= set(columns.roles):
        missing.append("place (or lon and lat)")
    if missing:
        raise BadInput(
            f"{where} lacks {', '.join(missing)}; its columns are {', '.join(present)}. "
            f"Name them, for example --columns user=…,time=…,place=…"
        )


Outcome = Literal["repaired", "dropped", "refused"]
SHOWN = 3
NOTHING = ("NULL", "null", "nan", "NaN", "None", "N/A", "<NA>")  # what programs write where nothing was


@dataclass(frozen=True)
class Problem:
    """`rule` says what was done. A refused problem stops the reading once all of them are known."""

    name: str
    count: int
    where: str
    rule: str
    outcome: Outcome

    @property
    def advice(self) -> str:
        """What the rule says beside that the row is dropped."""
        return self.rule.removeprefix("row dropped")

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        return f"{self.name}: {self.count}{where}; {'refused: ' if self.outcome == 'refused' else ''}{self.rule}"


@dataclass
class Findings:
    """Collects problems; knows where each row stands, so that it can be named. Never shows coordinates."""

    files: Sequence[Path]
    file: np.ndarray  # int [N]
    line: np.ndarray  # int [N]; 0-based rows of a Parquet file
    keep: np.ndarray  # bool [N]: rows that were not dropped
    visit: np.ndarray | None = None  # int [N]: the number of the visit in its line of JSON
    problems: list[Problem] = field(default_factory=list)
    doubtful_times: bool = False  # refused times would make others look out of order, too

    @classmethod
    def of(cls, files: Sequence[Path], frame: pl.DataFrame) -> Findings:
        visit = frame[VISIT].to_numpy() if VISIT in frame.columns else None
        return cls(files, frame[FILE].to_numpy(), frame[LINE].to_numpy(), np.ones(len(frame), bool), visit)

    @property
    def any_refused(self) -> bool:
        return any(problem.outcome == "refused" for problem in self.problems)

    def repaired(self, name: str, rows: np.ndarray, rule: str) -> None:
        """Rows that stay, changed."""
        self._add(name, rows, rule, "repaired")

    def dropped(self, name: str, rows: np.ndarray, rule: str = "row dropped") -> None:
        """Rows that are left out."""
        self._add(name, rows, rule, "dropped")
        self.keep[rows] = False

    def refused(self, name: str, rows: np.ndarray, rule: str) -> None:
        self._add(name, rows, rule, "refused")

    def refused_times(self, name: str, rows: np.ndarray, rule: str) -> None:
        """Times that are there and mean nobody knows which moment."""
        self.refused(name, rows, rule)
        self.doubtful_times |= bool(rows.any())

    def locate(self, row: int) -> str:
        path = self.files[int(self.file[row])]
        if self.visit is not None:
            return f"{path.name} line {int(self.line[row])}, visit {int(self.visit[row])}"
        return f"{path.name} {'line' if path.name.endswith(TEXT + GPX) else 'row'} {int(self.line[row])}"

    def _add(self, name: str, rows: np.ndarray, rule: str, outcome: Outcome) -> None:
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        if len(chosen) == 0:
            return
        where = ", ".join(self.locate(int(row)) for row in chosen[:SHOWN]) + (", …" if len(chosen) > SHOWN else "")
        self.problems.append(Problem(name, len(chosen), where, rule, outcome))

    def refuse_most(self) -> None:
        """Where more than half of the rows would be lost, what loses them refuses the table."""
        lost = f"{int((~self.keep).sum())} of {len(self.keep)}"
        if self.keep.sum() * 2 < len(self.keep):
            self.problems = [
                replace(problem, outcome="refused", rule=f"{lost} rows would be lost{problem.advice}")
                if problem.outcome == "dropped"
                else problem
                for problem in self.problems
            ]

    def stop_if_refused(self) -> None:
        if self.any_refused:
            raise Refused(self.problems)


class Refused(BadInput):
    """A table that cannot be used, with everything that was found in it: what refuses it comes first.

    `reason` says why nothing can be made of the rows; what was repaired before may explain it.
    """

    def __init__(self, problems: Sequence[Problem], reason: str = "") -> None:
        first = [reason] if reason else []
        refused = [*first, *(str(problem) for problem in problems if problem.outcome == "refused")]
        others = [str(problem) for problem in problems if problem.outcome != "refused"]
        self.problems = (*refused, *others)
        also = "\nalso found in them:\n  " + "\n  ".join(others) if others else ""
        super().__init__("the visits cannot be used:\n  " + "\n  ".join(refused) + also)


def names(column: pl.Series, role: str, findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Codes in the order of the sorted names, and the names; rows that have none are dropped."""
    import polars as pl

    column = _whole_numbers(column, role, findings) if column.dtype.is_float() else column
    missing = column.is_null().to_numpy()
    rule = "row dropped (a stay at no place)" if role == "place" else "row dropped"
    if column.dtype.is_integer():
        found, codes = np.unique(column.fill_null(0).to_numpy(), return_inverse=True)
    else:
        text = column.cast(pl.String).str.strip_chars()
        written = text.str.contains(r"^-?\d+\.0+$").fill_null(False)
        findings.repaired(f"{role} ids written as 12.0", written.to_numpy(), "read as 12")
        text = text.str.replace(r"^(-?\d+)\.0+$", "$1")
        nothing = text.is_in(NOTHING).fill_null(False).to_numpy()
        findings.dropped(f"{role} ids written as NULL, nan, None or N/A", nothing, rule)
        missing |= (text == "").fill_null(False).to_numpy()
        text = text.zip_with(pl.Series(~missing & ~nothing), pl.Series([None], dtype=pl.String))
        kept = text.drop_nulls().unique().sort()
        found = kept.to_numpy().astype(np.str_)
        codes = text.cast(pl.Enum(kept)).to_physical().cast(pl.Int64).fill_null(0).to_numpy()
    findings.dropped(f"rows without {role}", missing, rule)
    return codes.astype(np.int64), found


def _whole_numbers(column: pl.Series, role: str, findings: Findings) -> pl.Series:
    """Ids that a program wrote as decimal fractions, as whole numbers again."""
    import polars as pl

    values = column.fill_null(float("nan")).to_numpy()
    finite = np.isfinite(values) & (np.abs(values) < 2**63)
    broken = finite & (values != np.floor(values))
    findings.refused(f"{role} ids with a fraction", broken, "ids are whole numbers or text")
    findings.repaired(f"{role} ids written as 12.0", finite & ~broken, "read as 12")
    whole = pl.Series(column.name, np.where(finite, values, 0).astype(np.int64))
    return whole.zip_with(pl.Series(finite), pl.Series([None], dtype=pl.Int64))


def without_gaps(found: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber so that only names that occur have numbers."""
    used = np.zeros(len(found), bool)
    used[codes] = True
    return found[used], (np.cumsum(used) - 1)[codes]


def numbers(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N], NaN where no number stands; and bool [N]: something stands there, and it is no finite number.

    A column without points may have decimal commas.
    """
    import polars as pl

    text = column.cast(pl.String).str.strip_chars().fill_null("")
    written = (text != "") & ~text.is_in(NOTHING)
    if column.dtype == pl.String and not column.str.contains(".", literal=True).any():
        column = column.str.replace(r"^(\s*[+-]?\d+),(\d+\s*)$", "$1.$2")
    found = column.str.strip_chars() if column.dtype == pl.String else column
    values = found.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().astype(np.float64)
    return values, written.to_numpy() & ~np.isfinite(values)
