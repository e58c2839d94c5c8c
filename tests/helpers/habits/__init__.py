"""Random sequences of what people do to runs: stop, kill, move, copy, rename, damage, fill the disk, start twice.

Read in this order: `world.py` (a tree of runs and the commands that work on it), `actions.py` (the table of what may happen),
`checks.py` (what must hold after each action), `references.py` (the losses that must come out), `play.py` (one sequence;
`python -m tests.helpers.habits.play --seed 7`), `trial.py` (a hundred of them, several at once).
"""
