"""Formats of input files: text, JSON lines, CSV, parquet, Arrow and Megatron's, plain or compressed, read record by record.

Read `records.py` (what a reader yields), `streams.py` (files and compression), `columns.py` (the text of a row), then the
readers `texts.py`, `tables.py` and `megatron.py`. `spool.py` is the temporary format of cleaned documents.
"""
