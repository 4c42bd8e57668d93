"""Turns the scores of several models into a comparison: tables, plots and one page."""
