"""Transformers whose weights are written from small programs, so that their circuits are known exactly."""
