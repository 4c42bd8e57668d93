"""Compositions of stages; nothing here does work of its own."""
