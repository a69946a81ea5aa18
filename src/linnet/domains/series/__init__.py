"""Series: forecasts and labels, from tables of numbers; Parquet needs the extra `series`."""

from linnet.domains.registry import Option, Recipe, Registration

_OWN = "linnet.domains.series"
_TABLES = "--data: CSV, Parquet or .ts"

REGISTRATION = Registration(
    settings=f"{_OWN}.data:SeriesData",
    recipes={
        "forecast": Recipe(
            f"{_OWN}.recipes:forecast", "quantiles of what comes next in series of numbers", _TABLES
        ),
        "tiny-forecast": Recipe(
            f"{_OWN}.recipes:tiny", "a small forecaster, for a first look", _TABLES, "seconds"
        ),
    },
    options=(
        Option("--columns", "data.columns", "Columns of a table: ROLE=COLUMN,…"),
        Option("--horizon", "data.horizon", "Steps of a forecast."),
        Option("--frequency", "data.frequency", "hourly, daily, weekly, …"),
    ),
)
