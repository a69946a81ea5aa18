"""Text: corpora, tokenizers, token stores and the n-gram models that a network has to beat."""

from linnet.domains.registry import Option, Recipe, Registration

_OWN = "linnet.domains.text"
_TITLES, _TEXT = "--data: titles, one a line", "--data: text, JSON lines or Parquet"

REGISTRATION = Registration(
    settings=f"{_OWN}.data:TextData",
    recipes={
        "text": Recipe(f"{_OWN}.recipes:text", "any text; `size` is the one dial", _TEXT, "minutes", size=4),
        "wiki": Recipe(
            f"{_OWN}.recipes:wiki", "articles, encoded once into a store on disk", _TEXT, "hours", size=6
        ),
        "shakespeare": Recipe(
            f"{_OWN}.recipes:shakespeare", "characters of one book", "--data: one text", "minutes"
        ),
        "headlines": Recipe(
            f"{_OWN}.recipes:headlines", "our headline model, 12 million parameters", _TITLES, "two hours"
        ),
        "headlines-s4": Recipe(
            f"{_OWN}.recipes:headlines_s4", "the best headline model that S4 measured", _TITLES, "two hours"
        ),
        "headlines-report": Recipe(
            f"{_OWN}.recipes:headlines_report", "what the S4 report recommended", _TITLES, "two hours"
        ),
        "headlines-baseline": Recipe(
            f"{_OWN}.recipes:headlines_baseline", "where S4 started: plain gradient descent", _TITLES, "two hours"
        ),
        "wiki-s2": Recipe(
            f"{_OWN}.recipes:wiki_s2", "two layers on lines of wiki text, as S2 trained", _TEXT, "minutes"
        ),
        "tiny-text": Recipe(f"{_OWN}.recipes:tiny", "any text, for a first look", _TEXT, "seconds"),
        "tiny-characters": Recipe(
            f"{_OWN}.recipes:tiny_characters",
            "characters of one book, for a first look",
            "--data: one text",
            "seconds",
        ),
    },
    options=(
        Option("--sample", "data.sample", "Use so many documents of the text."),
        Option(
            "--tokenizer",
            "data.tokenizer.file",
            "A tokenizer.json to use, or where to keep the new one.",
            path=True,
        ),
        Option("--errors", "data.errors", "What to do with bytes that are not UTF-8: strict or replace."),
    ),
    verbs=f"{_OWN}.verbs:join",
)
