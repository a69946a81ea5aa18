"""Models in other people's formats, both ways: Hugging Face folders and GGUF files.

`families` has one object for each family: its settings and its tensors, read and written. `settings` and `tensors`
are what these objects are made of. Nothing here is ever unpickled, and no code of a model's folder is run.
"""
