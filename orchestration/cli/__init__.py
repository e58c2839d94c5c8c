"""The command line: one file per command; `main.py` joins them, `options.py` holds shared options.

Nothing else imports this package.
"""
