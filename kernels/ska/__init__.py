"""Spectral Koopman Attention: the operation, its state and its forms."""

from .attention import ska_attention
from .decode import DecodeState, ska_step, start_decoding, update_factor
from .state import SKAState
from .weigh import weigh

__all__ = ["DecodeState", "SKAState", "ska_attention", "ska_step", "start_decoding", "update_factor", "weigh"]
