"""Measuring answers: metrics in plain NumPy, baselines, and the runner that asks a data set's questions."""
