"""The command line: one file a command; `main.py` joins them, `options.py` has what several commands share.

Nothing else imports this package.
"""
