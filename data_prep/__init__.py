"""Data preparation: `preparing/` turns raw sources into a tokenizer and verified token shards, `loading/` reads batches from them.

Read `config.py`, `preparing/prepare.py`, then `loading/loader.py`. `sources/` fetches the text, `recall/` generates the synthetic
recall tasks.
"""
