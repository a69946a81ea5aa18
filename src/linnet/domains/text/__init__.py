"""Text: corpora, tokenizers, token stores and the n-gram models that a network has to beat."""

from linnet.domains.registry import Option, Recipe, Registration

_OWN = "linnet.domains.text"
_TITLES, _TEXT, _BOOK = "--data: titles, one a line", "--data: text, JSON lines or Parquet", "--data: one text"
_RECIPES: tuple[tuple[str, str, str, str, int | None], ...] = (
    ("text", "any text; `size` is the one dial", _TEXT, "minutes", 4),
    ("wiki", "articles, encoded once into a store on disk", _TEXT, "hours", 6),
    ("shakespeare", "characters of one book", _BOOK, "minutes", None),
    ("headlines", "our headline model, 12 million parameters", _TITLES, "two hours", None),
    ("headlines-s4", "the best headline model that S4 measured", _TITLES, "two hours", None),
    ("headlines-report", "what the S4 report recommended", _TITLES, "two hours", None),
    ("headlines-baseline", "where S4 started: plain gradient descent", _TITLES, "two hours", None),
    ("wiki-s2", "two layers on lines of wiki text, as S2 trained", _TEXT, "minutes", None),
    ("tiny-text", "any text, for a first look", _TEXT, "seconds", None),
    ("tiny-characters", "characters of one book, for a first look", _BOOK, "seconds", None),
)

REGISTRATION = Registration(
    settings=f"{_OWN}.data:TextData",
    recipes={
        name: Recipe(f"{_OWN}.recipes:{name.replace('-', '_')}", summary, reads, takes, size)
        for name, summary, reads, takes, size in _RECIPES
    },
    options=(
        Option("--sample", "data.sample", "Use so many documents of the text."),
        Option(
            "--tokenizer", "data.tokenizer.file", "A tokenizer.json to use, or where to keep the new one.", True
        ),
        Option("--errors", "data.errors", "What to do with bytes that are not UTF-8: strict or replace."),
    ),
    verbs=f"{_OWN}.verbs:join",
)
