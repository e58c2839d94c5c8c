"""The recurrences of Gated DeltaNet and MesaNet: as loops over tokens in PyTorch, and on a GPU by the kernels of
flash-linear-attention; read `naive.py`, then `scan.py`."""

from .naive import gated_delta_rule, mesa
from .scan import gated_delta_scan, has_library, mesa_scan

__all__ = ["gated_delta_rule", "gated_delta_scan", "has_library", "mesa", "mesa_scan"]
