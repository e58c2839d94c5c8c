"""Curves of runs in bounded memory: `points.py` keeps them, `history.py` reads a run's events, `overlay.py` joins several runs."""
