"""Experiments that the papers leave open, one command each: `python -m launch.experiment NAME`.

    core.py       what an experiment is: a question, cells, what a cell gives
    bench.py      what cells measure with: a checkpoint, films, questions asked and kept
    journal.py    finished cells on disk
    needle.py     films made of features: one moment in a haystack
    training.py   short trainings, for what cannot be switched on a trained model
    rows.py       cells as rows: intervals, and each against the reference
    page.py       rows as a page of markdown; charts.py rows as a picture

    hierarchies.py answering.py films.py pruning.py learning.py      the experiments themselves; all.py lists them
"""
