"""Sequence mixers: SKA, Mamba-2, causal attention."""
