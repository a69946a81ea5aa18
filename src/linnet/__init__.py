"""Compact sequence models: train, decode, search and inspect them with one model and one set of tools."""

__version__ = "0.1.0"
