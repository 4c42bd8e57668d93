"""Turns the evaluations of several models into a report: tables, figures and one HTML page.

The stage `report` calls `write.py`, which reads the artifacts (`inputs.py`), compares the scores,
draws the figures, renders the page and writes the journal of metrics. `longred evaluate --report`
writes the same kind of folder for an evaluation outside of a run.

    samples.py           per-sample answers, and the draws that intervals are computed from
    left_out.py          tasks that count in no average, and why
    measures.py          averages, their retention and differences, with intervals
    scores.py            the comparison of models: dropped tasks, all of the above, metrics
    restoration.py       the same by training step, and the correlation with similarity
    findings.py          the claims about the method and their outcomes
    tables.py            all of these as tables of text
    text_table.py        a table of text, as Markdown and back
    names.py             the names of metrics in all tables
    glossary.py          what models, tasks and columns are, for readers of a page
    plots.py             drawing primitives, and the data that figures are drawn from
    score_figures.py     figures of scores
    drift_figures.py     figures of drift, also for `longred drift`
    training_figures.py  figures of losses and of saved students
    figures.py           the table of all figures, and the functions that draw them
    page.py, page.html   the page
    compare.py, compare.html  `longred compare`: settings and scores of several runs
    base.html            the head of every page, also of a study's; loads nothing, runs nothing
    macros.html          tables, lists and figures on pages
    terms.html           the list of terms on both pages

Functions import scipy where they need it. `longred compare` and the terminal table start without
matplotlib, which only the files that draw import.
"""
