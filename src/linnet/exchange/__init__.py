"""Models in other people's formats, both ways: Hugging Face folders, GGUF files, and cleaned copies of a run.

`families` reads how others write a model down, `expressing` says what they can write down of ours, `layouts` where
each tensor lies. Nothing here is ever unpickled, and no code of a model's folder is run.
"""
