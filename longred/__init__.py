"""LongReD: extend a language model's context window and restore its short-text skill by distillation."""

__version__ = "0.1.0"
