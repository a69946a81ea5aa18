"""Kinds of sequences, each in its own folder, found by entry points."""
