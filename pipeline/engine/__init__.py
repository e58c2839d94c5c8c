"""The DeepSpeed engine of a rank, and how its passes are launched; read `build.py`, then `cuda_graphs.py`."""

from .build import build_engine, choose_device, join_process_group

__all__ = ["build_engine", "choose_device", "join_process_group"]
