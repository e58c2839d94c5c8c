"""Spectral Koopman Attention: the operation, its state and its forms."""

from .attention import ska_attention
from .state import SKAState

__all__ = ["SKAState", "ska_attention"]
