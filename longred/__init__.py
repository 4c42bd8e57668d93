"""Extend a language model's context window and restore its short-text skill (LongReD)."""

__version__ = "0.1.0"
