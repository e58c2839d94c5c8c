"""Mamba-2: the scan (state-space duality) and the short convolution before it."""

from .convolution import causal_convolution
from .naive import ssd_update
from .scan import ssd_scan

__all__ = ["causal_convolution", "ssd_scan", "ssd_update"]
