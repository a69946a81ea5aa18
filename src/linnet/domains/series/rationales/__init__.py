"""Activities with a rationale: facts about a window of a sensor, then its label. Only the registration is here."""

from linnet.domains.registry import Option, Recipe, Registration

_OWN = "linnet.domains.series.rationales"
_TABLES = "--data: CSV or Parquet with labels"

REGISTRATION = Registration(
    settings=f"{_OWN}.data:RationaleData",
    recipes={
        "activity-rationale": Recipe(
            f"{_OWN}.recipes:activity_rationale", "what somebody does, by a sensor, with reasons", _TABLES
        ),
        "tiny-rationale": Recipe(f"{_OWN}.recipes:tiny", "a small one, for a first look", _TABLES, "seconds"),
    },
    predict=f"{_OWN}.use:predict",
    options=(
        Option("--columns", "data.columns", "Columns of a table: ROLE=COLUMN,…"),
        Option("--where", "data.where", "Rows of a long table that are read: COLUMN=VALUE,…"),
    ),
)
