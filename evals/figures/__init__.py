"""Figures of the whole project in one style: `style.py` has the style, `recall.py` the figures of recall."""
