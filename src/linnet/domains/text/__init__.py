"""Text: corpora, tokenizers, token stores and the n-gram models that a network has to beat."""
