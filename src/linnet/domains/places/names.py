"""Columns of a visit table as arrays: ids of users and places as codes, and numbers.

Legend: N = rows of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from linnet.domains.places.columns import Columns
from linnet.domains.places.problems import Findings

if TYPE_CHECKING:
    import polars as pl

NOTHING = ("NULL", "null", "nan", "NaN", "None", "N/A", "<NA>")  # what programs write where nothing was


def names(column: pl.Series, role: str, findings: Findings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes in the order of the sorted names, the names, and which rows have none."""
    import polars as pl

    column = _whole_numbers(column, role, findings) if column.dtype.is_float() else column
    missing = column.is_null().to_numpy()
    rule = "row dropped (a stay at no place)" if role == "place" else "row dropped"
    if column.dtype.is_integer():
        found, codes = np.unique(column.fill_null(0).to_numpy(), return_inverse=True)
        if missing.any():
            found, codes = without_gaps(found, codes, ~missing)
    else:
        text = column.cast(pl.String).str.strip_chars()
        written = text.str.contains(r"^-?\d+\.0+$").fill_null(False)
        findings.mended(f"{role} ids written as 12.0", written.to_numpy(), "read as 12")
        text = text.str.replace(r"^(-?\d+)\.0+$", "$1")
        nothing = text.is_in(NOTHING).fill_null(False).to_numpy()
        findings.mended(f"{role} ids written as NULL, nan, None or N/A", nothing, rule)
        missing |= (text == "").fill_null(False).to_numpy()
        text = text.zip_with(pl.Series(~missing & ~nothing), pl.Series([None], dtype=pl.String))
        kept = text.drop_nulls().unique().sort()
        found = kept.to_numpy().astype(np.str_)
        codes = text.cast(pl.Enum(kept)).to_physical().cast(pl.Int64).fill_null(0).to_numpy()
        findings.mended(f"rows without {role}", missing, rule)
        return codes.astype(np.int64), found, missing | nothing
    findings.mended(f"rows without {role}", missing, rule)
    return codes.astype(np.int64), found, missing


def _whole_numbers(column: pl.Series, role: str, findings: Findings) -> pl.Series:
    """Ids that a program wrote as decimal fractions, as whole numbers again."""
    import polars as pl

    values = column.fill_null(float("nan")).to_numpy()
    finite = np.isfinite(values)
    broken = finite & (values != np.floor(values))
    findings.refused(f"{role} ids with a fraction", broken, "ids are whole numbers or text")
    findings.mended(f"{role} ids written as 12.0", finite & ~broken, "read as 12")
    whole = pl.Series(column.name, np.where(finite, values, 0).astype(np.int64))
    return whole.zip_with(pl.Series(finite), pl.Series([None], dtype=pl.Int64))


def without_gaps(found: np.ndarray, codes: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber so that only names that occur in kept rows have numbers; other rows get 0."""
    used = np.zeros(len(found), bool)
    used[codes[kept]] = True
    number = np.cumsum(used) - 1
    return found[used], np.where(kept, number[codes], 0)


def numbers(column: pl.Series) -> np.ndarray:
    """float64 [N]; NaN where no number stands."""
    import polars as pl

    return column.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().astype(np.float64)


def no_numbers(column: pl.Series) -> np.ndarray:
    """bool [N]: something stands there, and it is no finite number."""
    import polars as pl

    text = column.cast(pl.String).str.strip_chars().fill_null("")
    written = (text != "") & ~text.is_in(NOTHING)
    return written.to_numpy() & ~np.isfinite(numbers(column))


def integers(frame: pl.DataFrame, columns: Columns, role: str, default: np.ndarray) -> np.ndarray:
    """A column of numbers; rows that hold none get their default."""
    if role not in columns:
        return default.astype(np.int64)
    values = numbers(frame[columns[role]])
    return np.where(np.isfinite(values), np.nan_to_num(values), default).astype(np.int64)
