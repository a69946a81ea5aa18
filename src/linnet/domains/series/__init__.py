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
        "forecast-patches": Recipe(
            f"{_OWN}.recipes:forecast_patches", "the same by the decoder, over patches of numbers", _TABLES
        ),
        "activity": Recipe(
            f"{_OWN}.recipes:activity", "what somebody does, by a sensor, window by window", _TABLES
        ),
        "classify": Recipe(f"{_OWN}.recipes:classify", "the class of a whole series", _TABLES),
        "tiny-classify": Recipe(
            f"{_OWN}.recipes:tiny_classify", "a small classifier, for a first look", _TABLES, "seconds"
        ),
        "tiny-forecast": Recipe(
            f"{_OWN}.recipes:tiny", "a small forecaster, for a first look", _TABLES, "seconds"
        ),
    },
    verbs=f"{_OWN}.verbs:join",
    predict=f"{_OWN}.use:predict",
    options=(
        Option("--columns", "data.columns", "Columns of a table: ROLE=COLUMN,…"),
        Option("--where", "data.where", "Rows of a long table that are read: COLUMN=VALUE,…"),
        Option("--horizon", "data.horizon", "Steps of a forecast."),
        Option("--frequency", "data.frequency", "hourly, daily, weekly, …"),
    ),
)

TOKENS = Registration(
    settings=f"{_OWN}.token_data:SeriesTokens",
    recipes={
        "forecast-tokens": Recipe(f"{_OWN}.recipes:forecast_tokens", "series as tokens, to be sampled", _TABLES),
        "tiny-tokens": Recipe(f"{_OWN}.recipes:tiny_tokens", "a small one, for a first look", _TABLES, "seconds"),
    },
    options=(
        Option("--columns", "data.columns", "Columns of a table: ROLE=COLUMN,…"),
        Option("--where", "data.where", "Rows of a long table that are read: COLUMN=VALUE,…"),
    ),
)
