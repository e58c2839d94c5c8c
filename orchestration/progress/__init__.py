"""Progress displays in the terminal: `bars.py` for any long work, `training.py` for a training run, from its events."""
