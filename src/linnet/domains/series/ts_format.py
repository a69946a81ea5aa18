"""`.ts` files of the UCR and UEA archives: a header of `@` lines, and after `@data` one case a line.

Channels of a case are separated by `:`, their values by `,`, and the label comes last; `?` is a missing value.
With `@timeStamps true` a value is `(time,value)`. The header is believed about labels and time stamps alone:
lengths and numbers of channels are taken from the data, and a note says where the header differs.
Rules: channels of one case that are shorter than its longest one end in missing values; every case needs as many
channels as the first; a label that `@classLabel` does not list is kept and named; a case without one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnet.domains.series.tables import MISSING, Series, as_numbers
from linnet.domains.series.times import even_steps, moments_of
from linnet.errors import BadInput, counted
from linnet.untrusted import lines_of, shown, whole_number

FLAGS = {"true": True, "false": False}
CHANNEL_END = re.compile(r":(?![^()]*\))")  # a colon that is not inside of a time stamp
STAMPED = re.compile(r"\(\s*(.*?)\s*,\s*([^,()]*?)\s*\)")
MOST_NAMED = 5  # cases of one kind that are named; the others are counted


@dataclass
class _Header:
    """What a header promises; None where it is silent."""

    stamped: bool = False
    labelled: bool | None = None
    classes: tuple[str, ...] = ()
    target: bool = False
    promised: dict[str, str] = field(default_factory=dict)

    def read(self, line: str, where: str) -> None:
        key, *words = line[1:].split()
        name = key.lower()
        if name == "timestamps":
            self.stamped = _flag(key, words, where)
        elif name in ("classlabel", "targetlabel"):
            self.labelled = _flag(key, words, where)
            self.target = name == "targetlabel" and self.labelled
            self.classes = tuple(words[1:])
            if self.labelled and not self.target and not self.classes:
                raise BadInput(f"{where}: @classLabel true needs the labels after it, or write @classLabel false")
        else:
            self.promised[name] = words[0].lower() if words else ""


def _flag(key: str, words: list[str], where: str) -> bool:
    word = words[0].lower() if words else ""
    if word not in FLAGS:
        raise BadInput(f"{where}: @{key} needs true or false after it, not {shown(word)}")
    return FLAGS[word]


@dataclass
class _Remarks:
    """What was repaired, by kind: the first few cases are named."""

    where: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        self.where.setdefault(kind, []).append(where)

    def lines(self) -> list[str]:
        found = []
        for kind, cases in self.where.items():
            more = f" and in {len(cases) - MOST_NAMED} more" if len(cases) > MOST_NAMED else ""
            found.append(f"{'; '.join(cases[:MOST_NAMED])}{more}: {kind}")
        return found


def read_ts(path: Path) -> tuple[list[Series], tuple[str, ...], list[str], list[str]]:
    """The cases, names of the channels, notes about the header, and what was repaired where."""
    lines = enumerate(lines_of(path), 1)
    header = _read_header(path, lines)
    cases: list[Series] = []
    remarks = _Remarks()
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        case = _case(line.strip(), header, f"{path}, row {number}", remarks)
        if cases and case.values.shape[1] != cases[0].values.shape[1]:
            raise BadInput(
                f"{case.where} has {counted(case.values.shape[1], 'channel')}, and the first case has "
                f"{cases[0].values.shape[1]}; every case needs the same channels, separated by ':'"
            )
        cases.append(case)
    if not cases:
        raise BadInput(f"{path} has no case after @data")
    width = cases[0].values.shape[1]
    notes = [f"{path}: {note}" for note in _broken_promises(header, cases)]
    return cases, tuple(f"d{channel}" for channel in range(1, width + 1)), notes, remarks.lines()


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    header = _Header()
    for number, line in lines:
        text, where = line.strip(), f"{path}, row {number}"
        if text.lower() == "@data":
            if header.labelled is None:
                raise BadInput(
                    f"{where}: @data comes before @classLabel, so whether cases have labels is not known"
                )
            return header
        if text.startswith("@") and len(text) > 1:
            header.read(text, where)
        elif text and not text.startswith("#"):
            raise BadInput(f"{where}: {shown(text)} stands before @data; a header has lines with @ or #")
    raise BadInput(f"{path} has no line @data")


def _case(line: str, header: _Header, where: str, remarks: _Remarks) -> Series:
    parts = [part.strip() for part in CHANNEL_END.split(line)]
    label = None
    if header.labelled:
        label = parts.pop()
        if not label or "," in label or not parts:
            raise BadInput(f"{where} has no label after its last ':', and the header says @classLabel true")
        if not header.target and label not in header.classes:
            remarks.add(f"the label {label} is not among those of @classLabel", where)
    read = _stamped_channel if header.stamped else _channel
    channels = []
    for number, part in enumerate(parts, 1):
        channels.append(read(part, f"{where}, channel {number}", remarks))
    longest = max(map(len, channels))
    if any(len(channel) != longest for channel in channels):
        remarks.add("channels have different lengths; short ones end in missing values", where)
    values = np.full((longest, len(channels)), np.nan)
    for column, channel in enumerate(channels):
        values[: len(channel), column] = channel
    labels = None if label is None or header.target else np.array([label])
    name = where.rpartition(" ")[2]
    return Series(name, values, where, labels)


def _channel(text: str, where: str, remarks: _Remarks) -> np.ndarray:
    if text.startswith("("):
        raise BadInput(f"{where} has values with time stamps, and the header says @timeStamps false")
    return as_numbers([cell.strip() for cell in text.split(",")], lambda index: f"{where}, value {index + 1}")


def _stamped_channel(text: str, where: str, remarks: _Remarks) -> np.ndarray:
    pairs = STAMPED.findall(text)
    if not pairs and text.lower() not in MISSING:
        raise BadInput(f"{where}: {shown(text)} is no list of (time,value), and the header says @timeStamps true")
    if not pairs:
        return np.full(1, np.nan)

    def at(index: int) -> str:
        return f"{where}, value {index + 1}"

    times = [_time(time) for time, _ in pairs]
    steps = even_steps(moments_of(times, "time", at), at)
    if steps.note:
        remarks.add(steps.note, where)
    values = np.full(int(steps.index.max()) + 1, np.nan)
    values[steps.index] = as_numbers([value for _, value in pairs], at)
    return values


def _time(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _broken_promises(header: _Header, cases: list[Series]) -> Iterator[str]:
    """Where the header says something else than the data."""
    width, lengths = cases[0].values.shape[1], {len(case) for case in cases}
    promised = header.promised
    univariate = "1" if promised.get("univariate") == "true" else ""
    dimensions = whole_number(promised.get("dimensions", promised.get("dimension", univariate)))
    if dimensions is not None and dimensions != width:
        yield f"the header promises {counted(dimensions, 'channel')}, the cases have {width}"
    if promised.get("univariate") == "false" and width == 1:
        yield "the header says @univariate false, the cases have one channel"
    if promised.get("equallength") == "true" and len(lengths) > 1:
        yield f"the header says @equalLength true, lengths are {min(lengths)} to {max(lengths)}"
    length = whole_number(promised.get("serieslength", ""))
    if length is not None and lengths != {length} and len(lengths) == 1:
        yield f"the header says @seriesLength {length}, the cases have {lengths.pop()} steps"
    if promised.get("missing") == "false" and any(np.isnan(case.values).any() for case in cases):
        yield "the header says @missing false, and there are missing values"
    if header.target:
        yield "targets of a regression (@targetLabel) are not read"
