"""Places: where a person goes next, from tables of fixes, stays or check-ins; tables need the extra `places`."""

from linnet.domains.registry import Option, Recipe, Registration

_OWN = "linnet.domains.places"
_VISITS = "--data: visits, check-ins or fixes"

REGISTRATION = Registration(
    settings=f"{_OWN}.data:PlacesData",
    recipes={
        "places": Recipe(f"{_OWN}.recipes:places", "scores candidate visits over all that is known", _VISITS),
        "places-ensemble": Recipe(f"{_OWN}.recipes:places_ensemble", "five of those, averaged", _VISITS),
        "places-gru": Recipe(f"{_OWN}.recipes:places_gru", "the published recurrent copying network", _VISITS),
        "places-transformer": Recipe(
            f"{_OWN}.recipes:places_transformer", "the published attentive copying network", _VISITS
        ),
        "tiny-places": Recipe(f"{_OWN}.recipes:tiny", "a small scorer, for a first look", _VISITS, "seconds"),
    },
    options=(
        Option("--columns", "data.columns", "Columns of a table of visits: ROLE=COLUMN,…"),
        Option("--tz", "data.tz", "The zone of times that name none [UTC]."),
        Option("--local", "data.local", "The zone whose hours count."),
    ),
    verbs=f"{_OWN}.verbs:join",
    predict=f"{_OWN}.use:predict",
)
