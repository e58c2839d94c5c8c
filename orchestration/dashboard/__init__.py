"""The dashboard of `echo-lm serve`: runs, studies and nodes of a folder as web pages. It reads files and writes none.

Read `app.py` (pages and addresses), `table.py` and `run_view.py` (what they show), `curves/`, and `comparison.py`
(several runs).
"""
