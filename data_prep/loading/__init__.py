"""Loading of training batches from token shards; a batch is a pure function of the dataset, the mixture, the seed and the step.

Read `dataset.py`, `loader.py`, `text_rows.py`, `packing.py` and `permutation.py`; `verify.py` checks a
whole dataset, `megatron.py` exports it.
"""
