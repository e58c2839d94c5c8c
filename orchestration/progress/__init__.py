"""Progress of long work on the terminal: `bars.py` for any work, `training.py` for a run, from its events."""
