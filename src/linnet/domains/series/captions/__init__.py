"""Captions of series: sentences whose facts are checked. Only the registration is here."""

from linnet.domains.registry import Option, Recipe, Registration

REGISTRATION = Registration(
    settings="linnet.domains.series.captions.data:CaptionData",
    recipes={
        "captions": Recipe(
            "linnet.domains.series.captions.recipes:captions",
            "sentences about series",
            "draws its own, and --data: series",
            "a quarter of an hour",
        ),
        "tiny-captions": Recipe(
            "linnet.domains.series.captions.recipes:tiny", "a first look at captions", takes="seconds"
        ),
    },
    options=(Option("--series", "data.series", "Series to draw."),),
    verbs="linnet.domains.series.captions.verbs:join",
)
