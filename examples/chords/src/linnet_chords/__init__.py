"""Chord progressions as a domain of linnet. Only the registration is here, so that `linnet --help` stays quick."""

from linnet.domains.registry import Option, Recipe, Registration

REGISTRATION = Registration(
    settings="linnet_chords.data:ChordData",
    recipes={
        "chords": Recipe(
            "linnet_chords.recipes:chords", "chord progressions", "draws its own, or --data: one a line", "seconds"
        ),
    },
    options=(Option("--songs", "data.songs", "Progressions to draw."),),
    verbs="linnet_chords.verbs:join",
)
