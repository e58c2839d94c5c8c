"""Mamba-2: the scan (state-space duality) and the short convolution before it."""

from .convolution import causal_convolution
from .naive import ssd_update
from .scan import ssd_scan
from .sequence import enter_segment

__all__ = ["causal_convolution", "enter_segment", "ssd_scan", "ssd_update"]
