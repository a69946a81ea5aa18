"""`.ts` files: what headers promise and data do not keep is repaired by rules or refused with file and row."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.series.ts_format import read_ts
from linnet.errors import BadInput

HEAD = "# a comment\n@problemName Small\n@timeStamps {stamps}\n{more}@classLabel {labels}\n@data\n"


def written(folder: Path, body: str, *, stamps: str = "false", labels: str = "true a b", more: str = "") -> Path:
    path = folder / "small.ts"
    path.write_text(HEAD.format(stamps=stamps, labels=labels, more=more) + body)
    return path


def test_values_channels_and_labels_are_read_as_they_stand(tmp_path: Path) -> None:
    cases, channels, notes, repaired = read_ts(written(tmp_path, "1,2.5,-3e2:4,5,6:a\n\n7,8,9:?,11,NaN:b\n"))
    assert channels == ("d1", "d2") and not notes and not repaired
    assert cases[0].values.tolist() == [[1, 4], [2.5, 5], [-300, 6]]
    assert cases[1].values[1].tolist() == [8, 11] and np.isnan(cases[1].values[[0, 2], 1]).all()
    assert [str(case.labels[0]) for case in cases if case.labels is not None] == ["a", "b"]
    assert cases[1].where.endswith("small.ts, row 8")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.none() | st.floats(-1e9, 1e9), min_size=1, max_size=6), min_size=2, max_size=2),
        min_size=1,
        max_size=4,
    )
)
def test_what_was_written_is_read_whatever_the_lengths(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[list[float | None]]]
) -> None:
    body = "".join(
        ":".join(",".join("?" if value is None else repr(value) for value in channel) for channel in case) + ":a\n"
        for case in table
    )
    found = read_ts(written(tmp_path_factory.mktemp("ts"), body))[0]
    for case, wanted in zip(found, table, strict=True):
        assert len(case) == max(map(len, wanted))
        for column, channel in enumerate(wanted):
            full = [np.nan if value is None else value for value in channel]
            full += [np.nan] * (len(case) - len(full))
            assert np.array_equal(case.values[:, column], full, equal_nan=True)


def test_cases_without_labels_have_none(tmp_path: Path) -> None:
    cases = read_ts(written(tmp_path, "1,2:3,4\n5,6:7,8\n", labels="false"))[0]
    assert [case.labels for case in cases] == [None, None] and cases[0].values.shape == (2, 2)
    target = written(tmp_path, "1,2:0.5\n").read_text().replace("@classLabel true a b", "@targetLabel true")
    (tmp_path / "small.ts").write_text(target)
    cases, _, notes, _ = read_ts(tmp_path / "small.ts")
    assert cases[0].labels is None and cases[0].values.tolist() == [[1], [2]] and "regression" in notes[0]


def test_promises_that_the_data_break_are_named(tmp_path: Path) -> None:
    more = "@dimensions 3\n@equalLength true\n@missing false\n"
    cases, _, notes, repaired = read_ts(written(tmp_path, "1,2:?,4:a\n5,6,7:8:c\n", more=more))
    text = "\n".join(notes)
    assert "promises 3 channels, the cases have 2" in text
    assert "@equalLength true, lengths are 2 to 3" in text and "@missing false" in text
    assert any("row 10: channels have different lengths" in line for line in repaired)
    assert any("row 10: the label c is not among" in line for line in repaired)
    assert np.isnan(cases[1].values[1:, 1]).all()


@given(
    st.sampled_from(["dimension", "dimensions", "seriesLength", "univariate", "missing", "equalLength"]),
    st.sampled_from(["²", "9" * 5000, "-1", "2", "1e9"]) | st.text("0123456789²٣-.e ", max_size=5),
)
def test_whatever_a_header_promises_the_cases_are_read(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    path = written(tmp_path_factory.mktemp("ts"), "1,2:a\n3,4:b\n", more=f"@{key} {value}\n")
    with contextlib.suppress(BadInput):
        assert [case.values.ravel().tolist() for case in read_ts(path)[0]] == [[1, 2], [3, 4]]


def test_time_stamps_place_values_and_gaps_become_missing(tmp_path: Path) -> None:
    stamped = ",".join(f"({step},{step * 10})" for step in [*range(12), 14])
    cases = read_ts(written(tmp_path, f"{stamped}:a\n", stamps="true"))[0]
    assert len(cases[0]) == 15 and cases[0].values[14, 0] == 140
    assert np.isnan(cases[0].values[12:14, 0]).all()
    dated = "(2024-05-31 10:00:00,1),(2024-05-31 11:00:00,2):(2024-05-31 10:00:00,3),(2024-05-31 11:00:00,?):b\n"
    cases = read_ts(written(tmp_path, dated, stamps="true"))[0]
    assert cases[0].values[0].tolist() == [1, 3] and np.isnan(cases[0].values[1, 1])


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("1,2:a\n1,2:3,4:a\n", {}, "row 7 has 2 channels, and the first case has 1"),
        ("1,2,x:a\n", {}, 'row 6, channel 1, value 3: "x" is no number'),
        ("1,inf:a\n", {}, "row 6, channel 1, value 2: inf is not a finite number"),
        ("1,2:3,4\n", {}, "row 6 has no label after its last ':'"),
        ("1,2:\n", {}, "row 6 has no label"),
        ("a\n", {}, "row 6 has no label"),
        ("(0,1),(1,2):a\n", {}, "@timeStamps false"),
        ("1,2:a\n", {"stamps": "true"}, "no list of (time,value)"),
        ("(2,1),(1,2):a\n", {"stamps": "true"}, "channel 1, value 2: the time runs backwards"),
        ("", {}, "no case after @data"),
        ("1,2:a\n", {"stamps": "perhaps"}, "row 3: @timeStamps needs true or false after it, not 'perhaps'"),
        ("1,2:a\n", {"labels": "true"}, "row 4: @classLabel true needs the labels"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_row(
    tmp_path: Path, body: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        read_ts(written(tmp_path, body, **options))
    assert message in str(caught.value) and "small.ts" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@problemName x\n1,2:a\n", "row 2: "),
        ("@problemName x\n@data\n1,2:a\n", "before @classLabel"),
        ("@problemName x\n", "no line @data"),
        ("", "no line @data"),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.ts"
    path.write_text(text)
    with pytest.raises(BadInput, match="broken.ts") as caught:
        read_ts(path)
    assert message in str(caught.value)
