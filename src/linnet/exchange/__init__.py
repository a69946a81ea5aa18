"""Models in other people's formats, both ways: Hugging Face folders, GGUF files, and copies of a run to give away.

`families` has one object for each family: its settings and its tensors, read and written. `settings` and `layouts`
are what these objects are made of. Nothing here is ever unpickled, and no code of a model's folder is run.
"""
